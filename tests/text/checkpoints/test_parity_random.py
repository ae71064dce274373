"""A few of the random configurations of `bench/parity_random.py`."""

from __future__ import annotations

import pytest

from triune.bench.parity_random import run, wrong

transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")


def test_random_configurations_are_read_right_or_refused() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = run(15)
    assert not [row for row in rows if wrong(row)]
    assert sum("refused" not in row for row in rows) >= 7
