"""Everything that works around Lightning, in one place, with the issue where there is one."""

from __future__ import annotations

import atexit
import inspect
import logging
import signal
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.strategies import model_parallel
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import subprocess_script

from ..errors import UserError
from .sharded import check

PLAIN = ("_current_fx_name",)
"""Attributes that Lightning sets nearly fifty times a step, to note the running hook. They go into the module's
dictionary directly, because `nn.Module.__setattr__` would take 0.1 ms a step for them."""


class _NoProfiler(PassThroughProfiler):
    """Lightning's "no profiler", less a generator for each of the fifty regions of a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


def prepare(trainer: Trainer) -> None:
    """What every trainer gets when its module is set up."""
    without_profiler(trainer)
    write_straight(trainer)
    close_process_group_at_exit(trainer)


def without_profiler(trainer: Trainer) -> None:
    """Replaces the profiler that does nothing by one that does it faster."""
    if type(trainer.profiler) is PassThroughProfiler:  # pyright: ignore[reportAttributeAccessIssue]
        trainer.profiler = _NoProfiler()  # pyright: ignore[reportAttributeAccessIssue]


class Straight(TorchCheckpointIO):
    """Writes checkpoints where they belong; Lightning makes two copies of them in memory, and a file in the system's
    folder for temporary files, which is often small.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # an object store, which Lightning writes to
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a file whole, in the place of an older one, or leaves all as it was where the disk is full.

    `last.ckpt` is written as `last.part.ckpt` first; a name that says so already is written itself.

    Raises:
        OSError: the system refuses, with the name of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path if path.stem.endswith(".part") else path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with part.open("wb") as file:
            torch.save(checkpoint, file)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch fails once more while it closes what the system has refused
        part.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def write_straight(trainer: Trainer) -> None:
    """Lets a trainer write its checkpoints by `Straight`, where nothing else was asked for."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = Straight()


def close_process_group_at_exit(trainer: Trainer) -> None:
    """Closes gloo too at the exit of each of several processes; Lightning closes NCCL only.

    gloo's threads, when they outlive the process, end it with an abort now and then.
    """
    if trainer.world_size > 1:
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


class FSDP2(ModelParallelStrategy):
    """`--trainer.strategy fsdp2`: the weights are cut over all devices (FSDP2), and checkpoints are single files.

    `fsdp2_sharded` writes folders of which each process writes its part. Lightning's own strategy would cut the layers
    over the devices of a machine (tensor parallelism) by default.

    Args:
        sharded: checkpoints are folders.
        tensor_parallel_size: processes that have the same batches, and over which the layers of a block are cut.
    """

    def __init__(self, sharded: bool = False, tensor_parallel_size: int = 1) -> None:
        super().__init__(tensor_parallel_size=tensor_parallel_size, save_distributed_checkpoint=sharded)
        self.copies = tensor_parallel_size

    def refuse(self) -> None:
        """Raises UserError where the number of processes is no multiple of those that share layers."""
        world = self.num_nodes * self.num_processes
        if world % self.copies:
            raise UserError(
                f"--trainer.strategy.tensor_parallel_size is {self.copies}, but {world} process{'es' * (world > 1)} are"
                " no multiple of it; choose another number, or --trainer.strategy fsdp2."
            )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes // self.copies
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(
            logging.ERROR
        )  # of what takes two sendings
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # Lightning asks for the optimizer's states where only weights are to be scored, too.
        optimizers = self.optimizers
        module = self.lightning_module
        if Path(checkpoint_path).is_dir():
            check(Path(checkpoint_path))
        if module is not None and module.trainer.state.fn != "fit":
            self.optimizers = []
        rekey = model_parallel._rekey_optimizer_state_if_needed
        model_parallel._rekey_optimizer_state_if_needed = lambda state, model: by_name(state, model, optimizers[0])
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self.optimizers = optimizers
            model_parallel._rekey_optimizer_state_if_needed = rekey


def by_name(state: dict[str, Any], model: Any, optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer by the names of the parameters, whatever numbers they have in it.

    Lightning takes the numbers for places among all parameters, which they are where FSDP2 wrote them; those of other
    trainings count along the groups.

    Raises:
        UserError: the groups are others.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    ours = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    groups = state["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group) for group in ours]:
        raise UserError(
            "The groups of the optimizer are not those of the checkpoint; leave the changed options of model.optimizer"
            " out."
        )
    name_of = {k: n for group, own in zip(groups, ours) for k, n in zip(group["params"], own)}
    return {
        "state": {name_of[key]: value for key, value in state["state"].items()},
        "param_groups": [{**group, "params": own} for group, own in zip(groups, ours)],
    }


def register(copies: int, sharded: bool) -> str:
    """Lets Lightning know a strategy by a name, which is returned; not by its object, with which it allows no double
    precision.
    """
    name = f"fsdp2{'_sharded' * sharded}" + (f"_tensor{copies}" if copies > 1 else "")
    about = "weights cut over all devices" + ", with checkpoints in parts" * sharded
    options = {"sharded": sharded, "tensor_parallel_size": copies}
    StrategyRegistry.register(name, FSDP2, description=about, override=True, **options)
    return name


register(1, False)
register(1, True)


def requeue_signal(trainer: Any) -> int | None:
    """The signal after which a job of SLURM is to be queued again; Lightning itself no longer answers it.

    Lightning would save within a step, into a file of its own, which it prefers to the one that is to be resumed.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment):
        return getattr(signal, "SIGUSR1", None)
    wanted, environment.auto_requeue = environment.auto_requeue, False
    return environment.requeue_signal if wanted else None


def at_setup_of_processes(trainer: Any, meet: Callable[[list[Any]], None]) -> None:
    """Calls `meet(children)` before a trainer's processes form their group; `children` are those that this one started.

    Also takes two things from Lightning: its handler of SIGTERM waits for all processes, so that one that gets the
    signal alone hangs, and so do those that wait for it; and its observer of the children kills without a word.
    """
    strategy, connector = trainer.strategy, trainer._signal_connector
    setup = strategy.setup_environment

    def terminate(number: int, frame: Any) -> None:
        if strategy.launcher is not None:
            strategy.launcher.kill(number)

    def both() -> None:
        if isinstance(strategy, FSDP2):
            strategy.refuse()  # before the others are met
        meet(list(getattr(strategy.launcher, "procs", [])))
        setup()

    connector._sigterm_notifier_fn = terminate
    strategy.setup_environment = both
    setattr(subprocess_script, "_launch_process_observer", lambda children: None)  # noqa: B010


def allow_unused(trainer: Trainer) -> None:
    """Lets DDP look in each step for the parameters that the loss does not use; by default it raises where there are
    some. Their gradients stay None, as in one process.
    """
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


def forget_loader(trainer: Any) -> None:
    """Lets the loop make its training loader anew when a checkpoint is to be loaded.

    Counting the batches of an epoch sets up the loader, and one that is set up never gets its state from the checkpoint
    (Lightning#20550).
    """
    if trainer.ckpt_path or trainer.strategy.restore_checkpoint_after_setup:
        trainer.fit_loop._combined_loader = None


def within_window(trainer: Trainer) -> bool:
    """Whether more micro-batches follow before the next optimizer step."""
    return trainer.fit_loop._should_accumulate()


def validate_at_steps(trainer: Trainer) -> None:
    """Validates at the optimizer step that follows where the interval ends; Lightning does it within a window of micro-
    batches, and a checkpoint written there lacks the gradients of the window.

    When it is due is a function of the position alone, so that a resumed run decides as the first one.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    check = loop._should_check_val_fx

    def due(data_fetcher: Any) -> bool:
        if loop._should_accumulate():
            return False
        if check(data_fetcher):
            return True
        every = trainer.val_check_batch
        if not loop._should_check_val_epoch() or every in (None, float("inf")):
            return False
        window = (loop.batch_progress.current.ready - 1) % trainer.accumulate_grad_batches + 1
        done = (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx) + 1
        return done // every > (done - window) // every

    loop._should_check_val_fx = due


def validation_due(trainer: Trainer) -> bool:
    """Whether the interval of validations ends where the training stands; a wish to stop does not count."""
    loop: Any = trainer.fit_loop
    stop, trainer.should_stop = trainer.should_stop, False
    try:
        return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    finally:
        trainer.should_stop = stop


def validate_now(trainer: Trainer) -> None:
    """Validates before the first step of a resumed training; Lightning leaves out a validation that was due when the
    checkpoint was written, and continues one that was interrupted with the batches that were left.
    """
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    loop._has_run = False
    trainer.training = True


def validation_follows(trainer: Trainer) -> bool:
    """Whether a training that stops now validates once more."""
    loop = trainer.fit_loop.epoch_loop
    return trainer.fit_loop._can_stop_early and loop._should_check_val_epoch()


def keep_signature(step: Callable[..., Any]) -> None:
    """Lightning inspects the signature of `training_step` at every step; one that lies ready is found faster."""
    step.__signature__ = inspect.signature(step)  # pyright: ignore[reportFunctionMemberAccess]


def quiet() -> None:
    """Silences what Lightning says about itself; warnings about the user's run stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # ours to choose, and printed
        ".*LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*`max_epochs` was not set.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*`srun` command is available.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*find_unused_parameters=True was specified.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    if rank() > 0:
        warnings.filterwarnings("ignore")


def rank() -> int:
    """The number of this process among those of the training, also before it has begun."""
    return getattr(rank_zero_only, "rank", None) or 0


def from_lightning(error: Exception) -> bool:
    """Whether Lightning itself raised this: its ValueErrors are about the trainer's options."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("lightning.")


def across(value: Any) -> list[Any]:
    """What each process gives, in the order of their numbers; all of them call this."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def copies(trainer: Any) -> int:
    """How many processes have the same batches, because the layers are cut over them; 1 for all others."""
    return getattr(trainer.strategy, "copies", 1)


def across_data(trainer: Any, value: Any) -> list[Any]:
    """What each process gives, in the order of their numbers, but of those with the same batches one alone."""
    return across(value)[:: copies(trainer)]


def own_part(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The tuple of numbers of this process out of what `across` found in an earlier training.

    Where that had another number of processes, the first one gets the sums, and the others zeros.
    """
    if len(parts) == (dist.get_world_size() if dist.is_initialized() else 1):
        return parts[rank()]
    sums = tuple(sum(numbers) for numbers in zip(*parts, strict=True))
    return sums if rank() == 0 else tuple(0 for _ in sums)
