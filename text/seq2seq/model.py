"""The encoder-decoder of Vaswani et al. 2017: an encoder reads the source, a decoder writes the target."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checkpoints.saved import SavedModel
from ...core.checks import check, check_keys, check_types
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.losses import IGNORED
from ...core.mixers.cache import KeyValueCache
from ...core.transformer import Transformer


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Two transformers around one vocabulary.

    Args:
        vocab_size: number of token ids, of sources and targets alike.
        end: the token that ends a target, and with which the decoder begins.
        encoder: reads the source in both directions.
        decoder: writes the target; `causal`, with `cross_attention` to what the encoder returns.
        shared: encoder and decoder read one embedding (2017, section 3.4), else one each.
        tied: the head is the decoder's embedding.
        embedding_std: standard deviation the embeddings start with.
        embedding_scale: the embeddings are multiplied by sqrt(dim) (2017, section 3.4).
    """

    vocab_size: int
    end: int
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=lambda: TransformerConfig(causal=True, cross_attention=True))
    shared: bool = True
    tied: bool = False
    embedding_std: float = 1.0
    embedding_scale: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check(self.vocab_size > 0, "vocab_size", self.vocab_size, "a positive integer")
        check(0 <= self.end < self.vocab_size, "end", self.end, f"a token of the {self.vocab_size}")
        check(self.embedding_std > 0, "embedding_std", self.embedding_std, "positive")
        check(not self.encoder.causal, "encoder.causal", True, "false, because an encoder sees both sides")
        check(self.decoder.causal, "decoder.causal", False, "true, because a decoder writes token by token")
        check(not self.encoder.cross_attention, "encoder.cross_attention", True, "false; only the decoder has a memory")
        check(self.decoder.cross_attention, "decoder.cross_attention", False, "true, to read what the encoder returns")
        if self.encoder.dim != self.decoder.dim:
            raise UserError(
                f"decoder.dim is {self.decoder.dim}, but must be encoder.dim, {self.encoder.dim}: the decoder's "
                "cross-attention reads what the encoder returns; make them equal."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> EncoderDecoderConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        values = dict(check_keys(cls, values, "model"))
        for name in ("encoder", "decoder"):
            if name in values:
                values[name] = TransformerConfig.from_dict(values[name])
        return cls(**values)


class EncoderDecoder(SavedModel, config=EncoderDecoderConfig):
    """Source ids `[batch, source tokens]` and target ids `[batch, tokens]` -> logits `[batch, tokens, vocab_size]`."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        dim = config.encoder.dim
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.target_embedding = self.embedding if config.shared else nn.Embedding(config.vocab_size, dim)
        for table in (self.embedding, self.target_embedding):
            nn.init.normal_(table.weight, std=config.embedding_std)
        self.encoder, self.decoder = Transformer(config.encoder), Transformer(config.decoder)
        self.config = dataclasses.replace(config, encoder=self.encoder.config, decoder=self.decoder.config)
        self.head = nn.Linear(dim, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.target_embedding.weight
        else:
            nn.init.zeros_(self.head.weight)

    def encode(self, source: Tensor, valid: Tensor | None = None) -> Tensor:
        """What the decoder reads, `[batch, source tokens, dim]`; `valid` is True for real tokens."""
        return self.encoder(self._embed(self.embedding, source), valid=valid)

    def decode(
        self, tokens: Tensor, memory: Tensor, memory_valid: Tensor | None = None, cache: KeyValueCache | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Vectors before the head, `[batch, tokens, dim]`; behind a cache `tokens` are the new ones alone, and the keys
        and values of the memory are those of the first call.
        """
        x = self._embed(self.target_embedding, tokens)
        return self.decoder(x, valid=valid, memory=memory, memory_valid=memory_valid, cache=cache)

    def forward(self, source: Tensor, tokens: Tensor, source_valid: Tensor | None = None) -> Tensor:
        return self.head(self.decode(tokens, self.encode(source, source_valid), source_valid))

    def loss(
        self, source: Tensor, source_valid: Tensor, tokens: Tensor, targets: Tensor, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Summed cross-entropy in nats, the number of targets that count, and the logits.

        Args:
            source: `[batch, source tokens]`.
            source_valid: bool `[batch, source tokens]`, True for real tokens.
            tokens: `[batch, tokens]`: `end`, then the target.
            targets: `[batch, tokens]`: the target, then `end`; -100 ignored.
            smoothing: the part of each target that goes to all tokens alike (label smoothing, Szegedy et al. 2016).
        """
        logits = self(source, tokens, source_valid).float()
        total = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )
        return total, (targets != IGNORED).sum(), logits

    def _embed(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        x = table(tokens)
        return x * self.config.encoder.dim**0.5 if self.config.embedding_scale else x
