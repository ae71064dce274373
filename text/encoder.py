"""A text encoder: token and segment embeddings -> core -> vectors, and the scores of masked tokens (BERT)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checkpoints.saved import SavedModel
from ..core.checks import check_keys, check_types
from ..core.config import TransformerConfig
from ..core.errors import UserError
from ..core.inputs import check_tokens
from ..core.layers import Norm, activation
from ..core.losses import linear_cross_entropy
from ..core.transformer import Transformer

BERT = TransformerConfig(placement="post", position="learned", input_norm=True, context=512, norm_eps=1e-12)
"""The encoder of Devlin et al. 2018, with the norms where 2017 put them."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """A text encoder around a `Transformer`.

    Args:
        vocab_size: number of token ids.
        transformer: the core, not `causal`.
        segments: kinds of token (first and second text: 2), each with a vector that is added; 0 for none.
        masked_head: logits of masked tokens (Devlin et al. 2018, section 3.1), with the embedding as the last matrix.
        pooler: a vector for the whole text, tanh of a linear map of the first token.
        dense_bias: the dense layer of the masked head has a bias.
        logit_bias: the logits of the masked head have a bias.
    """

    vocab_size: int
    transformer: TransformerConfig = field(default_factory=lambda: BERT)
    segments: int = 2
    masked_head: bool = False
    pooler: bool = False
    dense_bias: bool = True
    logit_bias: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if self.vocab_size < 1:
            raise UserError(f"vocab_size is {self.vocab_size}, but must be a positive integer.")
        if self.segments < 0:
            raise UserError(f"segments is {self.segments}, but must be at least 0.")
        if self.transformer.causal:
            raise UserError("transformer.causal is true, but an encoder sees both sides; use LanguageModel instead.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> TextEncoderConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        values = dict(check_keys(cls, values, "model"))
        values["transformer"] = TransformerConfig.from_dict(values.get("transformer", {}))
        return cls(**values)


class MaskedHead(nn.Module):
    """norm(act(dense(x)))·embeddingᵀ + bias. `[..., dim]` and `[vocab_size, dim]` -> `[..., vocab_size]`."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        dim = config.transformer.dim
        self.kind = next((kind for kind in config.transformer.ffns if kind != "none"), "gelu")
        self.dense = nn.Linear(dim, dim, bias=config.dense_bias)
        self.norm = Norm(dim, config.transformer)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.logit_bias else None

    def vectors(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`, what the embedding turns into logits."""
        return self.norm(activation(self.kind, self.dense(x)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        logits = self.vectors(x) @ embedding.T
        return logits if self.bias is None else logits + self.bias


class TextEncoder(SavedModel, config=TextEncoderConfig):
    """Token ids `[batch, tokens]` -> logits `[batch, tokens, vocab_size]`, or vectors without a `masked_head`."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        dim = config.transformer.dim
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.segments = nn.Embedding(config.segments, dim) if config.segments else None
        for table in (self.embedding, self.segments):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        self.transformer = Transformer(config.transformer)
        self.config = config = dataclasses.replace(config, transformer=self.transformer.config)
        self.pooler = nn.Linear(dim, dim) if config.pooler else None
        self.head = MaskedHead(config) if config.masked_head else None

    def hidden(
        self, tokens: Tensor, segments: Tensor | None = None, valid: Tensor | None = None,
        global_tokens: Tensor | None = None, documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Vectors of the tokens, `[batch, tokens, dim]`.

        Args:
            tokens: int `[batch, tokens]`.
            segments: int `[batch, tokens]`, the segment of each token; all 0 by default.
            valid: bool `[batch, tokens]`, True for real tokens.
            global_tokens: bool `[batch, tokens]`, tokens that see all, and that all see, beside a window (Longformer).
            documents: int `[batch, tokens]`, a token sees its own document only.

        Raises:
            UserError: tokens or segments of other shapes or types; segments for a model that has none.
        """
        check_tokens(tokens)
        if segments is not None:
            check_tokens(segments, "segments", tokens)
            if self.segments is None:
                raise UserError("segments were given, but this model has none (segments is 0); leave them out.")
        x = self.embedding(tokens)
        if self.segments is not None:
            x = x + self.segments(torch.zeros_like(tokens) if segments is None else segments)
        return self.transformer(x, valid=valid, global_tokens=global_tokens, documents=documents)

    def forward(
        self, tokens: Tensor, segments: Tensor | None = None, valid: Tensor | None = None,
        global_tokens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        hidden = self.hidden(tokens, segments, valid, global_tokens)
        return hidden if self.head is None else self.head(hidden, self.embedding.weight)

    def loss(
        self, tokens: Tensor, targets: Tensor, places: Tensor, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats of the hidden tokens, and their number.

        Args:
            tokens: int `[batch, tokens]`, some of which are hidden.
            targets: int `[places]`, what stood there; -100 for an entry that only fills up.
            places: int `[places]`, where: batch · tokens + token.
            documents: as in `hidden`.

        Raises:
            UserError: there is no masked head.
        """
        if self.head is None:
            raise UserError("This encoder has no head for masked tokens, so that nothing can be guessed; take another.")
        chosen = self.hidden(tokens, documents=documents).flatten(0, 1)[places]
        return linear_cross_entropy(self.head.vectors(chosen), self.embedding.weight, targets, self.head.bias)

    def pool(self, hidden: Tensor) -> Tensor:
        """The vector of each text: `[batch, tokens, dim]` -> `[batch, dim]`. Raises UserError without a pooler."""
        if self.pooler is None:
            raise UserError("This encoder has no pooler; take the mean of the vectors of the real tokens.")
        return torch.tanh(self.pooler(hidden[:, 0]))
