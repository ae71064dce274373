"""Options without effect: a recipe's make way for the user's own choice, those that the user named are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...config import MOST_LAYERS, TransformerConfig
from ...errors import UserError
from ...mixers import options as mixers
from ...yaml_files import read_yaml
from .arguments import run_and_configs
from .changes import leaves
from .recipes import find_config, folder


def chosen(args: list[str], package: str) -> set[str]:
    """The full names of the options that stand on a command line or in a file of the user's ("model.transformer.dim").

    Args:
        package: whose recipes are no files of the user's ("triune.text").
    """
    found = {word.split("=")[0].removeprefix("--").removesuffix("+") for word in args if word.startswith("--")}
    for name in run_and_configs("fit", args)[0].config:
        path = find_config(name, package)
        if path.parent != folder(package):
            found |= set(leaves(read_yaml(path, f"--config {path}")))
    return found


def leave_out(config: Any, args: list[str], package: str) -> str:
    """Puts settings of attention back to their defaults where no layer has attention and the user named none of them.

    What the user has named stays, and is an error of the model's config.

    Args:
        config: the options of a training; `model.transformer` is changed.

    Returns:
        what was left out, as a sentence; empty for nothing.
    """
    transformer = config.model.get("transformer")
    if not transformer or transformer.get("mixer") is None:
        return ""
    try:
        if "attention" in (names := mixers.expand(transformer.mixer, min(transformer.depth, MOST_LAYERS))):
            return ""
    except UserError:  # the model's config says it
        return ""
    named, out = chosen(args, package), []
    for field in (field for field in dataclasses.fields(TransformerConfig) if field.name in mixers.OF_ATTENTION):
        if transformer.get(field.name) != field.default and f"model.transformer.{field.name}" not in named:
            out.append(f"{field.name} {transformer[field.name]}")
            transformer[field.name] = field.default
    kinds = ", ".join(dict.fromkeys(names))
    return f"without the recipe's {', '.join(out)}, which {kinds} does not have" if out else ""


class Rule(NamedTuple):
    """When options are used: `used` of the values of all options, by their names; `why` says what else they need."""

    options: tuple[str, ...]
    used: Callable[[Mapping[str, Any]], bool]
    why: str


def _is(name: str, *values: Any) -> Callable[[Mapping[str, Any]], bool]:
    return lambda given: name not in given or given[name] in values


MUON = tuple(f"model.optimizer.{name}" for name in ("adamw_lr", "momentum", "nesterov", "ns_steps", "scale"))
RULES = (
    Rule(
        ("model.schedule.decay", "model.schedule.shape"), _is("model.schedule.kind", "wsd"),
        "only --model.schedule.kind wsd uses it",
    ),
    Rule(
        ("model.schedule.final",), lambda given: given.get("model.schedule.kind") != "constant",
        "--model.schedule.kind constant stays at the peak",
    ),
    Rule(MUON, _is("model.optimizer.name", "muon", None), "only --model.optimizer.name muon uses it"),
    Rule(
        ("data.augment.min_area",), _is("data.augment.crop", "resized"),
        "only --data.augment.crop resized uses it",
    ),
    Rule(("data.augment.padding",), _is("data.augment.crop", "pad"), "only --data.augment.crop pad uses it"),
    Rule(
        ("data.augment.operations", "data.augment.magnitude"), _is("data.augment.policy", "rand"),
        "only --data.augment.policy rand uses it",
    ),
    Rule(
        ("data.augment.mix_chance",),
        lambda given: bool(given.get("data.augment.mixup") or given.get("data.augment.cutmix")),
        "nothing is mixed without --data.augment.mixup or cutmix",
    ),
    Rule(
        ("model.position_covers_class",), _is("model.class_token", True), "the model has no class token"
    ),
    Rule(("model.resample",), _is("model.position", "learned"), "only --model.position learned uses it"),
    Rule(
        ("model.rotary_coordinates",), _is("model.transformer.position", "rotary"),
        "only --model.transformer.position rotary uses it",
    ),
    Rule(("trainer.gradient_clip_algorithm",), lambda given: bool(given.get("trainer.gradient_clip_val")),
        "nothing is clipped without --trainer.gradient_clip_val"),
    Rule(
        ("model.transformer.context", "model.encoder.context", "model.decoder.context"), lambda given: False,
        "the data say how long an input is (--data.context, or --data.longest of pairs)",
    ),
    Rule(("trainer.sync_batchnorm",), lambda given: False, "no model here has batch normalisation"),
    Rule(
        ("trainer.use_distributed_sampler", "trainer.reload_dataloaders_every_n_epochs"), lambda given: False,
        "batches are a function of seed and step, which the data module hands out",
    ),
    Rule(("trainer.inference_mode",), lambda given: False, "validation leaves tensors that training goes on with"),
    Rule(("trainer.enable_autolog_hparams",), lambda given: False, "config.yaml holds all options"),
)  # fmt: skip
"""Options that change nothing where others are as they are, and that a user who gives them expects to change something.
"""


def refuse(values: Mapping[str, Any], before: Mapping[str, Any], named: set[str], fixed: Mapping[str, str]) -> None:
    """Raises UserError for an option that a user named, with another value than before, and that changes nothing.

    Args:
        values: of all options, by their full names.
        before: their defaults, or in a run that goes on its own values.
        named: what stands on the command line.
        fixed: options that a task sets itself, and why.
    """
    rules = [*RULES, *(Rule((name,), lambda given: False, why) for name, why in fixed.items())]
    for rule in rules:
        for name in rule.options:
            if name in values and name in named and values[name] != before.get(name) and not rule.used(values):
                raise UserError(
                    f"--{name} is {values[name]}, but would change nothing: {rule.why}; leave it out, or change that."
                )
