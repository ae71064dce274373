"""A language model: token embedding -> core -> logits over the vocabulary."""

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
from ..core.losses import linear_cross_entropy
from ..core.mixers.cache import KeyValueCache
from ..core.transformer import Transformer


@dataclass(frozen=True)
class LanguageModelConfig:
    """A language model around a `Transformer`.

    Args:
        vocab_size: number of token ids.
        transformer: the core; `causal` for a generator.
        tied: the head is the embedding matrix (Press and Wolf 2017).
        head_bias: a bias on the logits.
        embedding_std: standard deviation the embedding starts with.
        embedding_dim: width of the embedding and the head, where linear layers stand between them and the core (OPT of
            350M); None means that of the core.
        embedding_scale: the embedding is multiplied by sqrt(dim) (2017; Gemma) when true, or by this number (Granite).
        logit_scale: factor on the vectors before the head, and so on the logits without their bias (Cohere, Granite).
        logit_softcap: logits become cap·tanh(logits / cap) (Gemma 2).
    """

    vocab_size: int
    transformer: TransformerConfig = field(default_factory=lambda: TransformerConfig(causal=True))
    tied: bool = True
    head_bias: bool = False
    embedding_std: float = 0.02
    embedding_dim: int | None = None
    embedding_scale: bool | float = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.embedding_scale == 1 and self.embedding_scale is not True:
            object.__setattr__(self, "embedding_scale", False)  # for Python, 1.0 equals True
        if self.vocab_size < 1:
            raise UserError(f"vocab_size is {self.vocab_size}, but must be a positive integer.")
        for name in ("embedding_dim", "embedding_std", "embedding_scale", "logit_scale", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and value is not False and not value > 0:
                raise UserError(f"{name} is {value}, but must be positive.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> LanguageModelConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        values = dict(check_keys(cls, values, "model"))
        values["transformer"] = TransformerConfig.from_dict(values.get("transformer", {}))
        return cls(**values)


class LanguageModel(SavedModel, config=LanguageModelConfig):
    """Token ids `[batch, tokens]` -> logits `[batch, tokens, vocab_size]`."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        core, dim = config.transformer.dim, config.embedding_dim or config.transformer.dim
        self.embedding = nn.Embedding(config.vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std)
        self.widen = nn.Linear(dim, core, bias=False) if dim != core else None
        self.transformer = Transformer(config.transformer)
        self.narrow = nn.Linear(core, dim, bias=False) if dim != core else None
        self.config = dataclasses.replace(config, transformer=self.transformer.config)
        self.head = nn.Linear(dim, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.embedding.weight
        else:
            # At zero the model starts by predicting all tokens alike, at a loss of ln(vocab_size).
            nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def hidden(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        valid: Tensor | None = None,
        cache: KeyValueCache | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Vectors before the head, `[batch, tokens, dim]`; arguments as in `Transformer.forward`."""
        x = self.embed(tokens)
        return self.leave(self.transformer(x, documents=documents, valid=valid, cache=cache, prefix=prefix))

    def embed(self, tokens: Tensor) -> Tensor:
        """What the core reads: `[batch, tokens]` -> `[batch, tokens, dim]`."""
        check_tokens(tokens)
        x, scale = self.embedding(tokens), self.config.embedding_scale
        if scale is True:  # rounded to the type of the weights, as Gemma was trained
            x = x * torch.full((), self.config.transformer.dim**0.5, dtype=x.dtype, device=x.device)
        elif scale is not False:
            x = x * scale
        return x if self.widen is None else self.widen(x)

    def leave(self, x: Tensor) -> Tensor:
        """What the head reads, from what the core returns: `[batch, tokens, dim]` -> `[batch, tokens, width]`."""
        if self.narrow is not None:
            x = self.narrow(x)
        factor = self.config.logit_scale
        return x if factor == 1 else x * factor

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        valid: Tensor | None = None,
        cache: KeyValueCache | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        return self.logits(self.hidden(tokens, documents, valid, cache, prefix))

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., vocab_size]`."""
        logits, cap = self.head(hidden), self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats and the number of targets that count; targets `[batch, tokens]`, -100
        ignored.
        """
        hidden = self.hidden(tokens, documents)
        return linear_cross_entropy(hidden, self.head.weight, targets, self.head.bias, self.config.logit_softcap)
