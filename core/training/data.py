"""What the data modules of all tasks share: an order of batches that resumes exactly, and their fetching.

A batch is a pure function of its position, counted over all epochs; the position is the trainer's own count of
processed batches. So nothing needs to be replayed after a resume, and reading ahead changes nothing.

Batches are cut from one order for all processes, and each takes its slice: position → epoch and place → a permutation
that (seed, epoch) determine → example. So the batches of all processes together are the same for any number of them
that divides the global batch, and for any number of loader workers; a run may go on with another number of either.
"""

from __future__ import annotations

import atexit
import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError
from .content import content_of
from .permutation import VERSION, Arrangement, check_version, permutation
from .run.machine import default_workers
from .versions import check_draws


class Draw(NamedTuple):
    """One batch to fetch: `indices` int64 `[batch]`, -1 for none; `position` counts the batches of all epochs of
    training, and is None in validation; `slot` is the place of the first one in the global batch."""

    position: int | None
    indices: np.ndarray
    slot: int = 0


class Source(Protocol):
    """What makes a batch of a draw."""

    def __getitem__(self, draw: Any, /) -> dict[str, Any]: ...


class Order(Protocol):
    """The batches of an epoch, one draw after the other."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


class Shuffled:
    """The order of training on one rank: each epoch is a permutation that (seed, epoch) determine.

    What does not fill the last batch of an epoch is left out in that epoch.

    Args:
        count: examples.
        batch_size: of one rank.
        rank, world: which part of every global batch of `batch_size * world` is taken.
        seed: of all epochs.
        position: returns how many batches were consumed, over all epochs, when an iteration starts; or None: iterate
            one epoch after the other.
    """

    def __init__(
        self, count: int, batch_size: int, rank: int = 0, world: int = 1, seed: int = 0,
        position: Callable[[], int | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._count, self._batch_size, self._rank, self._world = count, batch_size, rank, world
        self._seed, self._position = seed, position
        self._served = 0
        self._epoch: tuple[int, Arrangement] | None = None

    @property
    def count(self) -> int:
        """Examples of an epoch, also of the part of a batch that is left out."""
        return self._count

    def permutation(self, epoch: int) -> Arrangement:
        """All that an epoch visits, in order: int64 `[examples]`, or what gives them by place. Tasks override it."""
        return permutation(self._count, np.random.default_rng([self._seed, epoch]))

    def batch(self, position: int) -> Any:
        """The draw of this rank at a position."""
        return Draw(position, self.take(position), self._rank * self._batch_size)

    def take(self, position: int) -> np.ndarray:
        """The examples of this rank at a position, int64 `[batch]`."""
        first = self._rank * self._batch_size
        return self.at(position, np.arange(first, first + self._batch_size))

    def at(self, position: int, slots: np.ndarray) -> np.ndarray:
        """The examples in some places of the global batch at a position, int64 like `slots`."""
        epoch, index = divmod(position, len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.permutation(epoch)
        return self._epoch[1][index * self._world * self._batch_size + slots]

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._count // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[Any]:
        # The trainer counts the batches of an epoch itself, and sometimes keeps one iterator for several epochs.
        if (start := self._position()) is not None:
            yield from map(self.batch, itertools.count(start))
            return
        start, self._served = self._served, self._served + len(self)
        yield from map(self.batch, range(start, start + len(self)))


class InOrder:
    """The order of validation: each example once; ranks take disjoint parts and equally many batches of equal shape.

    The last batches are filled up with -1. Arguments as for `Shuffled`.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self._count, self._batch_size, self._rank, self._world = count, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self._count // (self._batch_size * self._world))

    def __iter__(self) -> Iterator[Draw]:
        for index in range(len(self)):
            first = (index * self._world + self._rank) * self._batch_size
            indices = np.arange(first, first + self._batch_size)
            yield Draw(None, np.where(indices < self._count, indices, -1))


class Batches:
    """An iterable over the batches of an order, fetched in this process or by workers.

    It is not a `DataLoader`: one starts to read ahead as soon as it is iterated, and Lightning iterates it before a
    checkpoint is restored whenever something asked for the number of steps. Here nothing is read, and no position
    taken, before the first batch is asked for. Nor does Lightning put a sampler of its own into it.
    """

    def __init__(self, source: Source, order: Order, workers: int = 0, pin: bool = False) -> None:
        self._source, self.order, self._workers, self._pin = source, order, workers, pin

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._workers:
            others = set(multiprocessing.active_children())
            batches = iter(self._loader)
            for worker in set(multiprocessing.active_children()) - others:
                atexit.register(worker.kill)  # at exit Python would ask by SIGTERM, and wait
            yield from batches
            return
        for draw in self.order:
            batch = self._source[draw]
            yield {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()} if self._pin else batch

    @cached_property
    def _loader(self) -> Iterable[dict[str, Any]]:
        # `tokenizers` prints a warning at every fork unless this says that threads are wanted.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        return DataLoader(
            self._source,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=self.order,  # pyright: ignore[reportArgumentType]
            num_workers=self._workers,
            persistent_workers=True,
            pin_memory=self._pin,
            # Of its own, because the loader would draw from that of the training: dropout must not depend on workers.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals,
        )

    # Lightning ends the workers of this iterator when a training ends, as it does for a `DataLoader`. One that is left
    # to the garbage collector has lost its queues by then: it waits ten seconds for each worker, and lets it live.
    @property
    def _iterator(self) -> Any:
        return getattr(self.__dict__.get("_loader"), "_iterator", None)

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        if (loader := self.__dict__.get("_loader")) is not None:
            loader._iterator = value

    # Lightning warns, when it resumes within an epoch, about a loader without these two. The position needs no entry
    # of its own: it is the trainer's count of processed batches, which the checkpoint holds.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _leave_signals(worker: int) -> None:
    """Lets the training answer signals to the group (Ctrl-C in a terminal, a batch system): it still needs batches
    for the step that it finishes. A worker ends when it is told to, or when its parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class DataModule(LightningDataModule):
    """What the command line asks of a data module beside Lightning's methods, with defaults."""

    PATHS: tuple[str, ...] = ()
    """Arguments that are paths: they are recorded whole, so that a run can be scored from any folder."""
    RECIPE: str = ""
    """Recipe that training takes without --config; empty for that of its verb."""
    given: frozenset[str] = frozenset()
    """Arguments that stand on the command line itself, so that those without an effect can be refused."""

    def describe(self) -> str:
        """A line about the data, for the opening block, after `setup()`; empty for none."""
        return ""

    def samples(self, position: int) -> list[str]:
        """What the training batch of this rank at a position holds, by name: files, documents or chains; empty where
        that is not known. For messages about a batch that training cannot use.
        """
        return []

    def continue_with(self, settings: dict[str, Any], world: int) -> str:
        """Prepares for going on with a run, maybe on another number of processes; called before `setup`.

        Args:
            settings: what `order_settings` was when the checkpoint was written.
            world: processes that see different data.

        Returns:
            What is different, in words; empty for nothing.

        Raises:
            UserError: the batches cannot be those of the run.
        """
        return ""

    def check_resumed(self) -> None:
        """Raises UserError when a resumed run would see other batches than those of its checkpoint."""

    def held_out(self) -> Iterable[str | bytes] | None:
        """What each validation example and its target is, in no order and whatever tokens or batches are made of it;
        None where that is not known. Runs of the same ones can be compared.
        """
        return None


class ResumableData(DataModule):
    """A data module whose training order is a function of the trainer's position and of `order_settings()`."""

    workers: int | None = None
    """The option of this name; None leaves it to `loader_workers`."""
    batch_size: int
    """The option of this name: examples of a batch of one process."""

    def __init__(self) -> None:
        super().__init__()
        self._resumed: dict[str, Any] | None = None
        self._version, self._drawn, self._learned = VERSION, {}, ""
        self._hashed: str | None = None

    def order_settings(self) -> dict[str, Any]:
        """Plain values that the order of batches depends on; they are saved, and compared on resume."""
        raise NotImplementedError(f"{type(self).__name__} must implement order_settings().")

    def learned(self) -> Iterable[str | bytes] | None:
        """What each training example and its target is, in the order of their numbers; None where `order_settings`
        says it already.
        """
        return None

    def draws(self) -> Mapping[str, int]:
        """What of a batch is drawn beside its order ("the hidden tokens"), and the version of the code that does."""
        return {}

    def names_of(self, taken: np.ndarray) -> list[str]:
        """Names of what `Shuffled.take` gives."""
        raise NotImplementedError(f"{type(self).__name__} must implement names_of(taken).")

    def samples(self, position: int) -> list[str]:
        """See `DataModule`."""
        order = self._order()
        return self.names_of(order.take(position)) if isinstance(order, Shuffled) else []

    def _order(self) -> Any:
        """The order of the loader that the trainer uses; None without one."""
        return getattr(getattr(self.trainer, "train_dataloader", None), "order", None)

    def position(self) -> int | None:
        """How many batches went into the weights, over all epochs; None outside of `fit`.

        It is the trainer's own count of processed batches. That count is part of every checkpoint, survives however
        the checkpoint was written (within a step, at the end of an epoch, on an exception), and does not move when a
        batch is merely read ahead. It is asked for when the first batch is, which is after the trainer has restored
        it.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return None
        self.check_resumed()
        trainer: Any = self.trainer
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return progress.current.processed if trainer.overfit_batches else progress.total.processed

    def ranks(self) -> tuple[int, int]:
        """(rank, world) among the processes that see different data; tensor-parallel ones share theirs."""
        strategy = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        return strategy.get("rank", 0), strategy.get("num_replicas", 1)

    @property
    def pin(self) -> bool:
        """Whether batches should lie in memory from which a GPU copies without waiting."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return on_gpu and torch.cuda.is_available()

    def loader_workers(self, most: int, without_gpu: bool = False) -> int:
        """Processes that prepare batches: as many as `workers` asks for, else the rule of all tasks.

        Args:
            most: how many keep up with a training.
            without_gpu: they pay beside a training on a CPU too, because a batch costs more than its step.
        """
        if self.workers is not None:
            return self.workers
        return default_workers(self.ranks()[1], most) if without_gpu or self.pin else 0

    def state_dict(self) -> dict[str, Any]:
        found = {"settings": self.order_settings(), "order": VERSION, "draws": dict(self.draws())}
        return found | {"learned": self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed, self._version = state_dict["settings"], state_dict.get("order", 1)
        self._drawn, self._learned = state_dict.get("draws", {}), state_dict.get("learned", "")

    def _identity(self) -> str:
        """A hash of what `learned` gives; empty where that is not known."""
        if self._hashed is None:
            examples = self.learned()
            self._hashed = "" if examples is None else content_of(examples, ordered=True)
        return self._hashed

    def continue_with(self, settings: dict[str, Any], world: int) -> str:
        """See `DataModule`: the batch of all processes together stays what it was."""
        whole, before = _whole(settings), settings.get("devices", 1)
        if whole is None or (world == before and "batch_size" not in self.given):
            return ""
        if whole % world:
            divide = (number for number in range(1, min(whole, 4 * world) + 1) if whole % number == 0)
            fit = map(str, sorted(sorted(divide, key=lambda number: abs(number - world))[:6]))
            raise UserError(
                f"The batch of all processes is {whole}, which {world} processes do not divide; continue this run on"
                f" {', '.join(fit)} (--trainer.devices, or --nproc-per-node of torchrun)."
            )
        own, several = whole // world, f"{world} process{'es' * (world > 1)}"
        if "batch_size" in self.given and self.batch_size != own:
            raise UserError(
                f"--data.batch_size is {self.batch_size} on {several}, {self.batch_size * world} in all, but this run"
                f" was trained with {whole} in all; give {own}, or leave it out."
            )
        self.batch_size = own
        if world == before:
            return ""
        return (
            f"{several} where there {'were' if before > 1 else 'was'} {before}: {own} of the {whole} examples of a"
            " batch on each, so that the batches stay the same"
        )

    def check_resumed(self) -> None:
        saved, self._resumed = self._resumed, None
        now = self.order_settings()
        names = [name for name in now if saved and name in saved and saved[name] != now[name]]
        if saved and _whole(saved) == _whole(now):
            names = [name for name in names if name not in SHARES]
        changed = [f"{name} was {saved[name]}, now {now[name]}" for name in names if saved]
        if saved and isinstance(order := self._order(), Shuffled):
            check_version(self._version, order.count)
        if saved:
            check_draws(self._drawn, self.draws())
        if saved and not changed and self._learned not in ("", self._identity()):
            changed = ["the same number of training examples, but not the same ones, or in another order"]
        if changed:
            raise UserError(
                f"The data are not those that this run was trained on ({'; '.join(changed)}), so its batches would be"
                " others; put them back to continue, or start a new run (--model.pretrained takes the weights of one)."
            )


SHARES = ("batch_size", "devices")
"""Settings of the order whose product alone counts: examples of a batch of one process, and processes."""


def _whole(settings: dict[str, Any]) -> int | None:
    """Examples of a batch of all processes; None where the settings do not say."""
    return math.prod(settings[name] for name in SHARES) if settings.keys() >= set(SHARES) else None
