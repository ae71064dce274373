"""`triune lens birth`, and head scores during training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from triune.cli import main
from triune.core.training.run.heads import read_scores
from triune.lens.birth import batch, jump


def test_texts_repeat_where_they_are_said_to() -> None:
    ids, known = batch(5, torch.Generator().manual_seed(0))
    for row, here in zip(ids, known):
        length = int((~here).sum()) - 1
        assert torch.equal(row[1 + length :], row[1:-length]) and 8 <= length <= 32


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    files = [f"--{kind}={tmp_path / f'x.{kind}'}" for kind in ("json", "png", "html")]
    assert main(["lens", "birth", "--steps", "2", *files]) == 0
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert row["by step"][-1]["step"] == 2 and 0 <= row["one layer"] <= 1
    assert len(row["rank correlation of weight and effect, by head"][1]) == 4
    assert all((tmp_path / f"x.{kind}").stat().st_size > 1000 for kind in ("png", "html"))
    assert jump([{"accuracy": value} for value in (0.1, 0.1, 0.1, 0.1, 0.2, 0.9)]) == pytest.approx(0.8)


@pytest.mark.slow(reason="trains for half a minute on two cores")
def test_heads_arise_and_are_redundant_one_by_one(tmp_path: Path) -> None:
    assert main(["lens", "birth", "--json", str(tmp_path / "x.json")]) == 0
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert row["accuracy"] > 0.95 and row["one layer"] < 0.2 and row["jump in 100 steps"] > 0.5
    assert row["best previous-token head"] > 0.6 and row["best induction head"] > 0.8
    assert row["without 4 induction heads"] < 0.05 and row["without 2 previous-token heads"] < 0.4
    assert row["induction edges cut in layer 1"] < 0.05
    assert row["without 2 induction heads"] - row["without 3 induction heads"] > 0.2


def fit(folder: Path, *more: str) -> Path:
    text = folder.with_suffix(".txt")
    text.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(400)))
    words = (
        "--data.context 32 --data.batch_size 4 --data.tokenizer bytes --trainer.max_steps 4 --trainer.accelerator cpu "
        "--trainer.val_check_interval 2 --model.transformer.dim 16 --model.transformer.depth 2 "
        "--model.transformer.heads 2 --trainer.limit_val_batches 1 --trainer.num_sanity_val_steps 0 "
        "--trainer.logger false --threads 1 --model.ema 0.5"
    )
    where = ["--data.files", str(text), "--data.cache", str(folder.parent)]
    assert main(["text", "fit", "--run", str(folder), *where, *words.split(), *more]) == 0
    return folder


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the scores of its heads."""
    return fit(tmp_path_factory.mktemp("scored") / "with", "--head_scores", "true")


def test_scores_at_every_validation_change_nothing_else(scored: Path, tmp_path: Path) -> None:
    without = fit(tmp_path / "without")
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (scored, without)]
    assert weights[0] == weights[1]
    rows = read_scores(scored / "heads.csv")
    assert {row[0] for row in rows} == {2, 4} and {"induction", "previous"} <= {row[1] for row in rows}
    assert {row[2:4] for row in rows} == {(layer, head) for layer in range(2) for head in range(2)}
    assert (scored / "heads.png").stat().st_size > 1000
    assert not (without / "heads.csv").exists()


def test_a_run_with_scores_of_heads_is_validated_again(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = ["text", "validate", str(scored), "--trainer.limit_val_batches", "1"]
    assert main(score) == 0
    assert main([*score, "--head_scores", "true"]) == 2
    assert "option of a training" in capsys.readouterr().err
