"""Loggers of Lightning by name (`--trainer.logger wandb`). `metrics.csv` is written beside every one of them."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
from collections.abc import Callable
from typing import Any, Literal

from ...errors import UserError
from .folder import RunFolder

Name = Literal["tensorboard", "csv", "wandb", "mlflow", "none"]
NEEDS = {"wandb": ("wandb", "wandb"), "mlflow": ("mlflow", "mlflow-skinny")}
"""What a logger imports, and what pip installs it with."""
ABOUT = (
    "tensorboard (default), csv, wandb, mlflow, a list such as [csv, wandb], none, or the class path of another "
    "logger of Lightning. All get what metrics.csv has, which is always written."
)


def allow_names(parser: argparse.ArgumentParser) -> None:
    """Lets `--trainer.logger` take names beside what Lightning takes."""
    for action in parser._actions:  # jsonargparse has no other way to widen an option of a class
        if action.dest == "trainer.logger":
            held = action._typehint  # pyright: ignore[reportAttributeAccessIssue]
            action._typehint = Name | list[Name] | held  # pyright: ignore[reportAttributeAccessIssue]
            action.help = ABOUT


def names_of(value: Any) -> list[str] | None:
    """The names that the option holds; None where it holds something else (classes, a truth value).

    Raises:
        UserError: `none` stands beside others, or a name twice.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    if "none" in names and len(names) > 1:
        raise UserError(f"trainer.logger is {', '.join(names)}, but none stands alone; leave it or the others out.")
    if len(set(names)) < len(names):
        raise UserError(f"trainer.logger is {', '.join(names)}; name each logger once.")
    return names


def make(names: list[str], run: RunFolder, task: str, verb: str) -> list[Any]:
    """The loggers, which write into the run folder unless the environment says where (WANDB_*, MLFLOW_TRACKING_URI).

    Raises:
        UserError: the package of one is not installed.
    """
    for name in names:
        if name in NEEDS and importlib.util.find_spec(NEEDS[name][0]) is None:
            raise UserError(
                f"--trainer.logger {name} needs the package {NEEDS[name][0]}: pip install {NEEDS[name][1]}, or choose "
                "tensorboard or csv."
            )
    made: dict[str, Callable[[RunFolder, str, str], Any]] = {
        "tensorboard": _tensorboard, "csv": _csv, "wandb": _wandb, "mlflow": _mlflow,
    }  # fmt: skip
    return [made[name](run, task, verb) for name in names if name != "none"]


def _tensorboard(run: RunFolder, task: str, verb: str) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run.tensorboard, name="", version="")


def _csv(run: RunFolder, task: str, verb: str) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    # It would delete what a resumed run has written before.
    names = itertools.chain(["csv"], (f"csv-{number}" for number in itertools.count(2)))
    free = next(name for name in names if not (run.path / name).exists())
    return CSVLogger(run.path, name="", version=free)


def _wandb(run: RunFolder, task: str, verb: str) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    project = os.environ.get("WANDB_PROJECT") or f"triune-{task}"
    return WandbLogger(name=run.path.name, save_dir=run.path, project=project, job_type=verb, tags=[task, verb])


def _mlflow(run: RunFolder, task: str, verb: str) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    place = os.environ.get("MLFLOW_TRACKING_URI")
    if not place:
        place = f"file:{run.path.absolute() / 'mlruns'}"
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without which newer ones refuse folders
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"triune-{task}"
    return MLFlowLogger(experiment, run_name=run.path.name, tracking_uri=place, tags={"task": task, "verb": verb})
