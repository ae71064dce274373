"""Training an encoder-decoder on pairs of texts: cross-entropy of the target, judged by tokens and by whole targets."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.checkpoints.native import load_state
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.initialise import uninitialised
from ...core.losses import IGNORED
from ...core.training.module import Loss, TrainingModule
from ...core.training.run.folder import RunFolder
from .data import SHOWN, PairData
from .decode import greedy
from .model import EncoderDecoder, EncoderDecoderConfig

SHAPE = TransformerConfig(
    dim=128, depth=2, heads=4, norm="rmsnorm", ffn="swiglu", bias=False, init_std=None, init_residual="zero"
)
"""Encoder and decoder, where nothing else is asked for; `position` rotary, as elsewhere. The shape of 2017 is
placement post, position sinusoidal, ffn relu and norm layernorm."""
DECODED = 500
"""Pairs that are written out with a cache after an evaluation."""
WRONG = 3
"""Mistakes that are shown."""


class PairTask(TrainingModule):
    """An encoder-decoder (Vaswani et al. 2017) that learns to turn a source into its target.

    Args:
        encoder: the core that reads the source; `context` is taken from --data.longest, `causal` is off.
        decoder: the core that writes the target; `context` is taken from --data.longest, `causal` and
            `cross_attention` are on.
        shared: encoder and decoder read one embedding (2017), else one each.
        tied: the head is the decoder's embedding (2017).
        embedding_std: standard deviation the embeddings start with; 0.02 suits a tied head.
        embedding_scale: the embeddings are multiplied by sqrt(dim) (2017).
        label_smoothing: the part of each target that goes to all tokens alike in training; 2017 took 0.1. What is
            reported of validation is without.
        **training: optimizer, schedule, ema and compile; see `TrainingModule`.
    """

    unit = "tok"
    loss_unit = "nats per token"

    def __init__(
        self,
        encoder: TransformerConfig = SHAPE,
        decoder: TransformerConfig = SHAPE,
        shared: bool = True,
        tied: bool = False,
        embedding_std: float = 1.0,
        embedding_scale: bool = False,
        label_smoothing: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"model.label_smoothing is {label_smoothing}, but must be at least 0 and below 1; 2017 took 0.1."
            )
        for name, config in (("encoder", encoder), ("decoder", decoder)):
            if name == "encoder" and config.cross_attention:
                raise UserError(
                    "model.encoder.cross_attention is true, but only the decoder has a memory; leave it out."
                )
            if name == "encoder" and config.causal:
                raise UserError("model.encoder.causal is true, but an encoder sees both sides; leave it out.")
        self.encoder_config = encoder
        self.decoder_config = replace(decoder, causal=True, cross_attention=True)
        if encoder.dim != decoder.dim:
            raise UserError(
                f"model.decoder.dim is {decoder.dim}, but must be model.encoder.dim, {encoder.dim}: the decoder's "
                "cross-attention reads what the encoder returns; make them equal."
            )
        self.options = {"shared": shared, "tied": tied, "embedding_std": embedding_std}
        self.options["embedding_scale"] = embedding_scale
        self.label_smoothing = label_smoothing
        self._seen: tuple[Tensor, Tensor] | None = None  # of the last batch: right tokens, and which count
        self._counts: Tensor | None = None  # right tokens, tokens, right targets, targets
        self.wrong: list[tuple[str, str, str]] = []  # source, target, what was written

    def build_model(self, data: Any) -> EncoderDecoder:
        """A new model for the vocabulary and the lengths of the data."""
        if not isinstance(data, PairData):
            raise UserError("PairTask needs PairData: its vocabulary decides the size of the embedding.")
        encoder = replace(self.encoder_config, context=data.context)
        decoder = replace(self.decoder_config, context=data.context)
        return EncoderDecoder(EncoderDecoderConfig(data.vocab_size, data.end, encoder, decoder, **self.options))

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """Cross-entropy in nats over the tokens of the targets. Batch as `PairData` makes it."""
        assert isinstance(self.model, EncoderDecoder)
        smoothing = self.label_smoothing if self.training else 0.0
        total, count, logits = self.model.loss(
            batch["source"], batch["source_valid"], batch["tokens"], batch["targets"], smoothing
        )
        if not self.training:
            counted = batch["targets"] != IGNORED
            self._seen = (logits.argmax(-1) == batch["targets"]) & counted, counted
        return Loss(total, count)

    def slots(self, batch: dict[str, Tensor]) -> int:
        return batch["tokens"].numel() + batch["source"].numel()

    def update_metrics(self, batch: dict[str, Tensor]) -> None:
        """Counts right tokens and right targets.

        A target is right when each of its tokens is the likeliest behind the right ones before it, which is when
        greedy decoding writes this target.
        """
        assert self._seen is not None
        right, counted = self._seen
        real = counted.any(1)
        whole = ((right == counted).all(1) & real).sum()
        sums = torch.stack((right.sum(), counted.sum(), whole, real.sum())).double()
        self._counts = sums if self._counts is None else self._counts + sums

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """Parts of the tokens and of the whole targets that are right."""
        if self._counts is None:
            return {}
        sums, self._counts = self._counts, None
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return {"token_accuracy": sums[0] / sums[1], "exact_match": sums[2] / sums[3]}

    finalise_reads_weights = True

    def finalise(self, run: RunFolder | None) -> dict[str, Any]:
        """Writes the first targets of the side that was scored with a cache, token by token, and compares."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(self.model, EncoderDecoder) and isinstance(data, PairData)
        side = data.side("test" if self.trainer.state.fn == "test" else "val")
        count = min(DECODED, len(side))
        sources = [source.tolist() for source in side.sources[:count]]
        # A model of its own, because this process cannot run one whose weights are cut over several.
        state = self.export_state()
        with uninitialised():
            model = EncoderDecoder(self.model.config).to(next(iter(state.values())).dtype)
        load_state(model, state, "the trained model")
        model = model.eval().to(self.trainer.strategy.root_device)
        found = [
            text
            for at in range(0, count, data.batch_size)
            for text in greedy(model, sources[at : at + data.batch_size], data.longest)
        ]
        wanted = [target.tolist() for target in side.targets[:count]]
        self.wrong = [
            (pair.source, pair.target, data.tokenizer.decode(text))
            for pair, text, target in zip(side.pairs, found, wanted)
            if text != target
        ]
        return {"decoded": count, "decoded_exact_match": 1 - len(self.wrong) / count}

    def table(self, metrics: dict[str, Any]) -> str:
        """The metrics, and a few of the mistakes."""
        shown = {name: value for name, value in metrics.items() if name != "decoded"}
        lines = [super().table(shown)]
        if "decoded" in metrics:
            lines[0] += f"  ({metrics['decoded']:,} targets written token by token)"
        for source, target, found in self.wrong[:WRONG]:
            lines.append(f"  wrong: {source[:SHOWN]!r} -> {found[:SHOWN]!r}, not {target[:SHOWN]!r}")
        return "\n".join(lines)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[str]:
        """What is written for each source of a batch."""
        assert isinstance(self.model, EncoderDecoder)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = zip(batch["source"], batch["source_valid"], batch["targets"], strict=True)
        sources = [row[valid].tolist() for row, valid, targets in rows if bool((targets != IGNORED).any())]
        return [data.tokenizer.decode(text) for text in greedy(self.model, sources, data.longest)]

    # --- what the command line shows and writes
    # ------------------------------------------------------------------------

    def describe(self) -> str:
        """One line about the model."""

        def shape(c: TransformerConfig) -> str:
            return f"{c.depth} layers x {c.dim}, {c.heads} heads, {c.norm}, {c.ffn_words()}, {c.position} positions"

        encoder, decoder = shape(self.encoder_config), shape(self.decoder_config)
        return f"encoder and decoder of {encoder}" if encoder == decoder else f"encoder {encoder}; decoder {decoder}"

    def export(self, folder: Path) -> None:
        """Writes the model and its tokenizer, for `triune text generate`."""
        assert isinstance(self.model, EncoderDecoder)
        self.trainer.datamodule.tokenizer.save(folder)  # type: ignore[attr-defined]
        self.model.save_pretrained(folder, self.export_state())

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PairData)
        name, source = shlex.quote(str(run)), shlex.quote(data.side("val").pairs[0].source[:SHOWN])
        return [f"triune text generate {name} --prompt {source}", f"triune text test {name}"]
