"""`--trainer.precision auto`: float32 or bfloat16 on a CPU, whichever trains this model faster; a few steps tell.

Processors with AMX or AVX512-BF16 multiply matrices in bfloat16 several times as fast as in float32; the casts around
the products cost a small model more than it gains. Which of the two it is depends on model, batch and processor, so
that a few real optimizer steps are timed in both. On a GPU nothing needs to be timed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from ...errors import UserError
from . import machine, report
from .arguments import RUN_VARIABLE
from .checkpoints import recorded_config
from .probe import Probe, take_steps

AUTO = "auto"
PLAIN, MIXED = "32-true", "bf16-mixed"
WARM, LEAST, SECONDS = 2, 3, 1.5
"""Steps before the timed ones, the fewest timed ones, and the time after which there are enough."""
GAIN = 0.9
"""A step in bfloat16 must take less than this part of one in float32, so that noise decides for float32."""
ABOUT = "32-true, bf16-mixed and others of Lightning, or auto: what takes less time for a step here (default: 32-true"
ABOUT += " on a CPU, bf16-mixed on a GPU that computes in it)."


def allow_auto(parser: argparse.ArgumentParser) -> None:
    """Lets `--trainer.precision` take `auto` beside what Lightning takes."""
    for action in parser._actions:  # jsonargparse has no other way to widen an option of a class
        if action.dest == "trainer.precision":
            held = action._typehint  # pyright: ignore[reportAttributeAccessIssue]
            action._typehint = Literal["auto"] | held  # pyright: ignore[reportAttributeAccessIssue]
            action.help = ABOUT


def chosen(cli: Any, device: torch.device) -> tuple[str, str]:
    """The precision of a command line (a `TaskCLI` whose options are read), and what `auto` has to say for it.

    Raises:
        UserError: as `measured`.
    """
    asked, run = cli.config.trainer.precision, cli.session.run
    if asked not in (None, AUTO):
        return asked, ""
    if asked == AUTO and run and (cli.session.resume or not cli.trains):
        return recorded(recorded_config(run)) or PLAIN, "as before"
    if asked is None or device.type != "cpu" or not cli.trains:
        return machine.default_precision(device), ""
    found = measured(lambda words: cli.another(words).session, cli.config, cli.yaml)
    cli._set_seed()  # as if nothing had been trained for it
    return found


def recorded(config: str | None) -> str | None:
    """The precision in the options that a checkpoint holds, as YAML; another measurement must not change it."""
    import yaml

    return (yaml.safe_load(config) or {}).get("trainer", {}).get("precision") if config else None


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16, or PyTorch cannot rule it out."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def measured(train: Callable[[list[str]], Any], config: Any, text: Callable[[Any], str]) -> tuple[str, str]:
    """Which precision trains faster on this CPU, and the seconds that say so, as words for a person.

    Args:
        train: makes the session of a training from a command line, as `triune TASK fit` does.
        config: the options of the training; their `trainer.precision` is `auto`.
        text: gives options as YAML.

    Raises:
        UserError: several processes would train, which this one process cannot time; or the training cannot start.
    """
    processes = str(config.trainer.devices) not in ("1", "auto") or config.trainer.num_nodes != 1
    if processes or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"--trainer.precision is auto, but a training of several processes cannot be timed by one; say {PLAIN} or"
            f" {MIXED}."
        )
    if not has_bfloat16():
        return PLAIN, "this CPU does not compute in bfloat16"
    report.say("Timing a few steps in float32 and in bfloat16 (--trainer.precision auto) …")
    plain, mixed = (_step(train, config, text, precision) for precision in (PLAIN, MIXED))
    about = f"a step took {plain:.3g} s of the processor in float32, {mixed:.3g} s in bfloat16"
    return (MIXED if mixed < GAIN * plain else PLAIN), about


def _step(train: Callable[[list[str]], Any], config: Any, text: Callable[[Any], str], precision: str) -> float:
    """Seconds of an optimizer step, in a run folder of its own that is removed.

    Of the processor, as other work on the machine counts for little there; the fastest of a few.
    """
    config = config.clone()
    config.trainer.precision, config.trainer.limit_val_batches, config.trainer.fast_dev_run = precision, 0, False
    before = os.environ.get(RUN_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="triune-precision-") as folder:
        file = Path(folder, "config.yaml")
        file.write_text(text(config), encoding="utf-8")
        try:
            probe = Probe(time.process_time, warm=WARM, least=LEAST, seconds=SECONDS)
            with contextlib.redirect_stdout(io.StringIO()):  # the training's own opening comes later
                take_steps(train(["--config", str(file), "--run", str(Path(folder, "run"))]), probe)
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
        finally:
            os.environ.pop(RUN_VARIABLE, None)
            if before is not None:
                os.environ[RUN_VARIABLE] = before
    return min(probe.steps[WARM:] or probe.steps)
