"""What exact resume costs of an optimizer step.

    python bench/resume_cost.py [--rounds 8]

Counted are the parts that a training without exact resume would not need: asking for signals, and whether a validation
is due at this position, after each step; taking over a wish to stop; the row of metrics.csv every 10 steps; drawing a
batch by its position and making a generator for it; putting the generators aside for a validation; and both
checkpoints (`last.ckpt` and, as in the worst case, `best.ckpt`: check of the weights, generators, writing), laid
on the steps of a recipe between two validations. Validation itself, telemetry and the guard against losses that are not
finite are not counted.

`share` is the time within these parts over the time of the steps around them, both of the processor and of the same
steps, so that other work on the machine counts for little; writing a checkpoint is on the clock, beside steps on the
clock. `with / without` checks it from outside: the same training with and without these parts, taking turns.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import record, spread, table
from lightning.pytorch import Callback, Trainer

from triune.core import TransformerConfig
from triune.core.training import lightning_fixes
from triune.core.training.lightning_fixes import quiet
from triune.core.training.rng import rng_state, set_rng_state
from triune.core.training.run import machine
from triune.core.training.run.checkpoints import Checkpoints
from triune.core.training.run.folder import RunFolder
from triune.core.training.run.rows import MetricsFile
from triune.core.training.run.signals import StopOnSignal
from triune.core.training.run.telemetry import Telemetry
from triune.text.data.module import TextData
from triune.text.data.windows import ShuffledWindows
from triune.text.task import TextTask

SIZES: dict[str, tuple[dict[str, int], dict[str, int], int, int]] = {
    # width of the model, data, steps of a round, and steps between two validations in the recipe
    "small": ({"dim": 128, "depth": 4, "heads": 4}, {"context": 64, "batch_size": 12}, 40, 500),
    "larger": ({"dim": 384, "depth": 6, "heads": 6}, {"context": 256, "batch_size": 2}, 5, 500),
}
WARM = 3
PARTS: dict[Any, tuple[str, ...]] = {
    StopOnSignal: ("on_train_batch_end",), Checkpoints: ("on_train_batch_end",), MetricsFile: ("append",),
    ShuffledWindows: ("batch",),
}  # fmt: skip


class Spent:
    """Seconds of the processor within the parts that are wrapped; one that another calls is counted once."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **named: Any) -> Any:
            if self._inside:
                return function(*args, **named)
            self._inside, begin = True, time.thread_time()
            try:
                return function(*args, **named)
            finally:
                self.seconds, self._inside = self.seconds + time.thread_time() - begin, False

        return timed


class Clock(Callback):
    """Seconds of a step after the first `WARM`: of the processor, on the clock, and within the parts."""

    def __init__(self, spent: Spent) -> None:
        self.spent = spent

    def _now(self) -> tuple[float, float, float]:
        return time.process_time(), time.perf_counter(), self.spent.seconds

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == WARM:
            self.begin, self.first = self._now(), trainer.global_step

    def on_train_end(self, trainer: Any, module: Any) -> None:
        steps = trainer.global_step - self.first
        self.steps = [(end - begin) / steps for begin, end in zip(self.begin, self._now(), strict=True)]


class Plain:
    """The batches of a loader from the first on, by an iterator that knows no position."""

    def __init__(self, batches: Any) -> None:
        self.source, self.draws = batches._source, [batches.order.batch(n) for n in range(len(batches))]

    def __iter__(self) -> Iterator[Any]:
        return (self.source[draw] for draw in self.draws)


def train(size: str, text: Path, cache: str, run: RunFolder | None) -> tuple[list[float], list[float]]:
    """Seconds of a step (see `Clock`), and of each of a few pairs of checkpoints; without the parts where `run` is
    None.
    """
    width, shape, steps, _ = SIZES[size]
    torch.manual_seed(0)
    task = TextTask(transformer=TransformerConfig(causal=True, context=shape["context"], **width))
    data = TextData(files=str(text), tokenizer="bytes", cache=cache, **shape)
    telemetry, spent = Telemetry(run and run.metrics), Spent()
    callbacks: list[Any] = [telemetry, clock := Clock(spent)]
    checkpoints = Checkpoints(run, telemetry) if run else None
    if checkpoints:
        callbacks += [StopOnSignal(), checkpoints]
    trainer = Trainer(
        max_steps=WARM + steps, callbacks=callbacks, logger=False, enable_checkpointing=bool(run), accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10, limit_val_batches=0,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:

        def replace(target: Any, name: str, by: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, by))

        if checkpoints is None:
            loader = data.train_dataloader
            replace(lightning_fixes, "validate_at_steps", lambda _: None)
            replace(data, "train_dataloader", lambda: Plain(loader()))
        else:
            replace(Checkpoints, "_save_last", lambda *_: None)  # measured by itself, below
            for kind, names in PARTS.items():
                for name in names:
                    replace(kind, name, spent.wrap(getattr(kind, name)))
            watch = lightning_fixes.validate_at_steps

            def watched(trainer: Any) -> None:
                watch(trainer)
                loop = trainer.fit_loop.epoch_loop
                loop._should_check_val_fx = spent.wrap(loop._should_check_val_fx)

            replace(lightning_fixes, "validate_at_steps", watched)
        trainer.fit(task, data)
    saves: list[float] = []
    for _ in range(2 if checkpoints and run else 0):
        begin = time.perf_counter()
        checkpoints._save(trainer, run.last, weights_only=False)  # type: ignore[union-attr]
        checkpoints._save(trainer, run.best, weights_only=True)  # type: ignore[union-attr]
        saves.append(time.perf_counter() - begin)
    return clock.steps, saves


def small_parts() -> dict[str, float]:
    """Seconds of what happens once: the generators put aside and back for a validation, one made for a position."""

    def once(action: Any, times: int = 200) -> float:
        begin = time.process_time()
        for _ in range(times):
            action()
        return (time.process_time() - begin) / times

    return {
        "generators": once(lambda: set_rng_state(rng_state())),
        "generator of a position": once(lambda: np.random.default_rng([1, 2, 3, 4])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine.keep_memory()
    quiet()
    rows, parts = [], small_parts()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 20_000)
        for size in SIZES:
            rows.append(measure(size, text, Path(folder), options.rounds, parts))
            print(table(rows[-1:]), flush=True)
    record("resume_cost", rows, parts=parts, rounds=options.rounds, unit="s, and shares of a step")


def measure(size: str, text: Path, folder: Path, rounds: int, parts: dict[str, float]) -> dict[str, Any]:
    """The row of a size."""
    plain, exact, saves = [], [], []
    for turn in range(rounds):
        run = RunFolder(folder / f"{turn}-{size}")
        run.checkpoints.mkdir(parents=True)
        for arm in [None, run] if turn % 2 == 0 else [run, None]:
            gc.collect()
            steps, saved = train(size, text, str(folder), arm)
            (plain if arm is None else exact).append(steps)
            saves += [save / steps[1] for save in saved]
    between = SIZES[size][3]
    within = [part / processor for processor, _, part in exact]
    once = parts["generators"] / between + parts["generator of a position"]
    once /= statistics.median(processor for processor, _, _ in exact)
    saving = [save / between for save in saves]
    total = statistics.median(within) + once + statistics.median(saving)
    return {
        "training": size,
        "model": f"{SIZES[size][0]}, {SIZES[size][1]}",
        "step of the processor": statistics.median(processor for processor, _, _ in exact),
        "share": total,
        "in each step": spread(within),
        "generators": once,
        "checkpoints": spread(saving),
        "steps between checkpoints": between,
        "with / without": spread([b[0] / a[0] for a, b in zip(plain, exact, strict=True)]),
    }


if __name__ == "__main__":
    main()
