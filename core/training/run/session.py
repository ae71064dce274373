"""What one call of a training or scoring verb works with: the command line fills it, the reports read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from ...checkpoints.origin import of_options
from ..data import DataModule
from ..module import TrainingModule
from .arguments import command_line
from .changes import Change
from .checkpoints import Checkpoints
from .folder import RunFolder
from .signals import StopOnSignal
from .telemetry import Telemetry


@dataclass
class Session:
    """The first attributes are known from the command line; `filled` brings those that need the parsed configuration.

    Args:
        task: name of the task, such as "text".
        verb: such as "fit".
        args: the command line behind the verb, as it was typed.
        run: the run folder, where there is one.
        resume: whether the run is continued.
        telemetry, interrupt, checkpoints: the callbacks of a training.
    """

    task: str
    verb: str
    args: list[str]
    run: RunFolder | None
    resume: bool
    telemetry: Telemetry
    interrupt: StopOnSignal
    checkpoints: Checkpoints | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = ""
    """Why `--trainer.precision auto` is what it is."""
    left_out: str = ""
    """Settings of a recipe that the layers do not have."""
    changes: list[Change] = field(default_factory=list)
    """Options that a resumed run changes."""
    recorded: str | None = None
    """All options of a run before it was resumed, as YAML, where its checkpoint says them."""
    damaged: list[Path] = field(default_factory=list)
    """Checkpoints of a resumed run that cannot be read."""
    owns_run: bool = False
    """Whether this process has made or locked the run folder."""
    trained: bool = False
    """Whether a step was left to take when the training began."""
    model: TrainingModule = field(init=False)
    data: DataModule = field(init=False)
    trainer: Trainer = field(init=False)
    config: Any = field(init=False)
    """The resolved options, by their names on the command line (`config.trainer.max_steps`)."""
    config_text: str = field(init=False)
    """The same as YAML."""

    def filled(
        self, model: TrainingModule, data: DataModule, trainer: Trainer, config: Any, config_text: str
    ) -> None:  # fmt: skip
        """Notes what was built, and from which options."""
        self.model, self.data, self.trainer = model, data, trainer
        self.config, self.config_text = config, config_text
        if self.checkpoints:
            self.checkpoints.config = config_text
            if not self.resume:
                self.checkpoints.origin = of_options(config_text)

    @property
    def command(self) -> str:
        """The command line of this call, as one would type it."""
        return command_line(["triune", self.task, self.verb, *self.args])

    @property
    def is_trial(self) -> bool:
        """Whether --trainer.fast_dev_run leaves nothing behind."""
        return bool(self.trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue]
