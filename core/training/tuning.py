"""The course of a fine-tuning: open the checkpoint, build the model of the task, freeze, adapt, export."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..adapt.lora import LoRAConfig, add_lora
from ..adapt.peft import export_peft
from ..checkpoints.family import Pretrained
from ..checkpoints.native import CONFIG
from ..errors import UserError
from .freezing import FreezeConfig, Freezing, trained
from .groups import build_optimizer
from .optimizers import LOADED, MuonAdamW, OptimizerConfig
from .start import Start


class TunableTask(Protocol):
    """What a fine-tuning asks of a task; `TrainingModule` says what each method does."""

    def load_pretrained(self, source: str) -> Pretrained: ...
    def read_start(self, folder: Path) -> Start: ...
    def adopt(self, start: Start, data: Any) -> str: ...
    def adapt_model(self, start: Start, data: Any) -> nn.Module: ...
    def is_new(self, name: str) -> bool: ...


class Tuning:
    """The course of a fine-tuning; the training module calls it where it would otherwise build from nothing.

    Args:
        source: the checkpoint, as the user named it.
        lora: train factors instead of its weights.
        freeze: what does not train, or not at first.
    """

    def __init__(self, source: str, lora: LoRAConfig | None = None, freeze: FreezeConfig | None = None) -> None:
        self.source, self.lora, self.freeze = source, lora, freeze
        self.folder: Path | None = None
        """Of a run whose weights will be loaded: what it started from is read there, not from the checkpoint."""
        self.start: Start | None = None
        self.adopted = ""
        self.freezing: Freezing | None = None

    @classmethod
    def chosen(cls, source: str | None, lora: LoRAConfig | None, freeze: FreezeConfig | None) -> Tuning | None:
        """None without a checkpoint. Raises UserError for settings that need one."""
        if source is not None:
            return cls(source, lora, freeze)
        for name, value in (("lora", lora), ("freeze", freeze)):
            if value is not None:
                raise UserError(f"model.{name} needs a checkpoint to fine-tune; add --model.pretrained NAME_OR_PATH.")
        return None

    def open(self, task: TunableTask, data: Any) -> None:
        """Reads what the model starts from, once, and let the data adopt what belongs to it."""
        if self.start is not None:
            return
        if self.folder is not None and (self.folder / CONFIG).is_file():
            self.start = task.read_start(self.folder)
        else:
            self.start = Start.of(task.load_pretrained(self.source))
        self.adopted = task.adopt(self.start, data)

    def build(self, task: TunableTask, data: Any, devices: int = 1) -> nn.Module:
        """The model of the task, with factors, and frozen, as at the first step.

        Raises:
            UserError: blocks are to be unfrozen during a training on several devices.
        """
        if self.freeze and self.freeze.steps and devices > 1:
            # The wrappers of several devices note at the start which gradients to exchange.
            raise UserError(
                "model.freeze.steps unfreezes blocks during training, which works on one device only; leave it out, "
                "or train with --trainer.devices 1."
            )
        self.open(task, data)
        assert self.start is not None
        model = task.adapt_model(self.start, data).train()  # checkpoints are read for use, in evaluation mode
        self.start.model = None
        if self.lora:
            add_lora(model, self.lora, task.is_new)
        if self.freeze:
            self.freezing = Freezing(model, self.freeze, task.is_new)
        return model

    def build_optimizer(self, is_new: Callable[[str], bool], model: nn.Module, config: OptimizerConfig) -> MuonAdamW:
        """For all that will ever train: unfreezing then changes no group, and a resumed run finds the same ones.

        Raises:
            UserError: nothing trains at the first step, or a learning rate is given that nothing uses.
        """
        if self.freezing:
            if not any(p.requires_grad for p in model.parameters()):
                raise UserError(
                    f"model.freeze.blocks is {self.freezing.blocks}, which leaves nothing to train at first, because"
                    " this model has no head of its own (or LoRA freezes it); freeze fewer blocks."
                )
            self.freezing.at(math.inf)
        optimizer = build_optimizer(model, config, {name for name, _ in model.named_parameters() if not is_new(name)})
        self.at(0)
        return optimizer

    def at(self, step: int) -> None:
        """Freezes what is frozen after `step` optimizer steps."""
        if self.freezing:
            self.freezing.at(step)

    @property
    def thawed(self) -> int:
        """How often something was unfrozen; what a step costs depends on it."""
        return self.freezing.thawed if self.freezing else 0

    def describe(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, str]]:
        """Entries of the opening block: name and text."""
        parts = [f"training {trained(model)}"]
        if self.lora:
            parts.append(f"LoRA of rank {self.lora.rank} on {', '.join(self.lora.targets)}")
        if self.freezing:
            parts.append(self.freezing.describe())
        peaks: dict[str, float] = {}
        for group in optimizer.param_groups:
            name = group["name"].split(",")[0]
            name = "checkpoint" if name.startswith(LOADED) else name
            peaks[name] = max(peaks.get(name, 0.0), group["initial_lr"])
        rates = ", ".join(f"{name} {lr:.3g}" for name, lr in peaks.items())
        about = f"{self.source}: {self.adopted}" if self.adopted else self.source
        return [("start", about), ("tuning", "; ".join([*parts, f"peak learning rates: {rates}"]))]

    def export(self, folder: Path | None, model: nn.Module, task_type: str | None) -> bool:
        """Writes LoRA's factors in PEFT's format; returns whether there are any. See `TrainingModule.export_adapter`.

        Raises:
            UserError: PEFT cannot hold them, because the checkpoint or a layer is none of Hugging Face's.
        """
        if self.lora is None or self.start is None:
            return False
        if not self.start.targets:
            raise UserError(
                f"'{self.source}' is no checkpoint of Hugging Face's, to whose layers PEFT could add the factors; the "
                "model of this run has them merged."
            )
        export_peft(folder, model, self.start.targets, self.source, task_type)
        return True
