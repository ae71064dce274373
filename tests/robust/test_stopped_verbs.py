"""Verbs that write files, stopped while they do: no half file under the name of the output, and the next call makes it
whole.

One moment and signal of some verbs here, of all with --slow; `python -m triune.bench.kills.verbs` takes all moments.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from triune.bench.kills.moments import FULL_DISK
from triune.bench.kills.server import Server
from triune.bench.kills.verbs import VERBS, Stopped
from triune.bench.refusals.run import make_good, make_runs

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "full disk": FULL_DISK}
QUICK = {("embed", "SIGKILL"), ("text shard", "SIGTERM"), ("mutations", "full disk"), ("gguf", "SIGINT")}


@pytest.fixture(scope="module")
def stopped(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stopped]:
    place, known = tmp_path_factory.mktemp("verbs"), {}
    make_good(place / "ok")
    make_runs(place / "ok", ("run-texts",))

    def get(verb: str) -> Stopped:
        if verb not in known:
            known[verb] = Stopped(verb, place / verb.replace(" ", "-"), server)
        return known[verb]

    return get


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        pytest.param(verb, name, marks=[] if (verb, name) in QUICK else [pytest.mark.slow])
        for verb in VERBS
        for name in SIGNALS
    ],
)
def test_a_verb_that_is_stopped_leaves_nothing_half(verb: str, name: str, stopped: Callable[[str], Stopped]) -> None:
    one = stopped(verb)
    assert one.names
    assert one.stop(-(-len(one.names) // 2), int(SIGNALS[name])) == []
