"""What mixers are told of a batch."""

from __future__ import annotations

import torch

from triune.core.config import TransformerConfig
from triune.core.masks import AttentionMask
from triune.core.mixers.attention import Attention
from triune.core.mixers.base import Call, Weighted


def call(mask: AttentionMask, tokens: int, keys: int) -> Call:
    return Call(mask, torch.arange(keys - tokens, keys), tokens, keys, torch.float32, torch.device("cpu"))


def test_segments_say_what_is_real_and_where_a_document_begins() -> None:
    valid = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [4, 4, 4, 2, 2, 2, 2, 4]])
    begins = torch.tensor([[0, 0, 1, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0, 0, 1]]).bool()
    for tokens in (8, 5, 1):
        found = call(AttentionMask(valid=valid, documents=documents), tokens, 8).segments()
        assert torch.equal(found[0], valid[:, -tokens:])
        assert torch.equal(found[1], begins[:, -tokens:])


def test_without_masks_everything_is_real_and_one_document() -> None:
    real, begins = call(AttentionMask(causal=True), 3, 3).segments()
    assert real.tolist() == [[True, True, True]]
    assert begins.tolist() == [[True, False, False]]
    assert call(AttentionMask(causal=True), 2, 9).segments()[1].tolist() == [[False, False]]


def test_layers_share_what_equal_keys_prepare() -> None:
    config = TransformerConfig(dim=8, heads=2, depth=3, window=[2, None, 2], causal=True)
    keys = [Attention(config, layer).key for layer in range(3)]
    assert keys[0] == keys[2] != keys[1]
    assert hash(keys[0]) == hash(keys[2])
    assert isinstance(Attention(config, 0), Weighted)
