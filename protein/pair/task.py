"""Training the pair model on chains with known structure."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.checkpoints.family import Pretrained
from ...core.checkpoints.native import load_config
from ...core.checkpoints.source import open_source
from ...core.checks import check
from ...core.initialise import uninitialised
from ...core.training.freezing import FreezeConfig
from ...core.training.lightning_fixes import across_data
from ...core.training.module import Loss, TrainingModule
from ...core.training.run.folder import RunFolder
from ...core.training.start import Start, refuse_contradictions
from ..data.module import ProteinData
from ..language.model import SequenceModel
from ..predict.metrics import CUTOFF, ContactMetrics, distances, targets_of
from .config import PairConfig
from .model import PairModel, PairOutput, distance_classes

LOCAL = 6
"""Pairs closer than this in sequence are no contacts worth predicting; they only enter with `local_weight`."""


class PairTask(TrainingModule):
    """Contacts and distances of residue pairs.

    Args:
        preset: `evoformer`, `fast` or `tiny`; see `protein/pair/config.py`.
        settings: fields of `PairConfig` that differ from the preset, for example {"depth": 8}.
        contact_weight: weight of the contacts' binary cross-entropy.
        distogram_weight: weight of the distogram's cross-entropy.
        local_weight: weight of pairs less than 6 residues apart, relative to the others.
        pretrained: a protein language model (ESM-2) to put below the pair model, whose last vectors enter its sequence
            input: a file or folder of fair-esm, a folder or hub name of Hugging Face, a run of `triune protein
                pretrain`.
        lora: train low-rank factors beside the language model's linear layers.
        freeze: which of its blocks do not train, or not at first. Left out, without lora: the whole language model is
            frozen (as in ESMFold).
        **training: optimizer, schedule, ema, compile, lora and freeze; see `TrainingModule`.
    """

    unit = "pair"
    loss_unit = "nats per pair"
    leaves_unused = True  # those for an alignment, where the chains have none

    def __init__(
        self,
        preset: str = "fast",
        settings: dict[str, Any] | None = None,
        contact_weight: float = 1.0,
        distogram_weight: float = 0.3,
        local_weight: float = 0.1,
        **training: Any,
    ) -> None:
        if training.get("pretrained") is not None and training.get("lora") is None and training.get("freeze") is None:
            training["freeze"] = FreezeConfig()
        super().__init__(**training)
        self.preset, self.settings = preset, settings
        self.config = PairConfig.preset(preset, **settings or {})
        weights = {
            "contact_weight": contact_weight, "distogram_weight": distogram_weight, "local_weight": local_weight
        }  # fmt: skip
        for name, weight in weights.items():
            check(weight >= 0, f"model.{name}", weight, "at least 0")
        either = "above 0 where model.distogram_weight is 0"
        check(contact_weight + distogram_weight > 0, "model.contact_weight", contact_weight, either)
        self.contact_weight, self.distogram_weight = contact_weight, distogram_weight
        self.local_weight = local_weight
        self.metrics = ContactMetrics()
        self.inputs: dict[str, Any] | None = None  # what the training chains have beside their sequence
        self._output: PairOutput | None = None
        self._distance: Tensor | None = None

    def build_model(self, data: Any, trunk: SequenceModel | None = None) -> PairModel:
        if isinstance(data, ProteinData):
            self.inputs = data.inputs()
        return PairModel(self.config, trunk)

    def load_pretrained(self, source: str) -> Pretrained:
        from ..language.checkpoints.pretrained import load

        opened = open_source(source)
        if opened.is_ours and opened.config.get("architecture") == PairModel.architecture:
            return Pretrained(PairModel.from_pretrained(opened.path), opened)
        return replace(load(source), companion=None)  # its contact head has no use here

    def read_start(self, folder: Path) -> Start:
        return read_start(folder)

    def adapt_model(self, start: Start, data: Any) -> PairModel:
        """The pair model of a run as it is, or a new one with the checkpoint as its trunk."""
        if isinstance(start.model, PairModel):
            same = self.config == start.model.config
            found = {"preset": self.preset, "settings": self.settings} if same else {"preset": "", "settings": ""}
            refuse_contradictions(PairTask, {"preset": self.preset, "settings": self.settings}, found, start.source)
            self.config = start.model.config
            self.build_model(data)
            return start.model
        assert isinstance(start.model, SequenceModel)
        self.config = replace(self.config, trunk=start.model.config)
        return self.build_model(data, start.model)

    def is_new(self, name: str) -> bool:
        return not name.startswith("trunk.")

    def forward(self, batch: dict[str, Any]) -> PairOutput:
        assert self.model is not None, "forward before configure_model"
        keys = ("tokens", "profile", "msa", "residue_index", "mask")
        inputs = {key: batch[key] for key in keys if key in batch}
        if self.training and (share := batch.get("recycling")):
            # Not drawn here, where each process would draw its own.
            inputs["recycles"] = int(share[0] * (self.config.recycles + 1))
        return self.model(**inputs)

    def lens_subject(self, batch: dict[str, Any]) -> Any:
        from ..lens.pair import in_training

        assert isinstance(self.model, PairModel)
        return in_training(self.model, self.inputs)

    def loss(self, batch: dict[str, Any]) -> Loss:
        """Summed over the known pairs i != j, both directions; a pair that is close in sequence counts
        `local_weight`.
        """
        output, distance = self(batch), distances(batch["cb"])
        if not self.training:
            self._output, self._distance = output, distance
        return pair_loss(
            output, distance, batch["resolved"], batch["residue_index"], self.contact_weight, self.distogram_weight,
            self.local_weight,
        )  # fmt: skip

    def slots(self, batch: dict[str, Any]) -> int:
        """Pairs, padding included."""
        chains, residues = batch["tokens"].shape
        return chains * residues * residues

    def update_metrics(self, batch: dict[str, Any]) -> None:
        assert self._output is not None and self._distance is not None
        targets = targets_of(self._distance, batch["resolved"])
        lengths, names = batch["resolved"].sum(1), batch.get("name", ())
        self.metrics.update(self._output.contacts, targets, lengths, batch.get("neff"), names)
        self._output = self._distance = None

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """Means over chains: `long_p_at_l`, `long_p_at_l5`, `medium_p_at_l`, each with `_chance` and `_ceiling`, ..."""
        values, self.metrics = self.metrics.values, ContactMetrics()
        if self.trainer.world_size > 1:
            values = torch.cat(across_data(self.trainer, values.cpu()))
        return dict(ContactMetrics().compute(values))

    # --- what the command line shows and writes
    # ------------------------------------------------------------------------

    def describe(self) -> str:
        """One line about the model."""
        c = self.config
        attention = f"triangle attention with {c.triangle_heads} heads" if c.triangle_heads else "no triangle attention"
        msa = f", an MSA track in {c.msa_depth}" if c.msa_depth else ""
        below = c.trunk and c.trunk.transformer
        trunk = f", on a language model of {below.depth} layers x {below.dim}" if below else ""
        return f"{self.preset}: {c.depth} blocks x {c.dim} channels, {attention}{msa}{trunk}"

    def table(self, metrics: dict[str, Any]) -> str:
        """Precision by separation, beside what chance and a perfect predictor would reach."""
        stage = "val" if "val_loss" in metrics else "test"
        return "\n".join([f"{stage}_loss {metrics[f'{stage}_loss']:.4f}", *precision_lines(metrics, stage)])

    def export(self, folder: Path) -> None:
        """Writes the model for `PairModel.from_pretrained`, and which inputs it learned to use."""
        assert isinstance(self.model, PairModel)
        self.model.save_pretrained(folder, self.export_state(), **({"inputs": self.inputs} if self.inputs else {}))

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        quoted = shlex.quote(str(run))
        return [f"triune protein validate {quoted}", f"triune protein contacts INPUT.a3m --run {quoted}"]


def read_start(folder: Path) -> Start:
    """What `Start.save` wrote of a protein language model or a pair model."""
    settings = load_config(folder, SequenceModel.architecture, PairModel.architecture)
    kind = PairModel if settings["architecture"] == PairModel.architecture else SequenceModel
    with uninitialised():
        return Start.read(settings, kind.from_settings(settings))


def precision_lines(metrics: dict[str, Any], stage: str = "val") -> list[str]:
    """P@L and P@L/5 of an evaluation (`val_long_p_at_l`, ...) by separation, with chance and ceiling."""
    lines = ["precision (chance, ceiling)      P@L              P@L/5"]
    for name, about in (("short", "6 to 11 apart"), ("medium", "12 to 23"), ("long", "24 or more")):
        cells = []
        for at in ("p_at_l", "p_at_l5"):
            found = (metrics.get(f"{stage}_{name}_{at}{end}") for end in ("", "_chance", "_ceiling"))
            value, chance, ceiling = (float("nan") if x is None else x for x in found)
            cells.append(f"{value:.3f} ({chance:.3f}, {ceiling:.3f})")
        lines.append(f"  {name:7} {about:14} " + "  ".join(cells))
    return lines


def pair_loss(
    output: PairOutput, distance: Tensor, resolved: Tensor, residue_index: Tensor, contact_weight: float = 1.0,
    distogram_weight: float = 0.3, local_weight: float = 0.1,
) -> Loss:  # fmt: skip
    """Weighted cross-entropies of contacts and distance classes, summed over known pairs.

    Args:
        output: logits of the model.
        distance: Cβ distances in ångström `[batch, residues, residues]`.
        resolved: bool `[batch, residues]`; pairs with an unresolved residue, or padding, are ignored.
        residue_index: int `[batch, residues]`.

    The count is the number of known pairs at least 6 residues apart plus `local_weight` times that of the closer ones
    (0 on the diagonal), so that the mean does not depend on how long the chains are.
    """
    separation = (residue_index[:, :, None] - residue_index[:, None, :]).abs()
    wide = torch.promote_types(output.contacts.dtype, torch.float32)
    less = torch.full((), local_weight, dtype=wide, device=separation.device)
    weight = torch.where(separation >= LOCAL, less.new_ones(()), less) * (separation > 0)
    weight = weight * (resolved[:, :, None] & resolved[:, None, :] & ~distance.isnan())
    distance = distance.nan_to_num(nan=1e3)
    near = (distance < CUTOFF).to(wide)
    contact = F.binary_cross_entropy_with_logits(output.contacts.to(wide), near, reduction="none")
    total = contact_weight * (contact * weight).sum()
    if distogram_weight:
        bins = output.distogram.shape[-1]
        logits = output.distogram.to(wide).flatten(0, 2)
        classes = distance_classes(distance, bins).flatten()
        entropy = F.cross_entropy(logits, classes, reduction="none").view_as(weight)
        total = total + distogram_weight * (entropy * weight).sum()
    return Loss(total, weight.sum())
