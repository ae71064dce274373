"""What a resumed run is asked to do differently from what its config.yaml records."""

from __future__ import annotations

from typing import Any

import yaml

from ...errors import UserError
from ...yaml_files import read_yaml
from .folder import RunFolder

FREE = ("model.compile", "model.optimizer.skip_limit")
"""Options of the model that may change on resume; of all others the state in the checkpoint would silently win."""


def leaves(content: Any, name: str = "") -> dict[str, Any]:
    """Values by their full names, such as "trainer.max_steps", of a nested mapping."""
    if not isinstance(content, dict) or not content:
        return {name: content}
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= leaves(value, f"{name}.{key}" if name else str(key))
    return found


def changed(run: RunFolder, config_text: str) -> dict[str, tuple[Any, Any]]:
    """Recorded and new value of each option that both configurations have and that differs."""
    before, now = leaves(read_yaml(run.config, str(run.config))), leaves(yaml.safe_load(config_text))
    found = {name: (before[name], value) for name, value in now.items() if name in before and before[name] != value}
    for name, value in now.items():  # a group of options where there was none
        above = next((key for key in before if name.startswith(f"{key}.")), None)
        if above is not None:
            found[name] = (before[above], value)
    return found


def accept(run: RunFolder, config_text: str) -> str:
    """A line about the options that a resumed run changes; empty for none.

    Raises:
        UserError: one that belongs to the model, its optimizer or the seed: the weights and states of the checkpoint
            were made with the recorded value.
    """
    found = changed(run, config_text)
    for name, (old, new) in found.items():
        if name == "seed_everything" or (name.startswith("model.") and name not in FREE):
            raise UserError(
                f"--{name} is {new}, but this run was trained with {old}, which stays when it goes on; leave it out, or"
                f" start anew from its weights with --model.pretrained {run} and another --run."
            )
    return "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in found.items())
