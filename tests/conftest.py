"""What all tests share: threads, markers, the hypothesis profile and where the sample data lie."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

CORES = min(2, os.cpu_count() or 1)
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Set before PyTorch is loaded, and for what the tests start: threads of several workers that share the cores wait
    # for one another by spinning, which takes five times the processor time.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", CORES)))

settings.register_profile("triune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("triune"), derandomize=True, print_blob=True)
settings.register_profile("long", settings.get_profile("triune"), max_examples=3000)
settings.load_profile("ci" if os.environ.get("CI") else "triune")


LONGEST = (
    "core/training/test_kill.py", "core/training/run/test_processes.py", "core/training/run/test_damaged.py",
    "core/training/test_tuning_tasks.py", "core/training/test_guard_tasks.py", "core/training/run/test_signals.py",
    "test_tables.py", "text/data/test_module.py", "text/test_by_heart.py", "test_several_targets.py",
    "text/test_tokenizer_kinds.py", "robust/test_stopped_verbs.py", "robust/test_options.py", "vision/test_task.py",
)  # fmt: skip
"""Files that take longest, which several workers begin with, so that none is left alone with one of them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist would begin with the files of most tests, which are short
    gc.disable()  # until the tests are collected


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))  # keeps the order within a file
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    too_slow = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(too_slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of tests and the libraries stay until the end; looking at them for garbage takes a few percent."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Empties the cache of torch.compile after each test that used it.

    Every Block shares one `forward`, and PyTorch keeps at most eight compiled variants of a function
    (`recompile_limit`); what an earlier test compiled would otherwise make a later one run uncompiled.
    """
    yield
    if "torch._dynamo.convert_frame" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def server():
    """A process that has imported all and forks one for each command line: several processes, without their start."""
    from triune.bench.kills.server import Server

    with Server(1) as server:
        yield server


@pytest.fixture(scope="session")
def servers(server):
    """That process, and another one whose hashes have another order."""
    from triune.bench.kills.server import Server

    with Server(2) as second:
        yield server, second


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The sample data of the project: $TRIUNE_DATA, or shared/data beside the checkout."""
    candidates = [Path(os.environ["TRIUNE_DATA"])] if "TRIUNE_DATA" in os.environ else []
    candidates.append(ROOT.parent / "shared" / "data")
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip(f"no sample data at {' or '.join(map(str, candidates))}; set TRIUNE_DATA to its folder")
