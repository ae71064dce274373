"""What a task writes: its model, its loss, and how a run of it is judged, shown and exported.

Only `build_model`, `loss` and `slots` have no default. Everything that the command line asks of a task stands here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..checkpoints.family import Pretrained
from ..checkpoints.native import WEIGHTS
from ..errors import UserError
from ..subject import Subject
from .run.folder import RunFolder
from .start import Start


class Loss(NamedTuple):
    """A loss before normalisation.

    total: scalar, differentiable: the SUM of the losses of the real units of this micro-batch.
    count: scalar: the number of those units (tokens, images, residue pairs); a plain number where the host knows it.
    """

    total: Tensor
    count: Tensor | float  # pyright: ignore[reportIncompatibleMethodOverride]


class Sums(NamedTuple):
    """A `Loss` whose count is a tensor beside its total: scalars on the device."""

    total: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


class TaskModule(LightningModule):
    """The methods and attributes of a task, with defaults."""

    SHORT: ClassVar[dict[str, str]] = {}
    """Options with a shorter name on the command line, such as `{"--tta": "--model.tta"}`."""
    FIXED: ClassVar[dict[str, str]] = {}
    """Options of the model that the task sets itself, such as "transformer.causal", and why."""
    task_type: str | None = None
    """What PEFT calls the use of this model, such as CAUSAL_LM."""
    unit: str = "tok"
    """What is counted: the units of `Loss.count`, as the progress line names them."""
    loss_unit: str = "nats per token"
    """Of the plot of the loss."""
    origin: str | None = None
    """Checksum of the options that the run began with, which its checkpoints hold."""
    leaves_unused: bool = False
    """Whether the loss of a batch may leave parameters unused, which several processes must know."""
    monitor: tuple[str, str] = ("val_loss", "min")
    """A metric, and whether its "min" or "max" is best: chooses the weights of `checkpoints/best.ckpt`."""

    # --- model and loss -----------------------------------------------------------------------------------------------

    def build_model(self, data: Any) -> nn.Module:
        """Makes the model; `data` is the data module after its `setup()`, or None without one."""
        raise NotImplementedError(f"{type(self).__name__} must implement build_model(data).")

    def load_pretrained(self, source: str) -> Pretrained:
        """Reads a checkpoint: the `load` of the task's pretrained.py."""
        raise UserError(f"model.pretrained is {source}, but this task starts from random weights only; leave it out.")

    def read_start(self, folder: Path) -> Start:
        """What `Start.save` wrote, with a model whose weights are at random."""
        raise NotImplementedError(f"{type(self).__name__} must implement read_start(folder).")

    def adopt(self, start: Start, data: Any) -> str:
        """Lets `data`, before its `setup()`, takes over what belongs to the checkpoint; returns what that was, in
        words.
        """
        return ""

    def adapt_model(self, start: Start, data: Any) -> nn.Module:
        """The model of this task with the weights of `start.model`, which it may use up; `data` is set up, or None."""
        raise NotImplementedError(f"{type(self).__name__} must implement adapt_model(start, data).")

    def is_new(self, name: str) -> bool:
        """Whether a parameter of a fine-tuned model belongs to the task rather than the checkpoint, like a head.

        It trains whatever is frozen and is not adapted, even where the checkpoint's own fits.
        """
        return False

    def loss(self, batch: Any) -> Loss:
        """Loss of one micro-batch, in training (`self.training`) and evaluation."""
        raise NotImplementedError(f"{type(self).__name__} must implement loss(batch).")

    def slots(self, batch: Any) -> int:
        """Positions of a batch, padding included, from shapes alone; real units are `Loss.count`."""
        raise NotImplementedError(f"{type(self).__name__} must implement slots(batch).")

    def update_metrics(self, batch: Any) -> None:
        """Called for every evaluation batch; gather what `compute_metrics` needs, on the device."""

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """Called once after an evaluation, when `self.evaluated` holds its sums over all ranks.

        Logged as `val_<name>` or `test_<name>`. Resetting what `update_metrics` gathered is up to this method, as is
        bringing ranks together.
        """
        return {}

    def before_scoring(self, checkpoint: Path, data: Any) -> None:
        """Called by `validate`, `test` and `predict` before the data are set up and `checkpoint` is loaded.

        What the checkpoint says of the training's data can be given to `data` here.
        """

    def lens_subject(self, batch: Any) -> Subject:
        """The model with a small input on which its heads are scored (`--head_scores`).

        Args:
            batch: the first of the validation set.

        Raises:
            UserError: no head of this model can be scored while it trains.
        """
        raise UserError(
            "--head_scores was given, but the heads of this model are not scored during training; leave it out, and ask"
            " `triune lens heads RUN` afterwards."
        )

    # --- what the command line shows and writes -----------------------------------------------------------------------

    def describe(self) -> str:
        """A line about the model, for the opening block; empty for its size only."""
        return ""

    finalise_reads_weights = False
    """Whether `finalise` calls `export_state`: weights that are cut over processes are put together by all of them."""

    def finalise(self, run: RunFolder | None) -> dict[str, Any]:
        """What is fitted to the weights just judged (a temperature, a contact head); returns further metrics.

        Called once after an evaluation, on the main process; `run` is None without a run folder.
        """
        return {}

    def table(self, metrics: dict[str, Any]) -> str:
        """The metrics of an evaluation, `finalise`'s included, as they are printed: "val_loss 1.6123"."""
        return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, int | float))

    def export_state(self) -> dict[str, Tensor]:
        """The weights to export, by name."""
        return self.state_dict()

    def export(self, folder: Path) -> None:
        """Writes the trained model into an empty folder; by default `model.safetensors` alone, without a config."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.export_state().items()}, folder / WEIGHTS)

    def finish(self, run: RunFolder) -> None:
        """Writes further files into the run folder, after training."""

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to show after training."""
        return []


def summed(task: TaskModule, batch: Any) -> Sums:
    """The task's loss with its count as a tensor. Raises UserError for a loss of another form."""
    found: Any = task.loss(batch)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor) and found[0].dim() == 0):
        what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UserError(
            f"`{type(task).__name__}.loss` returns {what}, but must return Loss(total, count), two scalars: the sum"
            " of the losses of the batch and the number of units it sums over. Of a mean it cannot be known how"
            " many units it is over, so give both."
        )
    total, count = found
    if isinstance(count, Tensor) and count.dim() == 0:
        return Sums(total, count)
    if isinstance(count, int | float):
        if not 0 <= count < math.inf:
            raise UserError(
                f"The count that `{type(task).__name__}.loss` returns is {count}, but must be a number of units of at"
                " least 0; count what the sum is over."
            )
        return Sums(total, torch.full((), count, device=total.device))  # without waiting for the device
    what = f"a tensor {list(count.shape)}" if isinstance(count, Tensor) else f"a {type(count).__name__}"
    raise UserError(
        f"The count that `{type(task).__name__}.loss` returns is {what}, but must be a number or a scalar tensor."
    )
