"""A kind of head of one's own, registered from outside, in tables: trained, scored again, used and probed by name."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triune.cli import main
from triune.core.errors import UserError
from triune.core.evaluate.judgement import Judgement
from triune.core.heads import known
from triune.core.heads.base import Head, HeadSpec, kept
from triune.core.heads.registry import register
from triune.core.labels import guess
from triune.core.training.run.folder import load_summary


@dataclass(frozen=True)
class CountsOptions:
    """How a count is learned.

    Args:
        least: rate of the smallest answer.
    """

    least: float = 1e-3


class Counts(Head):
    """A count of a Poisson distribution; the output is the logarithm of its rate."""

    kind, reads, width, monitor = "counts", "regress", 1, ("nll", "min")
    Options: ClassVar[type] = CountsOptions

    @classmethod
    def prepare(cls, target: Any, options: dict[str, Any] | None = None) -> HeadSpec:
        mean = float(np.nanmean(target.values))
        return HeadSpec(cls.kind, tuple(target.names), asdict(cls.Options(**options or {})), {"mean": mean})

    def prior(self) -> list[float]:
        return [float(np.log(self.spec.training["mean"]))]

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        real = ~targets.isnan()
        nats = F.poisson_nll_loss(outputs.float(), targets.nan_to_num().float(), full=True, reduction="none")
        return torch.where(real, nats, 0.0).sum(), real.sum()

    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        return {"value": outputs[..., 0].double().exp().clamp_min(self.options.least).numpy()}

    def calibrate(self, outputs: Tensor, targets: Any) -> dict[str, Any]:
        return {}

    def judge(self, outputs: Tensor, targets: Any, calibration: Any = None, groups: Any = None, resamples: int = 1000):
        outputs, real, _ = kept(outputs, targets, lambda t: ~t.isnan().any(1), groups)
        total, count = self.loss(outputs, real)
        constant, _ = self.loss(torch.tensor(self.prior()).expand(outputs.shape), real)
        figures = {"nll": float(total / count)}
        return Judgement(self.kind, len(real), figures, baseline={"nll": float(constant / count)})


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(known, "HEADS", dict(known.HEADS))
    register(Counts)
    yield
    guess.READ_AS.pop(Counts.kind)


def table(path: Path, count: int = 120) -> Path:
    """Sequences, and how many tryptophans each has."""
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "bound"])
        for _ in range(count):
            letters = "".join(random.choice(list("ACDEFGHIKLW"), 14))
            writer.writerow([letters, letters.count("W")])
    return path


def test_it_is_trained_scored_used_and_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: None) -> None:
    data, run = table(tmp_path / "t.csv"), str(tmp_path / "run")
    named = ["--data.input", "sequence", "--data.target", "bound"]
    words = ["--data.kind", "counts", "--model.transformer.dim", "32", "--model.transformer.depth", "1"]
    words += ["--model.transformer.heads", "2", "--trainer.max_steps", "40", "--trainer.val_check_interval", "20"]
    words += ["--threads", "1", "--data.batch_size", "32", "--model.head", '{"least": 0.01}', "--run", run]
    assert main(["protein", "fit", "--data.table", str(data), *named, *words]) == 0
    out = capsys.readouterr().out
    assert "head counts of 1 target (least 0.01)" in " ".join(out.split())
    summary = load_summary(Path(run))
    assert summary["judged"]["kind"] == "counts"
    assert summary["val_nll"] < summary["judged"]["baseline"]["nll"]
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["model"]["head"]
    assert (saved["kind"], saved["options"]) == ("counts", {"least": 0.01})
    assert main(["protein", "test", run, "--data.table", str(table(tmp_path / "other.csv", 40))]) == 0
    assert json.loads((tmp_path / "run" / "test.json").read_text())["judged"]["count"] == 40
    capsys.readouterr()
    assert main(["protein", "predict", run, "WWWWAW", "ACDA", "--out", str(tmp_path / "a.jsonl")]) == 0
    many, none = (json.loads(line)["value"] for line in (tmp_path / "a.jsonl").read_text().splitlines())
    assert many > none > 0
    probe = ["protein", "probe", "--model", run, "--data.table", str(data), *named, "--data.kind", "counts", "--json"]
    assert main([*probe, "--cache", str(tmp_path / "cache")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "counts" and found["scores"][0]["metrics"]["nll"] < found["scores"][-1]["metrics"]["nll"]


def test_it_stands_beside_other_targets(tmp_path: Path, counts: None) -> None:
    from triune.core.labels.table import read_table
    from triune.core.labels.targets import infer

    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,x\n2,y\n0,x\n")
    found = infer(read_table(path, ["a", "b"]), ["a", "b"], {"a": "counts", "b": "classify"})
    assert [part.kind for part in found.parts] == ["counts", "classify"]
    assert found.parts[0].said == "'a' is read as numbers: counts, as was asked for."
    with pytest.raises(UserError, match=r"did you mean 'counts'\?\), but must be .* or counts"):
        infer(read_table(path, ["a"]), ["a"], "count")


def test_what_it_reads_must_be_a_kind_of_the_package(counts: None) -> None:
    class Odd(Counts):
        kind, reads = "odd", "number"

    with pytest.raises(UserError, match=r"Odd\.reads is 'number', but must be one of classify"):
        register(Odd)
