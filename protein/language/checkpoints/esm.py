"""What ESM-2, ESM-1b and ESM-1v have in common, in whichever library: config, rotary frequencies, contact
regression.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ....core.checkpoints.weights import Rule, WeightMap, reshaped
from ....core.config import TransformerConfig
from ....core.errors import UserError
from ....core.rotary import RotaryConfig
from ..contact_head import ContactHead
from ..model import VOCABULARY, SequenceConfig, SequenceModel

OFFSET = 2
"""Rows of ESM-1b's position table before that of the first token: fairseq counts from padding_idx + 1."""

REGRESSION = "contact_head.regression."
"""Prefix of the names of the regression, a linear layer over layers x heads, the heads of a layer side by side."""

_CONTACTS = WeightMap(
    (Rule("weight", REGRESSION + "weight", reshaped(1, -1)), Rule("bias", REGRESSION + "bias", reshaped(1)))
)


def sequence_config(
    dim: int, depth: int, heads: int, ffn_dim: int, rotary: RotaryConfig | None, input_norm: bool = False,
    token_dropout: bool = True, eps: float = 1e-5, context: int = 1026, vocab_size: int = len(VOCABULARY),
) -> SequenceConfig:  # fmt: skip
    """A model of the ESM shape; with learned positions, as in ESM-1b, where `rotary` is None."""
    core = TransformerConfig(
        dim=dim, depth=depth, heads=heads, ffn_dim=ffn_dim, norm_eps=eps, context=context, input_norm=input_norm,
        position="rotary" if rotary else "learned", rotary=rotary or RotaryConfig(),
    )  # fmt: skip
    return SequenceConfig(core.resolved(), vocab_size, token_dropout, 0 if rotary else OFFSET)


def rotary_of(config: SequenceConfig) -> RotaryConfig | None:
    """The rotary settings that all layers share; None for learned positions (and, which no ESM has, for mixed
    layers).
    """
    core = config.transformer
    return core.rotary if core.position == "rotary" and isinstance(core.rotary, RotaryConfig) else None


def frequencies(base: float, head_dim: int) -> Tensor:
    """As both libraries compute them, in float32."""
    return 1.0 / (base ** (torch.arange(0, head_dim, 2).float() / head_dim))


def frequency_constants(config: SequenceConfig, name: str) -> dict[str, Tensor]:
    """The buffer of each layer, `{}` in `name` standing for its number."""
    rotary, core = rotary_of(config), config.transformer.resolved()
    if rotary is None:
        return {}
    rate = frequencies(rotary.base, core.head_dim or 0)
    rate = rate.half().float() if rotary.half_precision else rate
    return {name.format(layer): rate.clone() for layer in range(core.depth)}


def read_rotary(stored: list[Tensor], base: float, head_dim: int, name: str) -> RotaryConfig:
    """Whether the frequencies stored in a checkpoint are the exact ones, as they are when none is, or rounded to
    float16.

    Raises:
        UserError: they are neither.
    """
    exact = frequencies(base, head_dim)
    for half, expected in ((False, exact), (True, exact.half().float())):
        if all(s.shape == expected.shape and torch.allclose(s.float(), expected, rtol=1e-6, atol=0) for s in stored):
            return RotaryConfig(base=base, half_precision=half)
    raise UserError(
        f"The rotary frequencies (inv_freq) of '{name}' are neither those of base {base:g} nor these rounded to "
        "float16, so they were saved in another type or changed by training; give a checkpoint with one of these two."
    )


def check_tied(output: Tensor | None, embedding: Tensor | None, name: str) -> None:
    """Raises UserError for an output layer that is no copy of the embedding matrix."""
    if output is not None and embedding is not None and not torch.equal(output, embedding):
        raise UserError(
            f"'{name}' has an output layer of its own, but that of ESM-2 and ESM-1b is the embedding matrix; "
            "give a checkpoint that was trained with tie_word_embeddings true."
        )


def read_contact_head(config: SequenceConfig, tensors: Mapping[str, Tensor], name: str) -> ContactHead | None:
    """The contact head of a checkpoint; None when it has no regression, or zeros in its place."""
    found = {key: tensor for key, tensor in tensors.items() if key.startswith(REGRESSION)}
    if not found or not any(tensor.any() for tensor in found.values()):
        return None
    head = ContactHead(config.transformer.depth, config.transformer.heads)
    _CONTACTS.load(head, found, name)
    return head


def contact_tensors(model: SequenceModel, head: ContactHead | None) -> dict[str, Tensor]:
    """The regression under their names. Without a head it is zeros: both libraries insist on it."""
    core = model.config.transformer
    return _CONTACTS.to_theirs(ContactHead(core.depth, core.heads) if head is None else head)
