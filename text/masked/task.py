"""Training a text encoder to guess hidden tokens."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.checkpoints.family import Pretrained
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.initialise import uninitialised
from ...core.training.module import Loss, TrainingModule
from ...core.training.run.folder import RunFolder
from ...core.training.start import Start, adapted_transformer, longer, rebuilt
from ..encoder import TextEncoder, TextEncoderConfig
from ..task import adopted
from ..tokenizer import Tokenizer
from .data import MaskedText

SHAPE = TransformerConfig(
    dim=256, depth=4, heads=4, input_norm=True, first_norm=False, norm_bias=False, ffn="geglu", bias=False,
    init_std=None, init_residual="zero",
)  # fmt: skip
"""The shape of ModernBERT (Warner et al. 2024) with full attention, so that transformers runs what is trained here."""


class MaskedTextTask(TrainingModule):
    """A text encoder that guesses hidden tokens (Devlin et al. 2019), in the shape of ModernBERT.

    The run's model is an encoder with its tokenizer, for `triune text fit --data.table … --model.pretrained RUN`,
    `triune embed`, and `triune convert --to hf` (`ModernBertForMaskedLM`; with position learned, placement post,
    input_norm, bias and ffn gelu `BertForMaskedLM`).

    Args:
        transformer: the core, not causal. `context` is taken from --data.context.
        segments: kinds of tokens, each with a vector that is added (BERT: 2); all tokens are of the first.
        pretrained: a checkpoint with a head for masked tokens to go on with: a folder or hub name of Hugging Face, a
            run or model folder. Its config and its tokenizer are used; of `transformer` only dropout and stochastic
            depth may then be chosen.
        **training: optimizer, schedule, ema, compile, lora and freeze; see `TrainingModule`.
    """

    unit = "hidden tok"
    loss_unit = "nats per hidden token"

    def __init__(self, transformer: TransformerConfig = SHAPE, segments: int = 0, **training: Any) -> None:
        super().__init__(**training)
        if transformer.causal:
            raise UserError("model.transformer.causal is true, but hidden tokens are guessed from both sides.")
        self.transformer_config, self.segments = transformer, segments

    def build_model(self, data: Any) -> TextEncoder:
        """A new model for the vocabulary and the context of the data."""
        if not isinstance(data, MaskedText):
            raise UserError("MaskedTextTask needs MaskedText, whose batches have hidden tokens.")
        transformer = replace(self.transformer_config, context=data.context)
        plain = transformer.placement == "post"  # BERT's head has biases, ModernBERT's dense layer none
        return TextEncoder(
            TextEncoderConfig(data.vocab_size, transformer, self.segments, masked_head=True, dense_bias=plain)
        )

    # --- fine-tuning -------------------------------------------------------------------------------------------------

    def load_pretrained(self, source: str) -> Pretrained:
        from ..checkpoints.pretrained import load

        return load(source)

    def read_start(self, folder: Path) -> Start:
        settings = TextEncoder.read_settings(folder)
        with uninitialised():
            model = TextEncoder.from_settings(settings)
        return Start.read(settings, model, Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None)

    def adopt(self, start: Start, data: Any) -> str:
        """The data are tokenised as the checkpoint's text was."""
        if not isinstance(data, MaskedText):
            return ""
        data.adopt(start.companion, start.source)
        return adopted(start, data.context)

    def adapt_model(self, start: Start, data: Any) -> TextEncoder:
        """The checkpoint's model as it is, with the dropout that was asked for."""
        model, source = start.model, start.source
        if not isinstance(model, TextEncoder) or model.head is None:
            what = "has no head for masked tokens" if isinstance(model, TextEncoder) else "is no encoder"
            raise UserError(
                f"'{source}' {what}, so that it cannot guess hidden tokens; take BERT, ModernBERT or a run."
            )
        config = model.config
        if isinstance(data, MaskedText):
            if data.vocab_size > config.vocab_size:
                raise UserError(
                    f"The tokenizer has {data.vocab_size:,} tokens, but '{source}' knows {config.vocab_size:,}; they "
                    "do not belong together."
                )
            config = replace(config, transformer=longer(config.transformer, data.context, source))
        core = adapted_transformer(self.transformer_config, SHAPE, config.transformer, source)
        self.transformer_config = core
        return model if core == model.config.transformer else rebuilt(model, replace(config, transformer=core))

    # --- training ----------------------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """Cross-entropy in nats over the hidden tokens. Batch as `MaskedText` makes it."""
        assert isinstance(self.model, TextEncoder)
        return Loss(*self.model.loss(batch["tokens"], batch["targets"], batch["places"], batch["documents"]))

    def slots(self, batch: dict[str, Tensor]) -> int:
        return batch["places"].numel()

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Any:
        raise UserError("A pretraining has no answers to write; `triune embed --run RUN` writes vectors of texts.")

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """exp(loss): among how many tokens the model hesitates."""
        if self.evaluated is None:
            return {}
        return {"perplexity": (self.evaluated.total / self.evaluated.count).exp()}

    # --- what the command line shows and writes ----------------------------------------------------------------------

    def describe(self) -> str:
        """One line about the model."""
        from ..checkpoints.pretrained import lacking

        c = self.transformer_config
        shape = f"{c.depth} layers x {c.dim}, {c.heads} heads, {c.norm}, {c.ffn_words()}, {c.position} positions"
        missing = lacking(self.model.config) if isinstance(self.model, TextEncoder) else []
        return f"{shape} (no counterpart at Hugging Face: {', '.join(missing)})" if missing else shape

    def export(self, folder: Path) -> None:
        """Writes the encoder and its tokenizer."""
        assert isinstance(self.model, TextEncoder)
        self.trainer.datamodule.tokenizer.save(folder)  # type: ignore[attr-defined]
        self.model.save_pretrained(folder, self.export_state())

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        name = shlex.quote(str(run))
        return [
            f"triune text fit --data.table FILE --data.input COLUMN --data.target COLUMN --model.pretrained {name}",
            f"triune embed TEXT --run {name} --out vectors.parquet",
            f"triune convert {name} FOLDER --to hf",
        ]
