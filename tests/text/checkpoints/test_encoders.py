"""Encoders of long texts: windows with global tokens, and blocks, as transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from triune.bench.text_originals import LIMIT, ids, original, outputs, padded, there_and_back
from triune.core.errors import UserError
from triune.core.lens.record import record_attention
from triune.text.checkpoints.pretrained import load

transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SHAPE = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64}  # fmt: skip
ROBERTA = SHAPE | {"max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "longformer": ("LongformerForMaskedLM", ROBERTA | {"attention_window": 8}),
    "longformer, bare, a window for each layer": ("LongformerModel", ROBERTA | {"attention_window": [4, 8]}),
    "bigbird, full attention": (
        "BigBirdForMaskedLM", SHAPE | {"attention_type": "original_full", "type_vocab_size": 3},
    ),
    "bigbird": ("BigBirdForMaskedLM", SHAPE | {"block_size": 4, "num_random_blocks": 1, "use_bias": False}),
    "bigbird, bare, two random blocks": ("BigBirdModel", SHAPE | {"block_size": 1, "num_random_blocks": 2}),
}  # fmt: skip


def blocked(theirs: Any) -> Any:
    """A short text turns the original to full attention for good, so it is turned back before each."""
    if theirs.config.model_type == "big_bird":
        getattr(theirs, "bert", theirs).set_attention_type(theirs.config.attention_type)
    return theirs


@pytest.mark.parametrize("name", CASES)
def test_outputs_padding_and_the_way_back(name: str, tmp_path: Path) -> None:
    kind, options = CASES[name]
    theirs = original(kind, options)
    theirs.save_pretrained(tmp_path / "theirs")
    found = load(str(tmp_path / "theirs"))
    assert outputs(found.model, theirs) < LIMIT
    alone, together = padded(found.model, theirs, False, (60, 41, 33, 5), blocked)
    assert alone < LIMIT
    # In a padded batch the original takes blocks of padding for the last ones, and gives a text other outputs.
    assert (together < LIMIT) == ("bigbird" not in name or "full" in name)
    assert there_and_back(found, theirs, tmp_path / "back") < LIMIT


@torch.no_grad()
def test_global_tokens_of_longformer(tmp_path: Path) -> None:
    """They read with projections of their own; which tokens are global is an input."""
    theirs = original(*CASES["longformer"])
    theirs.save_pretrained(tmp_path)
    ours, tokens = load(str(tmp_path)).model, ids(2, 32)
    real, hubs = torch.arange(32) < torch.tensor([[32], [21]]), torch.zeros(2, 32, dtype=torch.bool)
    hubs[0, [0, 17]] = hubs[1, 3] = True
    tokens = tokens.masked_fill(~real, 1)
    expected = theirs(tokens, attention_mask=real.long(), global_attention_mask=hubs.long())[0]
    assert (ours(tokens, valid=real, global_tokens=hubs) - expected)[real].abs().max() < LIMIT
    assert (ours(tokens, valid=real) - expected)[real].abs().max() > 0.1
    with record_attention(ours, lambda name, weights: None):
        ours(tokens, valid=real)
        with pytest.raises(UserError, match="The lens sees one attention in a layer, but with global_projections"):
            ours(tokens, valid=real, global_tokens=hubs)


@torch.no_grad()
def test_bigbird_at_every_length(tmp_path: Path) -> None:
    """Full attention up to (5 + 2·random) blocks, 28 tokens here; the last block may be short."""
    theirs = original(*CASES["bigbird"])
    theirs.save_pretrained(tmp_path)
    ours = load(str(tmp_path)).model
    for tokens in (3, 28, 29, 30, 33, 61, 64):
        x = ids(1, tokens)
        assert (ours(x) - blocked(theirs)(x)[0]).abs().max() < LIMIT, tokens


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("longformer", {"attention_window": 7}, r"has attention_window = 7, but must have one even positive number"),
        ("longformer", {"attention_window": [8]}, r"has attention_window = \[8\], but must have one even positive"),
        ("bigbird", {"attention_type": "linear"}, "has attention_type = 'linear', which the core does not have"),
        ("bigbird", {"rescale_embeddings": True}, "has rescale_embeddings = True, which the core does not have"),
        ("bigbird", {"architectures": ["BigBirdForCausalLM"]}, "is a BigBirdForCausalLM, whose head is not read"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name: str, values: dict[str, Any], message: str) -> None:
    from triune.bench.parity_keys import ours_of

    kind, options = CASES[name]
    config = getattr(transformers, kind).config_class(**{"vocab_size": 67} | options).to_dict()
    with pytest.raises(UserError, match=message):
        ours_of(config | {"architectures": [kind]} | values)
