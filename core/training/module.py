"""The Lightning module that every task subclasses: normalised losses, whole-set validation, EMA and exact resume."""

# torch's foreach functions are documented but not exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..adapt.lora import LoRAConfig, merged_state
from ..again import keep_inputs_only
from ..checkpoints.native import whole
from ..compiled import compile_blocks
from ..errors import UserError
from ..experts import balance_experts, balance_loss
from ..initialise import cutting
from . import lightning_fixes
from .ema import EMA
from .freezing import FreezeConfig
from .groups import build_optimizer
from .guard import Guard, at_hand, settled
from .optimizers import OptimizerConfig
from .resume import Resume
from .schedules import ScheduleConfig, factor
from .sharded import CutBlocks, clip, cut, let_go, sum_partial, total_norm
from .task import Loss as Loss
from .task import Sums, TaskModule, summed
from .tuning import Tuning


class TrainingModule(TaskModule):
    """What all tasks share in training. A task implements `build_model`, `loss` and `slots`, and to be fine-tuned
    `load_pretrained`, `read_start` and `adapt_model`; `TaskModule` has the whole list.

    The loss of an optimizer step is the sum over all real units of the global batch divided by their number, whatever
    the split into micro-batches (`accumulate_grad_batches`) and ranks; a batch without any real unit leaves zero
    gradients. Between log steps nothing waits for the device: `last_batch` (sums of the last micro-batch), `last_loss`
    (mean per unit, of the last optimizer step) and `last_grad_norm` (before clipping) are tensors for a telemetry
    callback to read.

    A step whose loss or gradient is not finite leaves weights, optimizer and averages as they were; see `Guard`.

    Evaluation uses the averaged weights when `ema` is set. See `EMA` for which weights are where.

    Args:
        optimizer: optimizer and learning rates.
        schedule: how the learning rate moves.
        ema: decay of an average of the weights that is judged and exported in their place, for example 0.999.
        compile: compile the blocks of the model, in place; worth its minute of waiting on a GPU.
        checkpointing: compute each block again in the backward pass: much less memory, about a third more time.
        pretrained: a checkpoint to start from: a folder, a file or a name that the task's `load_pretrained` knows.
        lora: train low-rank factors beside the linear layers of the checkpoint instead of its weights.
        freeze: which blocks of the checkpoint do not train, or not at first.

    Raises:
        UserError: lora or freeze without pretrained.
    """

    def __init__(
        self,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (never changed; the CLI shows its fields)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        ema: float | None = None,
        compile: bool = False,
        pretrained: str | None = None,
        lora: LoRAConfig | None = None,
        freeze: FreezeConfig | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.optimizer_config = optimizer or OptimizerConfig()  # None from tasks that leave it open
        self.schedule_config = schedule or ScheduleConfig()
        self.ema = None if ema is None else EMA(ema)
        self.guard = Guard(self.optimizer_config.skip_limit)
        self.compile_blocks, self.checkpointing = compile, checkpointing
        self.tuning = Tuning.chosen(pretrained, lora, freeze)
        self.model: nn.Module | None = None
        self.last_batch: Sums | None = None
        self.last_loss: Tensor | None = None
        self.last_grad_norm: Tensor | None = None
        self.evaluated: Sums | None = None  # sums over the last whole evaluation
        self._units: Tensor | None = None  # those of the last optimizer step
        self._left_out: Tensor | None = None  # whether that step is one without an update
        self._window: Tensor | None = None  # [total, count] of the micro-batches since the last optimizer step
        self._nominal: Tensor | None = None
        self._sums: Tensor | None = None  # [total, count] of the evaluation so far
        self._resume = Resume()
        self.wish_to_stop = 0  # of this process; `StopOnSignal` sets it
        self.wishes: Tensor | None = None  # the sum over all processes at the last optimizer step

    def __setattr__(self, name: str, value: Any) -> None:
        if name in lightning_fixes.PLAIN:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        lightning_fixes.prepare(self.trainer)
        if self.leaves_unused:
            lightning_fixes.allow_unused(self.trainer)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Calls the model with the same arguments."""
        assert self.model is not None, "forward before configure_model"
        return self.model(*inputs, **named)

    # --- model and optimizer -----------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        # Of all hooks of a module only this one comes before the data are prepared, and those may need the checkpoint:
        # its tokenizer, its image size.
        if self.tuning is not None:
            self.tuning.open(self, getattr(self._trainer, "datamodule", None))
        return []

    def configure_model(self) -> None:
        """Builds the model once; compiles its blocks, and shards them under `ModelParallelStrategy` (FSDP2)."""
        if self.model is not None:
            return
        data = getattr(self._trainer, "datamodule", None)
        devices = 1 if self._trainer is None else self._trainer.world_size
        if self.tuning is not None:
            self.model = self.tuning.build(self, data, devices)
        else:
            with nullcontext() if self.device_mesh is None else cutting(CutBlocks(self.device_mesh)):
                self.model = self.build_model(data)
        keep_inputs_only(self.model, self.checkpointing)
        if self.compile_blocks:
            compile_blocks(self.model, "cpu" if self._trainer is None else self._trainer.strategy.root_device.type)
        if self.device_mesh is not None:
            cut(self.model, self.device_mesh)

    def configure_optimizers(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert self.model is not None, "configure_optimizers before configure_model"
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise UserError(
                "--trainer.strategy fsdp flattens the weights, which matrix optimizers and clipping cannot use;"
                " take fsdp2, or ddp where the model fits one device."
            )
        make = build_optimizer if self.tuning is None else partial(self.tuning.build_optimizer, self.is_new)
        optimizer = make(self.model, self.optimizer_config)
        schedule, total = self.schedule_config, self._total_steps()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(schedule, step, total))
        self._resume.configured(optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.tuning is not None:
            self.tuning.at(self.trainer.global_step)

    @property
    def thawed(self) -> int:
        """How often something was unfrozen; what a step costs depends on it."""
        return self.tuning.thawed if self.tuning else 0

    def _total_steps(self) -> float:
        """Optimizer steps of the whole run; infinite if it has no bound and the schedule needs none."""
        trainer = self.trainer
        total = trainer.estimated_stepping_batches
        lightning_fixes.forget_loader(trainer)
        if 0 <= total < math.inf:
            return total
        if self.schedule_config.needs_length:
            raise UserError(
                f"schedule.kind {self.schedule_config.kind} with warmup {self.schedule_config.warmup} depends on the"
                " length of the run, which nothing bounds; give --trainer.max_steps or --trainer.max_epochs (beside"
                " --trainer.max_time if you like), or kind constant with a warmup of 0 or in steps."
            )
        return math.inf

    # --- a training step ---------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total, count = summed(self, batch)
        self.last_batch = Sums(total.detach(), count.detach())
        self.guard.saw(self.trainer, total)
        # What balances experts has a gradient, but is not part of the loss that is reported and compared.
        extra = balance_loss(self.model) if self.model is not None else None
        learned = total if extra is None else total + extra.to(total.dtype) * count
        if self.trainer.accumulate_grad_batches == 1 and self.trainer.world_size == 1:
            self._note((total / count.clamp(min=1)).detach(), count.detach())
            return learned / count.clamp(min=1)
        # The number of units of the global batch is not known yet: divide by a constant now (it only keeps the numbers
        # in the range of 16-bit gradients) and correct once before the optimizer step.
        sums = torch.stack((total.detach(), count.detach().to(total.dtype))).to(_wide(total))
        self._window = sums if self._window is None else self._window + sums
        if self._nominal is None:
            self._nominal = self._choose_nominal(count)
        return learned / self._nominal

    lightning_fixes.keep_signature(training_step)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Walking through the batch is not free, and loaders deliver to the CPU.
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _note(self, loss: Tensor, units: Tensor) -> None:
        """Logs `train_loss`, per unit of an optimizer step, for loggers, bars and callbacks of Lightning.

        The device is not waited for, but by Lightning's own progress bar, which reads it at every step.
        """
        self.last_loss, self._units = loss, units
        self.log("train_loss", loss, prog_bar=self.trainer.progress_bar_callback is not None)

    def _choose_nominal(self, count: Tensor) -> Tensor:
        """About the units of the first micro-batch: a power of two, so that dividing by it rounds nothing."""
        nominal = count.detach().clamp(min=1).float()
        if self.trainer.world_size > 1:
            dist.all_reduce(nominal, op=dist.ReduceOp.MAX)
        return nominal.log2().floor().exp2()

    @torch.no_grad()
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Normalises gradients by the units of the whole window; called after unscaling and before clipping."""
        if self._window is None:
            return
        assert self._nominal is not None
        sums, self._window = self._window, None
        same = lightning_fixes.copies(self.trainer)
        if self.trainer.world_size > 1:
            wishes = torch.full_like(sums[:1], self.wish_to_stop)
            sums = torch.cat((sums, wishes))
            dist.all_reduce(sums)
            self.wishes = sums[2]
        total, units = (sums[:2] / same).unbind()
        count = units.clamp(min=1)
        self._note((total / count).float(), units)
        # Lightning has divided each loss by accumulate_grad_batches, and DDP or FSDP the gradients by the ranks.
        divided = self._nominal * self.trainer.accumulate_grad_batches * self.trainer.world_size / same
        sum_partial(self.model, self.device_mesh)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
        double = any(grad.dtype == torch.float64 for grad in local)
        torch._foreach_mul_(local, (divided / count).to(torch.float64 if double else torch.float32))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.last_grad_norm = norm = total_norm(p.grad for p in params if p.grad is not None)
        assert self.last_loss is not None
        self._left_out = left_out = settled(~(norm.isfinite() & self.last_loss.isfinite()), optimizer)
        if at_hand(left_out) and left_out:
            for p in params:  # without gradients an optimizer changes neither weights nor its state
                p.grad = None
        elif gradient_clip_val:
            clip(params, gradient_clip_val, None if gradient_clip_algorithm == "value" else norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        assert self._left_out is not None and self.last_loss is not None and self._units is not None
        if self.ema is not None:
            self.ema.update(self._left_out)
        assert self.model is not None
        balance_experts(self.model, self._left_out, dist.all_reduce if self.trainer.world_size > 1 else None)
        self.guard.took(self, self._left_out, self.last_loss, self._units)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def _evaluation_start(self) -> None:
        self._swap_ema(to_averages=True)
        self._sums = None

    def _evaluation_step(self, batch: Any) -> None:
        try:
            total, count = summed(self, batch)
            sums = torch.stack((total.to(_wide(total)), count.to(_wide(total))))
            self._sums = sums if self._sums is None else self._sums + sums
            self.update_metrics(batch)
        except BaseException:
            # Whoever catches this, or saves a checkpoint on the way out, must find the training weights.
            self._swap_ema(to_averages=False)
            raise

    def _evaluation_end(self, stage: str) -> None:
        # Here rather than in on_validation_end, before which callbacks save checkpoints.
        self._swap_ema(to_averages=False)
        if self._sums is None:
            return
        if stage == "val":
            self._resume.validated = self.trainer.global_step
        if self.trainer.world_size > 1:
            dist.all_reduce(self._sums)
            self._sums /= lightning_fixes.copies(self.trainer)
        self.evaluated = Sums(*self._sums.unbind())
        metrics = {"loss": self.evaluated.total / self.evaluated.count, **self.compute_metrics()}
        for name, value in metrics.items():
            # Equal on all ranks already; `sync_dist` only quiets Lightning's warning.
            self.log(f"{stage}_{name}", torch.as_tensor(value, dtype=torch.float32), sync_dist=True)

    def on_validation_start(self) -> None:
        self._evaluation_start()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def on_test_start(self) -> None:
        self._evaluation_start()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")

    def on_predict_start(self) -> None:
        self._swap_ema(to_averages=True)

    def on_predict_epoch_end(self) -> None:
        self._swap_ema(to_averages=False)

    def _swap_ema(self, to_averages: bool) -> None:
        if self.ema is None:
            return
        assert self.model is not None
        if not self.ema.attached:
            self.ema.attach(self.model)
        if self.ema.swapped != to_averages:
            self.ema.swap()

    def export_state(self) -> dict[str, Tensor]:
        """What goes into `model.safetensors`: the averaged weights when `ema` is on, else the raw ones; LoRA's
        merged.
        """
        assert self.model is not None, "export_state before configure_model"
        let_go(self.model)  # what a pass has put together may be older than the parts, where a checkpoint was loaded
        with self._weights(averaged=True):
            return {name: whole(tensor).cpu().clone() for name, tensor in merged_state(self.model).items()}

    def export_adapter(self, folder: Path | None) -> bool:
        """Writes LoRA's factors in PEFT's format, if it is of Hugging Face's; returns whether it did. Where they are
        cut over processes, all must call this; those that do not write give None.
        """
        assert self.model is not None, "export_adapter before configure_model"
        let_go(self.model)
        with self._weights(averaged=True):
            return self.tuning is not None and self.tuning.export(folder, self.model, self.task_type)

    @contextmanager
    def _weights(self, averaged: bool) -> Iterator[None]:
        before = self.ema is not None and self.ema.swapped
        self._swap_ema(averaged)
        try:
            yield
        finally:
            self._swap_ema(before)

    # --- exact resume ------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._swap_ema(to_averages=False)
        self._window = None
        self.guard.forget_window()
        self._resume.begin(self.trainer)

    def on_train_end(self) -> None:
        self.guard.review(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds `ema`, `guard`, `origin` and what `Resume.state` says; Lightning calls this on all ranks."""
        checkpoint.update(self._resume.state(self.trainer), origin=self.origin)
        self.guard.review(self)
        checkpoint["guard"] = self.guard.state_dict()
        if self.ema is None:
            return
        if self.ema.swapped:  # somebody saves in the middle of an evaluation
            with self._weights(averaged=False):
                state = self.trainer.strategy.lightning_module_state_dict()
                checkpoint["state_dict"] = {name: tensor.clone() for name, tensor in state.items()}
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resume.load(checkpoint)
        if "guard" in checkpoint and self._trainer and self.trainer.state.fn == "fit":  # not of weights to score
            self.guard.load_state_dict(checkpoint["guard"])
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])


def _wide(tensor: Tensor) -> torch.dtype:
    """The type to sum many losses in; Apple's GPUs have no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
