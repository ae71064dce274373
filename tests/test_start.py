"""What the verbs of use load: neither the training framework nor the compiler, and nothing that draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from triune.bench.start_up import VERBS, make_models

HEAVY = (
    "lightning", "torch._dynamo", "torch._inductor", "matplotlib", "pandas", "sklearn", "transformers", "torchmetrics",
    "timm", "tensorboard", "jsonargparse",
)  # fmt: skip
CODE = """
import json, os, sys
import torch, numpy, PIL.Image
heavy, verbs = json.loads(sys.argv[1])
for name, words in verbs.items():
    sys.stdout.flush()
    if not os.fork():
        from triune.cli import main
        code = main(words)
        print(json.dumps(["found", name, code, sorted(set(heavy) & set(sys.modules))]), flush=True)
        os._exit(0)
    os.wait()
"""
"""Runs each command line in a process of its own, which has loaded PyTorch and nothing of ours."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder) -> dict[str, list[object]]:
    """By verb: its exit code, and what it has loaded of `HEAVY`."""
    asked = json.dumps([HEAVY, VERBS])
    done = subprocess.run([sys.executable, "-c", CODE, asked], cwd=folder, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["found", ')]
    assert len(lines) == len(VERBS), done.stderr
    return {name: more for _, name, *more in lines}


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_heavy_is_loaded(found, verb):
    assert found[verb] == [0, []]
