"""What a checkpoint needs beside Lightning's own states so that a resumed training goes on exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import UserError
from . import lightning_fixes
from .rng import rng_state, set_rng_state


class Resume:
    """The states of all generators, whether a validation that was due had not been made, and the optimizer's settings.

    A restored optimizer brings its own rates and factors with it. Those that are configured now hold: where they are
    the same, nothing changes.

    Validation, and Lightning's winding a validation loop forward on resume, draw random numbers. Training must not see
    those, or it would depend on how often one validates and where one resumes; so generators are put back after it.
    """

    def __init__(self) -> None:
        self.validated: int | None = None
        """The step of the last whole validation."""
        self._rng: list[dict[str, Any]] | None = None  # of each rank, from a checkpoint, until training starts
        self._training_rng: dict[str, Any] | None = None  # during validation
        self._owed = False
        self._settings: tuple[Optimizer, LambdaLR, list[dict[str, Any]]] | None = None

    def configured(self, optimizer: Optimizer, scheduler: LambdaLR) -> None:
        """Notes the settings of all groups, before a checkpoint replaces them."""
        self._settings = optimizer, scheduler, [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in optimizer.param_groups
        ]  # fmt: skip

    def state(self, trainer: Trainer) -> dict[str, Any]:
        """Entries of a checkpoint: `rng`, a list with an entry for each rank, and `owed`. All ranks call this."""
        state = self._training_rng or rng_state()
        states: list[Any] = [state]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            dist.all_gather_object(states, state)
        due = trainer.state.fn == "fit" and lightning_fixes.validation_due(trainer)
        return {"rng": states, "owed": due and self.validated != trainer.global_step}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the entries of a checkpoint, for `begin`."""
        self._rng, self._owed = checkpoint.get("rng"), checkpoint.get("owed", False)

    def begin(self, trainer: Trainer) -> None:
        """Restores the generators, and validates where that was due; called when the first step follows.

        Raises:
            UserError: the optimizer's groups are not those of the checkpoint.
        """
        if self._rng is not None:
            # Only now: building the model, the loaders and sanity checking have drawn random numbers of their own.
            if trainer.global_rank < len(self._rng):
                set_rng_state(self._rng[trainer.global_rank])
            self._configure()
        self._rng = None
        lightning_fixes.validate_at_steps(trainer)
        loop = trainer.fit_loop.epoch_loop.val_loop
        for name in ("run", "increment_progress_to_evaluation_end"):
            setattr(loop, name, self._without_drawing(getattr(loop, name)))
        if self._owed:
            self._owed = False
            lightning_fixes.validate_now(trainer)

    def _configure(self) -> None:
        if self._settings is None:  # a module with an optimizer of its own
            return
        optimizer, scheduler, settings = self._settings
        for group, now in zip(optimizer.param_groups, settings, strict=True):
            if group.get("name") != now.get("name"):
                raise UserError(
                    f"The optimizer's group '{now.get('name')}' was '{group.get('name')}' in the checkpoint; leave the"
                    " changed options of model.optimizer out."
                )
            group.update(now)
        scheduler.base_lrs = [now["initial_lr"] for now in settings]
        for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)

    def _without_drawing(self, function: Callable[[], Any]) -> Callable[[], Any]:
        def wrapped() -> Any:
            self._training_rng = rng_state()
            try:
                return function()
            finally:
                set_rng_state(self._training_rng)
                self._training_rng = None

        return wrapped
