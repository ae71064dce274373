"""`triune check`: all mistakes at once, an estimate, and nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from triune.cli import main

SMALL = [
    "--data.tokenizer", "bytes", "--data.context", "16", "--data.batch_size", "2", "--model.transformer.dim", "16",
    "--model.transformer.depth", "1", "--model.transformer.heads", "2", "--threads", "1",
    "--trainer.accelerator", "cpu",
    "--trainer.max_steps", "9", "--trainer.val_check_interval", "4", "--trainer.limit_val_batches", "1",
]  # fmt: skip


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("".join(f"{i} and {i} is {i + i}\n" for i in range(300)))
    return [*SMALL, "--data.files", str(tmp_path / "text.txt"), "--data.cache", str(tmp_path / "cache")]


def test_an_estimate_leaves_no_run_behind(line: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "text", *line, "--run", "mine"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"time +about 0:\d\d: 9 steps of .* s, 3 validations of", said)
    assert re.search(r"memory +about [\d.]+ GB, of [\d.]+ GB that are free", said)
    assert re.search(r"batch +2 on a device; memory suffices for about [\d,]{3,}", " ".join(said.split()))
    assert "parameters" in said
    assert not (tmp_path / "mine").exists()
    assert not (tmp_path / "runs").exists()


def test_all_mistakes_at_once(line: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "model:\n  optimizer:\n    lr: -1\n    eps: 0\ntrainer:\n  gradient_clip_val: -1\n"
    )
    wrong = ["--config", "mine.yaml", "--data.fils", "x", "--model.transformer.heads", "7", "--data.val_fraction", "2"]
    assert main(["check", "text", "fit", *line, *wrong]) == 2
    said = capsys.readouterr().err.splitlines()
    for part in (
        "data.fils",
        "optimizer.lr is -1",
        "optimizer.eps is 0",
        "gradient_clip_val is -1",
        "val_fraction is 2",
    ):
        assert sum(part in text for text in said) == 1, (part, said)
    assert any("heads (7)" in text for text in said)
    assert all(text.startswith("error: ") for text in said)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["default"], "is a recipe of"),
        (["nothing-like-it"], "is no recipe, file or run"),
        (["--data.batch_size", "2"], "needs to know the task"),
        (["text", "--config", "missing.yaml"], "neither a file nor a recipe"),
    ],
)
def test_what_is_no_configuration(words: list[str], says: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", *words]) == 2
    assert says in capsys.readouterr().err
