"""Loggers by name: each gets what metrics.csv has, which is always there; what is not installed is one sentence."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from triune.cli import main
from triune.core.errors import UserError
from triune.core.training.run.folder import RunFolder
from triune.core.training.run.loggers import make, names_of

SHORT = [
    "text", "fit", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1",
    "--model.transformer.depth", "1", "--model.transformer.dim", "16", "--model.transformer.heads", "2",
    "--trainer.accelerator", "cpu", "--data.tokenizer", "bytes", "--data.context", "16", "--data.batch_size", "2",
    "--data.files", "x.txt", "--threads", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text to learn, in the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    Path("x.txt").write_text("some words of a text to learn\n" * 60)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_list_of_names_trains_resumes_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    chosen = tmp_path / "mine.yaml"
    chosen.write_text("trainer:\n  logger: [csv, tensorboard]\n")
    assert main([*SHORT, "--run", str(run), "--config", "default", "--config", str(chosen)]) == 0
    logged, kept = table(run / "csv" / "metrics.csv"), table(run / "metrics.csv")
    losses = {row["step"]: float(row["loss"]) for row in kept if row["loss"]}
    assert {row["step"]: float(row["loss"]) for row in logged if row.get("loss")} == pytest.approx(losses, rel=1e-5)
    assert len(losses) == 2 and any(row.get("val_loss") for row in logged) and any((run / "tensorboard").iterdir())
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"] == ["csv", "tensorboard"]
    assert main(["text", "fit", "--run", str(run), "--resume", "true", "--trainer.max_steps", "3"]) == 0
    assert [row["step"] for row in table(run / "csv" / "metrics.csv")] == [row["step"] for row in logged]
    assert any(row["step"] == "3" for row in table(run / "csv-2" / "metrics.csv"))
    assert main(["text", "validate", str(run)]) == 0 and not (run / "csv-3").exists()


def test_none_and_a_class_leave_metrics_csv(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*SHORT, "--run", str(run), "--trainer.logger", "none"]) == 0
    assert table(run / "metrics.csv") and not (run / "tensorboard").exists()
    other = tmp_path / "other"
    place = json.dumps(
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    )
    assert main([*SHORT, "--run", str(other), "--trainer.logger", place]) == 0
    assert table(other / "metrics.csv") and list((tmp_path / "logs").rglob("metrics.csv"))


def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *more: str | None) -> object:
        return None if name in ("wandb", "mlflow") else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    for word, said in (
        ("wandb", "needs the package wandb: pip install wandb"), ("mlflow", "pip install mlflow-skinny"),
        ("wandbb", "'wandb'"), ("[none, csv]", "none stands alone"), ("[csv, csv]", "name each logger once"),
    ):  # fmt: skip
        assert main([*SHORT, "--run", str(tmp_path / "run"), "--trainer.logger", word]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
    assert names_of(True) is None and names_of([]) is None and names_of([object()]) is None
    with pytest.raises(UserError):
        make(["mlflow"], RunFolder(tmp_path), "text", "fit")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.filterwarnings("ignore")
def test_services_log_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed; pip install '.[test,loggers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    assert main([*SHORT, "--run", str(run), "--trainer.logger", name]) == 0
    if name == "wandb":
        sys.modules["wandb"].finish()
        assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    else:
        (found,) = (run / "mlruns").rglob("metrics/val_loss")
        losses = [row["val_loss"] for row in table(run / "metrics.csv") if row["val_loss"]]
        assert float(found.read_text().split()[1]) == pytest.approx(float(losses[0]), rel=1e-5)
    assert isinstance(sys.modules[name], ModuleType) and table(run / "metrics.csv")
