"""One line that says how a training is doing: redrawn in a terminal, printed now and then into a log file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from .telemetry import Snapshot, Telemetry, total_steps


def short(number: float) -> str:
    """Three figures and a unit: 947, 31.2k, 1.54M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999 950 would round to "1000k".
        if abs(number) >= size * 0.9995:
            value = number / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """0:42, 12:05, 3:07:00, 2d 04:10."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def _figure(value: float) -> str:
    """Always as wide as the last one, so that the line does not jitter."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def bar(done: float, width: int) -> str:
    """A bar of `width` characters, filled to `done` in 0..1."""
    full = int(max(0.0, min(1.0, done)) * width)
    return "━" * full + "╌" * (width - full)


def line(now: Snapshot, step: int, total: int | None, width: int | None, unit: str = "tok", state: str = "") -> str:
    """The progress line in at most `width` characters: what matters less is left out first, a bar takes what is free.

    A `width` of None means a log file: everything, and no bar.
    """
    head = f"{step}/{total}" if total else f"step {step}"
    # In order of worth; joined in this order too.
    parts = [head]
    if state:
        parts.append(state)
    if now.loss is not None:
        parts.append(f"loss {_figure(now.loss)}")
    if now.val_loss is not None:
        parts.append(f"val {_figure(now.val_loss)}")
    if now.eta is not None and not state:
        parts.append(f"{duration(now.eta)} left")
    if now.units_per_second is not None:
        parts.append(f"{short(now.units_per_second)} {unit}/s")
    plain = len(parts)
    if now.mfu is not None:
        parts.append(f"{now.mfu:.0%} of peak")
    if now.data_wait is not None and now.data_wait >= 0.05:
        parts.append(f"{now.data_wait:.0%} waiting for data")
    if now.memory_gb is not None:
        parts.append(f"{now.memory_gb:.1f} GB")
    if width is None:
        return "  ".join(parts)
    # The bar is worth more than what follows the rate, and less than all before it.
    while len(parts) > 1 and len("  ".join(parts)) + (10 if total and len(parts) > plain else 0) > width:
        parts.pop()
    free = width - len("  ".join(parts)) - 2
    if total and free >= 8:
        parts.insert(1, bar(step / total, min(free, 30)))
    return "  ".join(parts)[:width]


class Progress(Callback):
    """Shows `Telemetry`'s latest numbers. Reads nothing from the device, so it never makes the host wait.

    In a terminal one line is redrawn at most five times a second; elsewhere a line is printed for a log step, at most
    one every `interval` seconds, and one for each validation.

    Args:
        telemetry: the callback that holds the numbers; it must come first in the trainer's list.
        unit: what is counted: "tok", "img", "res".
        interval: seconds between two lines of a log file.
        console: where to write; standard output by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        unit: str = "tok",
        interval: float = 5.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.telemetry = telemetry
        self.unit = unit
        self.interval = interval
        self.console = console or Console(highlight=False)
        self.clock = clock
        self._live: Live | None = None
        self._shown = -float("inf")
        self._step = 0

    @property
    def _terminal(self) -> bool:
        return self.console.is_terminal

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self.unit = getattr(pl_module, "unit", self.unit)  # a head may count tokens, which it knows with its data
        if trainer.is_global_zero and self._terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        new = self.telemetry.latest.step > self._step
        self._step = max(self._step, self.telemetry.latest.step)
        pause = self.clock() - self._shown
        if self._live is not None:
            if pause >= 0.2:
                self._draw(trainer)
        elif trainer.is_global_zero and new and pause >= self.interval:
            self._print(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._live is not None:
            self._draw(trainer, "validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        value = self.telemetry.latest.val_loss
        if value is not None:
            seconds = duration(self.telemetry.latest.seconds)
            self.console.print(
                Text(f"step {trainer.global_step}  val_loss {value:.4f}  after {seconds}"), soft_wrap=True
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Gives the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, trainer: Trainer, state: str = "") -> None:
        assert self._live is not None
        # One column stays free: some terminals wrap a line that fills the last one.
        text = self._line(trainer, self.console.width - 1, state)
        self._live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)
        self._shown = self.clock()

    def _print(self, trainer: Trainer) -> None:
        self.console.print(Text(self._line(trainer, None)), soft_wrap=True)
        self._shown = self.clock()

    def _line(self, trainer: Trainer, width: int | None, state: str = "") -> str:
        return line(self.telemetry.latest, trainer.global_step, total_steps(trainer), width, self.unit, state)
