"""What a resumed run is asked to do differently from what its config.yaml records, and what becomes of that.

The whole resolved configuration is compared, and `RULES` says of every option what a change of it means.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, NamedTuple

import yaml

from ...errors import UserError
from ...yaml_files import read_yaml
from .folder import RunFolder


class Rule(NamedTuple):
    """What a change means: `refused`, or applied with the remark `about` (empty where nothing needs to be said)."""

    about: str
    refused: bool = False


FREE, VALIDATED = Rule(""), Rule("the weights stay the same, but not which are judged, and by what")
ROUNDING = Rule("the batches are the same, but sums may be rounded differently")
LENGTH = Rule("the learning rate follows the schedule of the new length from the next step on")
NEXT_STEP = Rule("used from the next step on, the optimizer keeps its averages")
BATCHES = Rule("the batches would be others (data that were moved can be linked to their old place)", refused=True)
STATES = Rule("the states of the checkpoint belong to the recorded value", refused=True)

RULES: dict[str, Rule] = {
    "threads": FREE,
    "head_scores": FREE,
    "trainer.max_steps": LENGTH,
    "trainer.max_epochs": LENGTH,
    "trainer.max_time": FREE,
    "trainer.min_*": FREE,
    "trainer.log*": FREE,
    "trainer.enable_*": FREE,
    "trainer.callbacks*": FREE,
    "trainer.profiler*": FREE,
    "trainer.default_root_dir": FREE,
    "trainer.detect_anomaly": FREE,
    "trainer.fast_dev_run": FREE,
    "trainer.num_sanity_val_steps": FREE,
    "trainer.limit_test_batches": FREE,
    "trainer.limit_predict_batches": FREE,
    "trainer.limit_val_batches": VALIDATED,
    "trainer.val_check_interval": VALIDATED,
    "trainer.check_val_every_n_epoch": VALIDATED,
    "trainer.accelerator*": ROUNDING,
    "trainer.strategy*": ROUNDING,
    "trainer.devices": ROUNDING,
    "trainer.num_nodes": ROUNDING,
    "trainer.deterministic": ROUNDING,
    "trainer.benchmark": ROUNDING,
    "trainer.gradient_clip_*": NEXT_STEP,
    "trainer.limit_train_batches": BATCHES,
    "trainer.overfit_batches": BATCHES,
    "trainer.accumulate_grad_batches": BATCHES,
    "trainer.*": STATES,
    "model.compile": ROUNDING,
    "model.schedule*": Rule("the learning rate follows the new schedule from the next step on"),
    "model.optimizer.name": Rule("the states of one optimizer mean nothing to another", refused=True),
    "model.optimizer.layer_decay": Rule("the optimizer's groups would be others", refused=True),
    "model.optimizer.skip_limit": FREE,
    "model.optimizer.*": NEXT_STEP,
    "model.ema": Rule("the averages so far stay and move at the new rate"),
    "model.*dropout": Rule("used from the next step on"),
    "model.*stochastic_depth": Rule("used from the next step on"),
    "model*": Rule("the weights of the checkpoint were made with the recorded value", refused=True),
    "data.batch_size": FREE,  # the batch of all processes is compared, by `ResumableData.continue_with`
    "data.workers": FREE,
    "data.cache": FREE,
    "data.memory": FREE,
    "data.test_*": FREE,
    "data*": BATCHES,
    "*": STATES,
}
"""For each option the first pattern that fits it."""


class Change(NamedTuple):
    """An option that differs."""

    name: str
    before: Any
    now: Any

    @property
    def rule(self) -> Rule:
        if self.name == "model.ema" and None in (self.before, self.now):
            return STATES  # averages that begin, or end, within a run
        return next(rule for pattern, rule in RULES.items() if fnmatch(self.name, pattern))


def leaves(content: Any, name: str = "") -> dict[str, Any]:
    """Values by their full names, such as "trainer.max_steps", of a nested mapping."""
    if not isinstance(content, dict) or not content:
        return {name: content} if name else {}
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= leaves(value, f"{name}.{key}" if name else str(key))
    return found


def changes(run: RunFolder, config_text: str, defaults_text: str, recorded: str | None = None) -> list[Change]:
    """The options whose value is not the recorded one; those that the record does not know had their default.

    The record is what the checkpoint holds (`recorded`), so that a change in config.yaml itself is seen too, else
    config.yaml.
    """
    before, now, default = (
        leaves(content)
        for content in (
            yaml.safe_load(recorded) if recorded else read_yaml(run.config, str(run.config)),
            yaml.safe_load(config_text), yaml.safe_load(defaults_text),
        )
    )  # fmt: skip
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, _above(before, name, default.get(name))), now.get(name, _above(now, name, None))
        if old != new:
            found.append(Change(name, old, new))
    return found


def edited(run: RunFolder, recorded: str | None) -> str:
    """What is said where config.yaml is not what the checkpoint says that the run was trained with; empty where it is,
    or where that is not known.
    """
    if recorded is None:
        return ""
    before, now = leaves(yaml.safe_load(recorded)), leaves(read_yaml(run.config, str(run.config)))
    found = [f"{name} was {before.get(name)}, now {now.get(name)}" for name in before if before[name] != now.get(name)]
    found += [f"{name} is new" for name in now if name not in before]
    return f"{run.config} is not what this run was trained with: {'; '.join(found)}." if found else ""


def _above(values: dict[str, Any], name: str, otherwise: Any) -> Any:
    """The value of an option that is given as a whole, such as none for a group of options, or `otherwise`."""
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    return next((values[key] for key in above if key in values), otherwise)


def accept(found: list[Change], run: RunFolder, task: str) -> str:
    """What is said about the options that a resumed run changes; empty for none.

    Raises:
        UserError: one cannot be changed within a run; says what can be done instead.
    """
    refused = [change for change in found if change.rule.refused]
    if refused:
        names = "; ".join(f"--{name} is {new}, but this run was trained with {old}" for name, old, new in refused)
        first = "" if run.model.is_dir() else f" (`triune {task} validate {run}` writes them for that)"
        raise UserError(
            f"{names}: {refused[0].rule.about}. Leave {'it' if len(refused) == 1 else 'them'} out to continue, or start"
            f" anew from its weights{first} with --model.pretrained {run} and another --run."
        )
    about = {change.rule.about: [c for c in found if c.rule.about == change.rule.about] for change in found}
    return "; ".join(
        ", ".join(f"{name} was {old}, now {new}" for name, old, new in group) + (f": {remark}" if remark else "")
        for remark, group in about.items()
    )
