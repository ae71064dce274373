"""The sequence model: ESM-2's shape and its input rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from triune.protein.language.model import (
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
from triune.protein.read import alphabet


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
