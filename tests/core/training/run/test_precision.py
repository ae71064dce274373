"""`--trainer.precision auto`: what it chooses, that it changes nothing else, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from triune.cli import main
from triune.core.errors import UserError
from triune.core.training.run import precision

SHORT = [
    "text", "fit", "--trainer.max_steps", "2", "--model.transformer.depth", "1", "--model.transformer.dim", "16",
    "--model.transformer.heads", "2", "--model.transformer.dropout", "0.1", "--trainer.accelerator", "cpu",
    "--data.tokenizer", "bytes", "--data.context", "16", "--data.batch_size", "2", "--data.files", "x.txt",
    "--threads", "1", "--trainer.logger", "none",
]  # fmt: skip


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text to learn, in the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    Path("x.txt").write_text("some words of a text to learn\n" * 60)


def weights(run: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=True)["state_dict"]


def precision_in(run: str) -> str:
    return yaml.safe_load(Path(run, "config.yaml").read_text())["trainer"]["precision"]


def test_timing_changes_nothing_and_the_choice_is_recorded(capsys: Any, monkeypatch: Any) -> None:
    for name in ("LEAST", "WARM"):
        monkeypatch.setattr(precision, name, 1)
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "GAIN", 0.0)  # so that float32 is chosen, whatever the times
    Path("temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(Path("temporary").absolute()))
    assert main([*SHORT, "--run", "auto", "--trainer.precision", "auto"]) == 0
    assert not any(Path("temporary").glob("triune-precision-*"))
    said = " ".join(capsys.readouterr().out.split())
    assert "s of the processor in float32" in said and "s in bfloat16)" in said
    assert said.count("vocabulary") == 1  # the opening of the training, and not those of the timed steps
    assert precision_in("auto") == "32-true"
    assert main([*SHORT, "--run", "plain"]) == 0
    for name, value in weights("plain").items():
        assert torch.equal(value, weights("auto")[name]), name


def test_a_run_goes_on_and_is_scored_in_its_own(monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_step", lambda *given: 1.0 if given[-1] == precision.PLAIN else 0.5)
    assert main([*SHORT, "--run", "run", "--trainer.precision", "auto"]) == 0
    assert precision_in("run") == "bf16-mixed"
    monkeypatch.setattr(precision, "measured", lambda *_: pytest.fail("timed again"))
    again = ["--run", "run", "--resume", "true", "--trainer.max_steps", "3", "--trainer.precision", "auto"]
    assert main(["text", "fit", *again]) == 0
    assert main(["text", "validate", "run", "--trainer.precision", "auto"]) == 0
    assert precision_in("run") == "bf16-mixed"


@pytest.mark.parametrize(("mixed", "chosen"), [(0.5, "bf16-mixed"), (0.95, "32-true"), (3.0, "32-true")])
def test_bfloat16_must_gain_a_tenth(mixed: float, chosen: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_step", lambda *given: 1.0 if given[-1] == precision.PLAIN else mixed)
    assert precision.measured(lambda _: None, options(1), str)[0] == chosen


def test_a_processor_without_bfloat16_is_not_timed(monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "_step", lambda *_: pytest.fail("timed"))
    assert precision.measured(lambda _: None, options("auto"), str)[0] == "32-true"


def test_several_processes_are_refused() -> None:
    with pytest.raises(UserError, match="a training of several processes cannot be timed by one; say 32-true or bf16"):
        precision.measured(lambda _: None, options(2), str)


def test_a_mistake_in_the_data_is_told_as_without_it(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    Path("x.txt").write_text("")
    assert main([*SHORT, "--run", "run", "--trainer.precision", "auto"]) == 2
    timed = capsys.readouterr().err
    assert main([*SHORT, "--run", "run"]) == 2
    assert capsys.readouterr().err == timed and not Path("run").exists()


def options(devices: Any) -> Any:
    from jsonargparse import Namespace

    return Namespace(trainer=Namespace(devices=devices, num_nodes=1, precision="auto"))
