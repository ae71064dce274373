"""A masked language model of protein sequences in the shape of ESM-2 (Lin et al. 2023), on the core's Transformer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checkpoints.saved import SavedModel
from ...core.checks import check_keys, check_types
from ...core.config import TransformerConfig
from ...core.errors import UserError, nearest
from ...core.inputs import check_tokens
from ...core.layers import Norm
from ...core.losses import linear_cross_entropy
from ...core.masking import SHARE, hide_tokens
from ...core.rotary import RotaryConfig
from ...core.transformer import Transformer
from ..read import alphabet

VOCABULARY = (
    "<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>",
)  # fmt: skip
"""ESM-2's tokens in its order."""
CLS, PAD, EOS, MASK = (VOCABULARY.index(name) for name in ("<cls>", "<pad>", "<eos>", "<mask>"))

MASKED_SHARE = SHARE * 0.8
"""Share of the tokens that training replaces by <mask>."""

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 32, 2),
    "1M": (4, 128, 8),
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
    "15B": (48, 5120, 40),
}
"""Layers, dim and heads; from 8M on those of the released ESM-2."""

_FROM_ALPHABET = torch.tensor([VOCABULARY.index(letter) for letter in alphabet.AMINO_ACIDS + "X-"] + [MASK, PAD])

_ID = {letter: number for number, letter in enumerate(VOCABULARY) if len(letter) == 1 and letter != "."}
_ID["J"] = _ID["X"]


def esm_tokens(tokens: Tensor) -> Tensor:
    """Numbers of `alphabet` `[batch, residues]` -> ESM-2's `[batch, residues + 2]`, with <cls> and <eos> around each
    chain.
    """
    inner = F.pad(_FROM_ALPHABET.to(tokens.device)[tokens], (1, 1), value=PAD)
    inner[:, 0] = CLS
    last = 1 + (tokens != alphabet.PAD).sum(1)
    return inner.scatter(1, last[:, None], EOS)


def sequence_tokens(letters: str, name: str = "the sequence") -> Tensor:
    """The letters of a chain -> ESM-2's ids int64 `[1, residues + 2]`.

    Other than in `alphabet`, B, Z, U and O have ids of their own; J, which ESM-2 does not know, is read as X. Raises
    UserError for a character that is no residue letter.
    """
    try:
        ids = [_ID[letter] for letter in letters]
    except KeyError:
        wrong = [at for at, letter in enumerate(letters) if letter not in _ID]
        raise UserError(alphabet.unknown_letter(name, letters[wrong[0]], wrong[0] + 1, len(wrong))) from None
    return torch.tensor([[CLS, *ids, EOS]])


def esm_transformer(size: str, half_precision: bool = False) -> TransformerConfig:
    """The core's config for one of `SIZES`; `half_precision` rounds the rotary frequencies as the released weights
    need.
    """
    if size not in SIZES:
        raise UserError(f"size is {size!r}{nearest(size, SIZES)}, but must be one of {', '.join(SIZES)}.")
    depth, dim, heads = SIZES[size]
    rotary = RotaryConfig(half_precision=half_precision)
    return TransformerConfig(dim=dim, depth=depth, heads=heads, context=1026, rotary=rotary, norm_eps=1e-5, ffn="gelu")


@dataclass(frozen=True)
class SequenceConfig:
    """A masked language model around a `Transformer`.

    Args:
        transformer: the core; bidirectional.
        vocab_size: number of tokens.
        token_dropout: embeddings of <mask> are zero and the others are scaled so that the sum is that of training, also
            at inference (an unmasked sequence is scaled by 0.88).
        position_offset: rows of a learned position table before that of the first token (fairseq, so ESM-1b: 2).
    """

    transformer: TransformerConfig = field(default_factory=lambda: esm_transformer("8M"))
    vocab_size: int = len(VOCABULARY)
    token_dropout: bool = True
    position_offset: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.vocab_size < len(VOCABULARY):
            raise UserError(f"vocab_size is {self.vocab_size}, but must be at least {len(VOCABULARY)}.")
        if self.transformer.causal:
            raise UserError("transformer.causal is true, but a masked language model reads in both directions.")
        if self.position_offset and (self.position_offset < 0 or self.transformer.position != "learned"):
            raise UserError(
                f"position_offset is {self.position_offset} with {self.transformer.position} positions, but must be "
                "0, or positive with learned ones."
            )

    @property
    def residues(self) -> int:
        """The longest protein seen in training, or that a learned table has positions for."""
        return self.transformer.context - self.position_offset - 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SequenceConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        values = dict(check_keys(cls, values, "model"))
        values["transformer"] = TransformerConfig.from_dict(values.get("transformer", {}))
        return cls(**values)


class MaskedHead(nn.Module):
    """ESM-2's head: LayerNorm(gelu(dense(x))), then the embedding matrix and a bias."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        dim = config.transformer.dim
        self.dense = nn.Linear(dim, dim)
        self.norm = Norm(dim, config.transformer)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.dense.weight, std=dim**-0.5)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`, what the embedding matrix turns into logits."""
        return self.norm(F.gelu(self.dense(x)))


class SequenceModel(SavedModel, config=SequenceConfig):
    """ESM-2 token ids `[batch, tokens]` -> logits `[batch, tokens, vocab_size]`."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.transformer.dim)
        nn.init.normal_(self.embedding.weight, std=config.transformer.dim**-0.5)
        self.transformer = Transformer(config.transformer)
        self.head = MaskedHead(config)

    def hidden(self, tokens: Tensor, more: Tensor | None = None) -> Tensor:
        """Vectors after the last block and the final norm, `[batch, tokens, dim]`; `more` of this shape is added to the
        embedding.
        """
        check_tokens(tokens)
        real = tokens != PAD
        x = self.embedding(tokens)
        if self.config.token_dropout:
            masked = tokens == MASK
            share = masked.sum(1) / real.sum(1).clamp(min=1)
            x = x.masked_fill(masked[..., None], 0.0) * ((1 - MASKED_SHARE) / (1 - share).clamp(min=1e-6))[
                :, None, None
            ].to(x.dtype)
        if more is not None:
            x = x + more
        return self.transformer(x * real[..., None].to(x.dtype), valid=real, positions=self._positions(real))

    def _positions(self, real: Tensor) -> Tensor | None:
        """Rows of a table that does not begin with the first token, int `[batch, tokens]`; None where the core
        counts.
        """
        offset = self.config.position_offset
        if not offset:
            return None
        if real.shape[1] > (longest := self.config.transformer.context - offset):
            raise UserError(
                f"A sequence has {real.shape[1] - 2} residues, but this model has learned positions for "
                f"{longest - 2}; give shorter sequences, or a model with rotary positions such as ESM-2."
            )
        return real.cumsum(1) * real + (offset - 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.head(self.hidden(tokens)), self.embedding.weight, self.head.bias)

    def loss(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats and the number of targets that count; targets `[batch, tokens]`, -100
        ignored.
        """
        return linear_cross_entropy(self.head(self.hidden(tokens)), self.embedding.weight, targets, self.head.bias)


_RESIDUES = VOCABULARY.index("L"), VOCABULARY.index(".")
"""The first residue letter, and the first token behind them; the 20 amino acids come first."""


def mask_tokens(tokens: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Hides residues as `hide_tokens` does, with one of the 20 amino acids as the other token.

    Returns the corrupted tokens and the targets, -100 where nothing is to be predicted; <cls>, <eos> and <pad> never
    are.
    """
    first, last = _RESIDUES
    amino = torch.arange(first, first + len(alphabet.AMINO_ACIDS))
    return hide_tokens(tokens, (tokens >= first) & (tokens < last), MASK, amino, generator)
