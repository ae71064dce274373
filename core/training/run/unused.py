"""Settings of a recipe that the user's own choice of mixer leaves without effect."""

from __future__ import annotations

import dataclasses
from typing import Any

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
