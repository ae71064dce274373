"""Training a masked language model of protein sequences, and fitting a contact head to its attention."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...core.checkpoints import native as checkpoint
from ...core.checkpoints.family import Pretrained
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.training.module import Loss, TrainingModule
from ...core.training.run.folder import RunFolder
from ...core.training.start import Start, adapted_transformer, longer, rebuilt, refuse_contradictions
from ..data.store import ChainSet, builtin_set, open_set
from ..pair.task import precision_lines, read_start
from .contact_head import HEAD
from .data import SequenceData
from .head_fit import chains_for_head, fit_head, judge_head
from .model import SIZES, SequenceConfig, SequenceModel, esm_transformer

SHAPE = esm_transformer("1M")
"""What is not given."""


class PretrainTask(TrainingModule):
    """A masked language model of protein sequences, in the shape of ESM-2, and a contact head on its attention.

    After training, the head, a logistic regression (Rao et al. 2020), is fitted on 20 chains of known structure, and
    judged on others. It reads the maps of layers of attention, so that a model without any has no contact head.

    Args:
        size: tiny, 1M, 8M, 35M, 150M, 650M, 3B or 15B: depth, dim and heads of `transformer`. Left out, those are as
            given there.
        transformer: the core, bidirectional; what is not given is as in ESM-2, and of size 1M. A `mixer` that reads
            from left to right is built for both directions; a pattern has a letter for each of `transformer.depth`.
        structures: a set made by `triune protein prepare`, whose training chains the contact head is fitted on, and
            whose validation chains judge it. Left out: the chains that come with the package.
        pretrained: a checkpoint to go on with: a file or folder of fair-esm, a folder or hub name of Hugging Face, a
            run. Its config is used in place of `size`; its contact head is fitted anew.
        **training: optimizer, schedule, ema, compile, lora and freeze; see `TrainingModule`.
    """

    unit = "masked res"
    loss_unit = "nats per masked residue"

    def __init__(
        self,
        size: str | None = None,
        structures: str | None = None,
        transformer: TransformerConfig = SHAPE,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.size, self.structures = size, structures
        self.fitted: dict[str, Any] = {}  # the contact head and how many chains made it; no part of what is trained
        self.transformer_config = self._sized(size, transformer)
        self.config = SequenceConfig(transformer=self.transformer_config)

    @staticmethod
    def _sized(size: str | None, transformer: TransformerConfig) -> TransformerConfig:
        """The core with the shape of `size`. Raises UserError when both say it, and differ."""
        if size is None:
            return transformer
        shape = {name: getattr(esm_transformer(size), name) for name in ("depth", "dim", "heads")}
        for name, value in shape.items():
            own = getattr(transformer, name)
            if own not in (value, getattr(SHAPE, name)):
                raise UserError(
                    f"model.transformer.{name} is {own}, but model.size {size} has {value}; leave one of them out "
                    "(--model.size null where a recipe has it)."
                )
        return replace(transformer, **shape)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self._has_maps:
            self._structures()  # a mistake in them should not be found after hours of training

    def build_model(self, data: Any) -> SequenceModel:
        if isinstance(data, SequenceData) and data.context > self.config.residues:
            transformer = replace(self.transformer_config, context=data.context + 2)
            self.transformer_config = transformer
            self.config = replace(self.config, transformer=transformer)
        return SequenceModel(self.config)

    def _structures(self) -> tuple[ChainSet, np.ndarray, np.ndarray]:
        """The set of `structures`, and what `chains_for_head` chooses of it."""
        chains = builtin_set() if self.structures is None else open_set(self.structures)
        return chains, *chains_for_head(chains)

    def lens_subject(self, batch: dict[str, Tensor]) -> Any:
        from ..lens.open import in_training

        assert isinstance(self.model, SequenceModel)
        return in_training(self.model)

    def load_pretrained(self, source: str) -> Pretrained:
        from .checkpoints.pretrained import load

        return replace(load(source), companion=None)

    def read_start(self, folder: Path) -> Start:
        return read_start(folder)

    def adopt(self, start: Start, data: Any) -> str:
        known = start.model.config.residues if isinstance(start.model, SequenceModel) else None
        if known is None or not isinstance(data, SequenceData) or data.context <= known:
            return ""
        return f"its context of {known:,} residues becomes {data.context:,}"

    def adapt_model(self, start: Start, data: Any) -> SequenceModel:
        """The checkpoint's model as it is."""
        assert isinstance(start.model, SequenceModel)
        shape = start.model.config.transformer
        if isinstance(data, SequenceData):
            shape = longer(shape, data.context, start.source, 2 + start.model.config.position_offset)
        found = {"size": next((s for s, n in SIZES.items() if n == (shape.depth, shape.dim, shape.heads)), "another")}
        refuse_contradictions(PretrainTask, {"size": self.size}, found, start.source)
        default = SHAPE if self.size is None else self._sized(self.size, SHAPE)
        adapted = adapted_transformer(self.transformer_config, default, shape, start.source)
        self.config = replace(start.model.config, transformer=adapted)
        return start.model if adapted == start.model.config.transformer else rebuilt(start.model, self.config)

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """Cross-entropy in nats over the masked residues."""
        assert isinstance(self.model, SequenceModel)
        return Loss(*self.model.loss(batch["tokens"], batch["targets"]))

    def slots(self, batch: dict[str, Tensor]) -> int:
        return batch["tokens"].numel()

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """exp(loss): among how many residues the model hesitates."""
        if self.evaluated is None:
            return {}
        return {"perplexity": (self.evaluated.total / self.evaluated.count).exp()}

    def describe(self) -> str:
        """One line about the model."""
        c = self.config.transformer
        names = list(dict.fromkeys(c.mixer_at(layer) for layer in range(c.depth)))
        mixers = (
            "" if names == ["attention"] else f", mixer {c.mixer if isinstance(c.mixer, str) else ', '.join(names)}"
        )
        own = self.tuning is None and replace(c, depth=SHAPE.depth, dim=SHAPE.dim, heads=SHAPE.heads) == SHAPE
        return f"{'ESM-2 shape: ' if own else ''}{c.depth} layers x {c.dim}, {c.heads} heads{mixers}"

    @property
    def _has_maps(self) -> bool:
        """Whether a layer has attention maps for a contact head."""
        c = self.config.transformer
        return any(c.mixer_at(layer) == "attention" for layer in range(c.depth))

    @property
    def finalise_reads_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `TaskModule`."""
        return self._has_maps

    def finalise(self, run: RunFolder | None) -> dict[str, Any]:
        """Fits the contact head to the weights just judged; its precision on the held-out chains with known
        structure. Nothing where no layer has attention maps.
        """
        if not self._has_maps:
            return {}
        chains, fitted_on, judged_by = self._structures()
        model = SequenceModel(self.config)
        checkpoint.load_state(model, self.export_state(), "the trained model")
        model = model.eval().to(self.trainer.strategy.root_device)
        head = fit_head(model, chains, fitted_on)
        self.fitted = {"head": head, "on": len(fitted_on), "by": len(judged_by)}
        return {f"val_{name}": value for name, value in judge_head(model, head, chains, judged_by).items()}

    def table(self, metrics: dict[str, Any]) -> str:
        """The loss, and the precision of the contact head."""
        known = "built-in chains" if self.structures is None else f"chains of {self.structures}"
        lines = [f"val_loss {metrics['val_loss']:.4f}  val_perplexity {metrics['val_perplexity']:.2f}"]
        if not self._has_maps:
            return f"{lines[0]}\nno contact head, which reads attention maps: no layer of this model has attention"
        lines.append(
            f"contact head fitted on {self.fitted['on']} {known}, judged by {self.fitted['by']} held-out ones:"
        )
        if not self.fitted["head"].weight.any():
            lines[-1] = (
                f"no attention head tells contacts of {self.fitted['on']} {known} yet, so the contact head is empty:"
            )
        return "\n".join([*lines, *precision_lines(metrics)])

    def export(self, folder: Path) -> None:
        """Writes the model for `SequenceModel.from_pretrained`, and its contact head into a folder of its own."""
        assert isinstance(self.model, SequenceModel)
        self.model.save_pretrained(folder, self.export_state())
        if self.fitted:
            self.fitted["head"].save_pretrained(folder / HEAD)

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        quoted = shlex.quote(str(run))
        steps = [f"triune protein validate {quoted}"]
        return [*steps, f"triune protein contacts SEQUENCES.fasta --run {quoted}"] if self._has_maps else steps
