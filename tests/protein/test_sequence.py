"""The sequence model: ESM-2's shape, its input rules and its pretraining."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from triune.core.errors import UserError
from triune.protein import alphabet
from triune.protein.pretrain import PretrainTask, SequenceData
from triune.protein.sequence import (
    CLS,
    EOS,
    MASK,
    PAD,
    VOCABULARY,
    SequenceConfig,
    SequenceModel,
    esm_tokens,
    esm_transformer,
    mask_tokens,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny() -> SequenceModel:
    return SequenceModel(SequenceConfig(transformer=esm_transformer("tiny"))).eval()


def chains(*sequences: str) -> torch.Tensor:
    width = max(map(len, sequences))
    rows = [torch.tensor(alphabet.encode(s)).long() for s in sequences]
    return esm_tokens(torch.stack([F.pad(r, (0, width - len(r)), value=alphabet.PAD) for r in rows]))


def test_vocabulary_is_that_of_esm2() -> None:
    assert len(VOCABULARY) == 33
    assert (CLS, PAD, EOS, MASK) == (0, 1, 2, 32)
    tokens = chains("MKTX", "AC")
    assert [VOCABULARY[i] for i in tokens[0]] == ["<cls>", "M", "K", "T", "X", "<eos>"]
    assert [VOCABULARY[i] for i in tokens[1]] == ["<cls>", "A", "C", "<eos>", "<pad>", "<pad>"]


@pytest.mark.parametrize(("size", "parameters"), [("8M", 7_512_474), ("35M", 33_501_394), ("150M", 148_140_154)])
def test_sizes_are_the_published_ones(size: str, parameters: int) -> None:
    """The published counts include the contact head: one weight for each head of each layer and a bias."""
    with torch.device("meta"):
        model = SequenceModel(SequenceConfig(transformer=esm_transformer(size)))
    config = model.config.transformer
    assert sum(p.numel() for p in model.parameters()) + config.depth * config.heads + 1 == parameters


def test_token_dropout_scales_embeddings() -> None:
    """<mask> counts nothing and the others are scaled by 0.88 / (1 - share of <mask>), <cls> and <eos> included."""
    model, tokens = tiny(), chains("MKTAYIAK", "ACD")
    tokens[0, 3] = MASK
    seen: list[torch.Tensor] = []
    model.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(tokens)
    embedded = model.embedding(tokens)
    assert torch.allclose(seen[0][0, 2], embedded[0, 2] * 0.88 / (1 - 1 / 10))
    assert torch.allclose(seen[0][1, 2], embedded[1, 2] * 0.88)
    assert not seen[0][0, 3].any()
    assert not seen[0][1, 5:].any()  # padding


def test_padded_equals_unpadded() -> None:
    model = tiny().double()
    with torch.no_grad():
        alone, together = model(chains("ACDEF")), model(chains("ACDEF", "MKTAYIAKQRQ"))
    assert (together[0, :7] - alone[0]).abs().max() < 1e-10


def test_half_precision_frequencies_change_the_result() -> None:
    config = SequenceConfig(transformer=esm_transformer("tiny", half_precision=True))
    rounded, plain, tokens = SequenceModel(config).eval(), tiny(), chains("MKTAYIAKQRQ" * 20)
    plain.load_state_dict(rounded.state_dict())
    with torch.no_grad():
        difference = (rounded(tokens) - plain(tokens)).abs().max()
    assert 1e-6 < difference < 0.1


def test_masking_shares() -> None:
    tokens = chains("ACDEFGHIKLMNPQRSTVWY" * 500)
    corrupted, targets = mask_tokens(tokens, torch.Generator().manual_seed(0))
    chosen = targets != -100
    assert abs(chosen.float().mean() - 0.15) < 0.015
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(corrupted[~chosen], tokens[~chosen])
    assert abs((corrupted[chosen] == MASK).float().mean() - 0.8) < 0.04
    same = (corrupted[chosen] == tokens[chosen]).float().mean()
    assert abs(same - (0.1 + 0.1 / 20)) < 0.03  # a random amino acid may be the same one
    assert not chosen[0, 0]
    assert not chosen[0, -1]
    padded = chains("ACD", "ACDEFGH")
    assert not (mask_tokens(padded)[1] != -100)[0, 4:].any()


def test_loss_is_cross_entropy_of_the_logits() -> None:
    model = tiny()
    tokens, targets = mask_tokens(chains("ACDEFGHIKLMNPQRSTVWY" * 3))
    total, count = model.loss(tokens, targets)
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    assert torch.allclose(total, expected, rtol=1e-5)
    assert count == (targets != -100).sum()


def test_save_and_load(tmp_path: Path) -> None:
    model, tokens = tiny(), chains("MKTAY")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(SequenceModel.from_pretrained(tmp_path).eval()(tokens), model(tokens))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean '8M'"):
        PretrainTask(size="8MB")


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(120):
        letters = torch.randint(20, (20 + number % 37,), generator=generator)
        lines += [f">s{number}", "".join(alphabet.AMINO_ACIDS[i] for i in letters)]
    path = tmp_path / "set.fasta"
    path.write_text("\n".join([*lines, ">again", lines[1], ""]))
    return path


def test_batches_of_fasta(fasta: Path) -> None:
    data = SequenceData(str(fasta), val_fraction=0.1, context=30, batch_size=8)
    data.setup()
    counts = data.figures()
    assert counts["duplicates"] == 1
    assert counts["sequences_train"] + counts["sequences_val"] == 120
    loader = data.train_dataloader()
    epoch = list(loader)
    assert len(epoch) == len(loader) == counts["sequences_train"] // 8
    assert all(b["tokens"].shape[1] <= 32 for b in epoch)  # 30 residues, <cls> and <eos>
    again = list(data.train_dataloader())
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(epoch, again))
    other = SequenceData(str(fasta), val_fraction=0.1, context=30, batch_size=8, seed=1)
    other.setup()
    assert not all(torch.equal(a["targets"], b["targets"]) for a, b in zip(epoch, other.train_dataloader()))


def test_each_sequence_once_an_epoch(fasta: Path) -> None:
    data = SequenceData(str(fasta), val_fraction=0.1, context=100, batch_size=7)
    data.setup()
    seen = []
    for batch in data.train_dataloader():
        whole = torch.where(batch["targets"] == -100, batch["tokens"], batch["targets"])
        seen += [tuple(row[row != PAD].tolist()) for row in whole]
    assert len(seen) == len(set(seen)) == len(data.sides["train"]) // 7 * 7
    scored = sum(len(batch["tokens"]) for batch in data.val_dataloader())
    assert scored == len(data.sides["val"])


def test_too_few_sequences(tmp_path: Path) -> None:
    path = tmp_path / "one.fasta"
    path.write_text(">a\nACDEFGHIKL\n")
    with pytest.raises(UserError, match="fewer than one batch"):
        SequenceData(str(path)).setup()


def test_pretraining_learns_a_pattern(tmp_path: Path) -> None:
    """Sequences that repeat a period are predictable; a short run beats the entropy of letters."""
    from lightning.pytorch import Trainer

    generator = torch.Generator().manual_seed(1)
    lines = []
    for number in range(200):
        start = int(torch.randint(20, (), generator=generator))
        lines += [f">s{number}", "".join(alphabet.AMINO_ACIDS[(start + i + (number // 20)) % 20] for i in range(30))]
        lines[-1] = lines[-1][: 20 + number % 10]
    path = tmp_path / "set.fasta"
    path.write_text("\n".join(lines))
    data = SequenceData(str(path), val_fraction=0.1, batch_size=16)
    task = PretrainTask("tiny")
    trainer = Trainer(
        max_steps=120, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, data)
    metrics = trainer.validate(task, data, verbose=False)[0]
    assert metrics["val_loss"] < 2.5  # 3.0 is ln 20
    assert metrics["val_perplexity"] == pytest.approx(torch.tensor(metrics["val_loss"]).exp().item(), rel=1e-4)
