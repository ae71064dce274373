"""Pretraining: batches and their order, exact resume, the contact head, and the verb from FASTA to contacts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from triune import cli
from triune.core.errors import UserError
from triune.core.training.run.folder import RunFolder
from triune.protein.data.store import builtin_set
from triune.protein.language import head_fit as regression
from triune.protein.language.contact_head import HEAD, ContactHead
from triune.protein.language.data import SequenceData
from triune.protein.language.head_fit import chains_for_head, judge_head
from triune.protein.language.model import CLS, EOS, PAD, SequenceConfig, SequenceModel, esm_transformer
from triune.protein.language.task import PretrainTask
from triune.protein.read import alphabet


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """120 different sequences of 20 to 56 residues, and the first one again."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(120):
        letters = torch.randint(20, (20 + number % 37,), generator=generator)
        lines += [f">s{number}", "".join(alphabet.AMINO_ACIDS[i] for i in letters)]
    path = tmp_path / "set.fasta"
    path.write_text("\n".join([*lines, ">again", lines[1], ""]))
    return path


def whole(batch: dict[str, Tensor]) -> list[tuple[int, ...]]:
    """The sequences of a batch, the masks taken off; rows without residues left out."""
    tokens = torch.where(batch["targets"] == -100, batch["tokens"], batch["targets"])
    rows = [tuple(row[(row != PAD) & (row != CLS) & (row != EOS)].tolist()) for row in tokens]
    return [row for row in rows if row]


# -- data -------------------------------------------------------------------------------------------------------------


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean '8M'"):
        PretrainTask(size="8MB")


def test_batches_of_fasta(fasta: Path) -> None:
    data = SequenceData(str(fasta), val_fraction=0.1, context=30, batch_size=8)
    data.setup()
    counts = data.figures()
    assert counts["duplicates"] == 1
    assert counts["sequences_train"] + counts["sequences_val"] == 120
    assert "1 duplicates left out" in data.describe()
    loader = data.train_dataloader()
    epoch = list(loader)
    assert len(epoch) == len(loader) == counts["sequences_train"] // 8
    assert all(b["tokens"].shape == (8, 32) for b in epoch)  # 30 residues, <cls> and <eos>
    again = list(data.train_dataloader())
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(epoch, again))
    assert not torch.equal(epoch[0]["targets"], next(iter(loader))["targets"])  # the second epoch
    other = SequenceData(str(fasta), val_fraction=0.1, context=30, batch_size=8, seed=1)
    other.setup()
    assert not all(torch.equal(a["targets"], b["targets"]) for a, b in zip(epoch, other.train_dataloader()))


def test_each_sequence_once_an_epoch(fasta: Path) -> None:
    data = SequenceData(str(fasta), val_fraction=0.1, context=100, batch_size=7)
    data.setup()
    seen = [row for batch in data.train_dataloader() for row in whole(batch)]
    assert len(seen) == len(set(seen)) == len(data.sides["train"]) // 7 * 7


class Ranks(SequenceData):
    """As if on one of several devices."""

    rank, world = 0, 1

    def ranks(self) -> tuple[int, int]:
        return self.rank, self.world


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_work(fasta: Path, world: int) -> None:
    """In training and validation every sequence is on one rank once, and ranks take equally many batches."""
    sides: dict[str, list[list[dict[str, Tensor]]]] = {"train": [], "val": []}
    for rank in range(world):
        data = Ranks(str(fasta), val_fraction=0.15, context=60, batch_size=4)
        data.rank, data.world = rank, world
        data.setup()
        sides["train"].append(list(data.train_dataloader()))
        sides["val"].append(list(data.val_dataloader()))
    for name, held in sides.items():
        assert len({len(batches) for batches in held}) == 1
        seen = [row for batches in held for batch in batches for row in whole(batch)]
        assert len(seen) == len(set(seen))
        if name == "val":
            assert len(seen) == len(data.sides["val"])  # none left out, none twice
        else:
            assert len(seen) == len(data.sides["train"]) // (4 * world) * 4 * world


def test_validation_is_the_same_whatever_the_batches(fasta: Path) -> None:
    """Masks belong to a sequence: neither the batch it is in nor the number of devices changes the validation loss."""

    def targets(batch_size: int, rank: int = 0, world: int = 1) -> set[tuple[int, ...]]:
        data = Ranks(str(fasta), val_fraction=0.15, context=40, batch_size=batch_size)
        data.rank, data.world = rank, world
        data.setup()
        rows = [row for batch in data.val_dataloader() for row in batch["targets"]]
        return {tuple(np.trim_zeros((row + 100).tolist(), "b")) for row in rows} - {()}

    alone = targets(5)
    assert len(alone) > 10
    assert targets(16) == alone
    assert targets(4, 0, 2) | targets(4, 1, 2) == alone


def test_an_empty_slot_has_no_targets(fasta: Path) -> None:
    data = SequenceData(str(fasta), val_fraction=0.15, batch_size=32)
    data.setup()
    (batch,) = list(data.val_dataloader())
    empty = batch["tokens"][len(data.sides["val"]) :]
    assert len(empty) > 0
    assert (empty[:, :2] == torch.tensor([CLS, EOS])).all()
    assert (batch["targets"][len(data.sides["val"]) :] == -100).all()
    task = PretrainTask("tiny")
    task.configure_model()
    assert torch.isfinite(task.loss(batch).total)


def test_too_few_sequences_and_bad_ones(tmp_path: Path, fasta: Path) -> None:
    path = tmp_path / "one.fasta"
    path.write_text(">a\nACDEFGHIKL\n>b\nAC1\n")
    with pytest.raises(UserError, match=r"fewer than one batch.*left out: .*'1' at position 3"):
        SequenceData(str(path)).setup()
    with pytest.raises(UserError, match="but no file matches"):
        SequenceData(str(tmp_path / "*.nothing")).setup()
    both = SequenceData([str(fasta), str(path)], batch_size=8)
    both.setup()
    assert len(both.problems) == 1
    assert both.figures()["sequences_train"] + both.figures()["sequences_val"] == 121
    assert "1 left out, the first:" in both.describe()


def test_dna_is_left_out_and_chains_of_a_complex_are_sequences_of_their_own(tmp_path: Path, fasta: Path) -> None:
    path = tmp_path / "odd.fasta"
    dna = "".join(np.random.default_rng(0).choice(list("ACGT"), 60))
    path.write_text(f">dna\n{dna}\n>complex\nMKVLAGDWTRES:HIFQNPYCMKWDE\n")
    alone, both = SequenceData(str(fasta), batch_size=8), SequenceData([str(fasta), str(path)], batch_size=8)
    for data in (alone, both):
        data.setup()
    assert "the sequence 'dna' is DNA or RNA" in both.problems[0]
    count = [sum(map(len, data.sides.values())) for data in (alone, both)]
    assert count[1] == count[0] + 2


def test_without_files_it_reads_the_built_in_chains() -> None:
    data, chains = SequenceData(), builtin_set()
    data.setup()
    counts = data.figures()
    assert counts["sequences_train"] == len(chains.of("train"))
    assert counts["sequences_val"] == len(chains.of("val"))
    assert "built in" in data.describe()


# -- training ---------------------------------------------------------------------------------------------------------


def trainer_of(folder: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, max_epochs=-1, **options,
    )  # fmt: skip


def test_pretraining_learns_a_pattern(tmp_path: Path) -> None:
    """Sequences that repeat a period are predictable; a short run beats the entropy of letters."""
    generator = torch.Generator().manual_seed(1)
    lines = []
    for number in range(200):
        start = int(torch.randint(20, (), generator=generator))
        lines += [f">s{number}", "".join(alphabet.AMINO_ACIDS[(start + i + (number // 20)) % 20] for i in range(30))]
        lines[-1] = lines[-1][: 20 + number % 10]
    path = tmp_path / "set.fasta"
    path.write_text("\n".join(lines))
    torch.manual_seed(0)
    data, task = SequenceData(str(path), val_fraction=0.1, batch_size=16), PretrainTask("tiny")
    trainer = trainer_of(tmp_path, max_steps=120)
    trainer.fit(task, data)
    metrics = trainer.validate(task, data, verbose=False)[0]
    assert metrics["val_loss"] < 2.5  # 3.0 is ln 20
    assert metrics["val_perplexity"] == pytest.approx(torch.tensor(metrics["val_loss"]).exp().item(), rel=1e-4)


class Stop(lightning.Callback):
    """Breaks training off after so many steps, as an interruption would: the schedule is that of the whole run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


def trained(fasta: Path, folder: Path, stop: int, checkpoint: str | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    task = PretrainTask("tiny")
    trainer = trainer_of(folder, max_steps=8, limit_val_batches=0, callbacks=[Stop(stop)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(task, SequenceData(str(fasta), batch_size=32), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / f"{stop}.ckpt")
    assert task.model is not None
    return task.model.state_dict()


def test_training_resumes_bit_identically(fasta: Path, tmp_path: Path) -> None:
    """Stopped in the second epoch (of three batches) and continued."""
    straight = trained(fasta, tmp_path, 8)
    trained(fasta, tmp_path, 5)
    resumed = trained(fasta, tmp_path, 8, str(tmp_path / "5.ckpt"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


# -- contact head -----------------------------------------------------------------------------------------------------


def test_chains_for_the_contact_head() -> None:
    chains = builtin_set()
    fitted_on, judged_by = chains_for_head(chains)
    assert len(set(fitted_on.tolist())) == 20
    assert set(chains.split[fitted_on]) == {"train"}
    assert set(judged_by.tolist()) == set(chains.of("val").tolist())


def test_an_empty_head_scores_chance() -> None:
    chains = builtin_set()
    model = SequenceModel(SequenceConfig(transformer=esm_transformer("tiny"))).eval()
    found = judge_head(model, ContactHead(2, 2), chains, chains.of("val")[:3])
    assert found["long_p_at_l"] == pytest.approx(found["long_p_at_l_chance"])


# -- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_from_fasta_to_contacts(
    fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(regression, "FITTED_ON", 5)
    monkeypatch.setattr(regression, "LONGEST", (90, 70))  # fewer chains, for speed
    small = ["--model.size", "tiny", "--data.batch_size", "16", "--trainer.max_steps", "6", "--threads", "1"]
    small += ["--trainer.val_check_interval", "3", "--trainer.accelerator", "cpu"]
    assert cli.main(["protein", "pretrain", "--data.files", str(fasta), "--run", "lm", *small]) == 0
    out = capsys.readouterr().out
    assert "masked res" in out
    assert "P@L" in out
    assert "triune protein contacts SEQUENCES.fasta --run lm" in out
    run = RunFolder("lm")
    summary = json.loads(run.summary.read_text())
    assert 0 <= summary["val_long_p_at_l"] <= summary["val_long_p_at_l_ceiling"]
    head = ContactHead.from_pretrained(run.model / HEAD)
    assert head.weight.shape == (2, 2)

    # The run remembers its verb: validate takes the same classes, fit does not continue it.
    assert run.verb == "pretrain"
    assert cli.main(["protein", "validate", "lm"]) == 0
    figures = json.loads(run.validation.read_text())
    assert figures["val_loss"] == pytest.approx(summary["val_loss"], rel=1e-5)
    assert figures["val_long_p_at_l"] == pytest.approx(summary["val_long_p_at_l"])
    capsys.readouterr()
    assert cli.main(["protein", "fit", "--run", "lm", "--resume", "true"]) == 2
    assert "is a run of `triune protein pretrain`" in capsys.readouterr().err

    if not head.weight.any():  # six steps may have taught it nothing
        head.weight.fill_(0.5)
        head.save_pretrained(run.model / HEAD)
    long = [alphabet.AMINO_ACIDS * 2, alphabet.AMINO_ACIDS[::-1] * 2]
    Path("two.fasta").write_text(f">a\n{long[0]}\n>b\n{long[1]}\n")
    assert cli.main(["protein", "contacts", "two.fasta", "--run", "lm", "--json", "--no-png"]) == 0
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert len(results) == 2
    assert results[0]["sequence"] == long[0]
    assert len(results[0]["pairs"]) == 10
    assert "expected_distance" not in results[0]["pairs"][0]  # a language model tells none
    assert err == ""
