"""A few of the random configurations of `bench/parity_random_vision.py`: each kind of model three times."""

from __future__ import annotations

import pytest

from triune.bench.parity_random_vision import KINDS, draw, run, wrong

transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")
for library in ("timm", "torchvision", "esm"):
    pytest.importorskip(library, reason=f"the originals: {library}")


@pytest.mark.filterwarnings("ignore")
def test_random_configurations_are_read_right_or_refused() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = run(48)
    assert not [row for row in rows if wrong(row)]
    read = {draw(row["seed"])[0] for row in rows if "refused" not in row}
    assert read == set(KINDS)
