"""Training a language model: next-token cross-entropy, judged in nats per token and bits per byte."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.checkpoints.family import Pretrained
from ..core.config import TransformerConfig
from ..core.errors import UserError
from ..core.initialise import uninitialised
from ..core.losses import IGNORED
from ..core.training.module import Loss, TrainingModule
from ..core.training.run.folder import RunFolder
from ..core.training.start import Start, adapted_transformer, longer, rebuilt, refuse_contradictions
from .data.module import TextData
from .encoder import TextEncoder
from .model import LanguageModel, LanguageModelConfig
from .tokenizer import Tokenizer

MODERN = TransformerConfig(
    dim=256,
    depth=4,
    heads=4,
    causal=True,
    norm="rmsnorm",
    qk_norm="head",
    ffn="swiglu",
    bias=False,
    init_std=None,
    init_residual="zero",
)
"""The shape of Qwen 3, so that what is trained here runs in transformers and on servers; what it costs in learning
(nothing) is in docs/notebook.md."""


def adopted(start: Start, context: int) -> str:
    """What a training takes from a checkpoint, in words: its tokenizer, and the context that becomes longer."""
    parts = [] if start.companion is None else [f"its tokenizer of {start.companion.vocab_size:,} tokens"]
    if isinstance(start.model, LanguageModel | TextEncoder):
        known = start.model.config.transformer.context
        parts += [f"its context of {known:,} becomes {context:,}"] if context > known else []
    return ", ".join(parts)


class TextTask(TrainingModule):
    """A language model that predicts the next token.

    Args:
        transformer: the core. `context` is taken from --data.context, `causal` is on.
        tied: the head is the embedding matrix.
        embedding_std: standard deviation the embedding starts with; 0.02 suits a tied one.
        embedding_scale: the embedding is multiplied by sqrt(dim).
        head_bias: a bias on the logits.
        logit_softcap: logits become cap·tanh(logits / cap).
        pretrained: a checkpoint to fine-tune: a folder or hub name of Hugging Face, a GGUF file, a run or model
            folder. Its config and its tokenizer are used; of `transformer` only dropout and stochastic depth may then
            be chosen.
        **training: optimizer, schedule, ema, compile, lora and freeze; see `TrainingModule`.
    """

    task_type = "CAUSAL_LM"
    FIXED: ClassVar = {"transformer.causal": "a language model reads from left to right"}
    unit = "tok"
    loss_unit = "nats per token"

    def __init__(
        self,
        transformer: TransformerConfig = MODERN,
        tied: bool = False,
        embedding_std: float = 1.0,
        embedding_scale: bool = False,
        head_bias: bool = False,
        logit_softcap: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.transformer_config = replace(transformer, causal=True)
        self.options = {
            "tied": tied,
            "embedding_std": embedding_std,
            "embedding_scale": embedding_scale,
            "head_bias": head_bias,
            "logit_softcap": logit_softcap,
        }

    def build_model(self, data: Any) -> LanguageModel:
        """A new model for the vocabulary and the context of the data."""
        if not isinstance(data, TextData):
            raise UserError("TextTask needs TextData: its vocabulary decides the size of the embedding.")
        transformer = replace(self.transformer_config, context=data.context)
        return LanguageModel(LanguageModelConfig(data.vocab_size, transformer, **self.options))

    def lens_subject(self, batch: Any) -> Any:
        from .lens import in_training

        assert isinstance(self.model, LanguageModel)
        return in_training(self.model)

    def load_pretrained(self, source: str) -> Pretrained:
        from .checkpoints.pretrained import load

        return load(source)

    def read_start(self, folder: Path) -> Start:
        settings = LanguageModel.read_settings(folder)
        with uninitialised():
            model = LanguageModel.from_settings(settings)
        has_tokenizer = (folder / "tokenizer.json").is_file()
        return Start.read(settings, model, Tokenizer.load(folder) if has_tokenizer else None)

    def adopt(self, start: Start, data: Any) -> str:
        """The data are tokenised as the checkpoint's text was."""
        if not isinstance(data, TextData):
            return ""
        data.adopt(start.companion, start.source)
        return adopted(start, data.context)

    def adapt_model(self, start: Start, data: Any) -> LanguageModel:
        """The checkpoint's model as it is, with the dropout that was asked for."""
        model, source = start.model, start.source
        if not isinstance(model, LanguageModel):
            raise UserError(
                f"'{source}' is a {type(model).__name__}, which cannot be trained to predict the next token."
            )
        config = model.config
        if isinstance(data, TextData):
            if data.vocab_size > config.vocab_size:
                raise UserError(
                    f"The tokenizer has {data.vocab_size:,} tokens, but '{source}' knows {config.vocab_size:,}; they "
                    "do not belong together."
                )
            config = replace(config, transformer=longer(config.transformer, data.context, source))
        refuse_contradictions(TextTask, self.options, vars(config), source)
        transformer = adapted_transformer(self.transformer_config, MODERN, config.transformer, source)
        self.transformer_config = transformer
        if transformer == model.config.transformer:
            return model
        return rebuilt(model, replace(config, transformer=transformer))

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """Cross-entropy in nats over the tokens that have a target. Batch as `TextData` makes it."""
        assert isinstance(self.model, LanguageModel)
        return Loss(*self.model.loss(batch["tokens"], batch["targets"], batch.get("documents")))

    def slots(self, batch: dict[str, Tensor]) -> int:
        return batch["tokens"].numel()

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Surprise at each token of the validation text: nats `[batch, context]`, zero where there is no target."""
        assert isinstance(self.model, LanguageModel)
        logits = self.model(batch["tokens"], batch.get("documents"))
        return F.cross_entropy(logits.float().mT, batch["targets"], ignore_index=IGNORED, reduction="none").cpu()

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """Bits per byte of the validation text, comparable over tokenizers; left out when only a part was scored."""
        data = getattr(self.trainer, "datamodule", None)
        if self.evaluated is None or not isinstance(data, TextData) or int(self.evaluated.count) != data.val_targets:
            return {}
        return {"bits_per_byte": self.evaluated.total / (math.log(2) * data.val_bytes)}

    # --- what the command line shows and writes
    # ------------------------------------------------------------------------

    def describe(self) -> str:
        """One line about the model."""
        c = self.transformer_config
        window = "" if c.window is None else f", window {c.window}"
        window += "" if c.sparse is None else f", blocks of {c.sparse.block} tokens"
        shape = (
            f"{c.depth} layers x {c.dim}, {c.heads} heads, {c.norm}, {c.ffn_words()}, {c.position} positions{window}"
        )
        return f"{shape}{self._stays_here()}"

    def _stays_here(self) -> str:
        """A remark on a model that no class of Hugging Face has."""
        from .checkpoints.pretrained import lacking

        config = self.model.config if isinstance(self.model, LanguageModel) else None
        missing = lacking(config) if config is not None else []
        return f" (no counterpart at Hugging Face: {', '.join(missing)})" if missing else ""

    def export(self, folder: Path) -> None:
        """Writes the model and its tokenizer, for `triune text generate` and `LanguageModel.from_pretrained`."""
        assert isinstance(self.model, LanguageModel)
        self.trainer.datamodule.tokenizer.save(folder)  # type: ignore[attr-defined]
        self.model.save_pretrained(folder, self.export_state())

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        name = shlex.quote(str(run))
        steps = [f"triune text generate {name} --prompt 'Once'"]
        return steps if self._stays_here() else [*steps, f"triune convert {name} FOLDER --to hf"]
