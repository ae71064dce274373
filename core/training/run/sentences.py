"""Turns what argument parsers and validators report into one sentence that says what to do."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import re
import typing
from typing import Any

from ...errors import nearest
from ..lightning_fixes import from_lightning


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Every `--option` that the parser knows, nested dataclasses included."""
    options = []
    for action in parser._actions:
        options += [name for name in action.option_strings if name.startswith("--")]
        options += [f"--{action.dest}.{name}" for name in fields_of(getattr(action, "_typehint", None))]
    return options


def fields_of(hint: Any, prefix: str = "") -> list[str]:
    """Field names ("lr", "warmup.steps") of the dataclasses in a type hint."""
    names = []
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            for field in dataclasses.fields(kind):
                names.append(prefix + field.name)
                names += fields_of(hints[field.name], f"{prefix}{field.name}.")
    return names


def parsing(message: str, parser: argparse.ArgumentParser, command: str) -> str:
    """The sentence for an error of jsonargparse; `command` is what to call with --help ("triune text fit")."""
    options = options_of(parser)
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        word = match[1].split("=")[0]
        what = "Unknown option" if word.startswith("-") else "Unexpected argument"
        return f"{what} '{word}'{nearest(word, options)}; `{command} --help` lists all."
    if match := re.match(r"argument (\S+): expected (.+)", message):
        return f"{match[1].split('/')[-1]} needs a value; `{command} --help` says which."
    key = (re.search(r'Parser key "([\w.]+)"', message) or ["", ""])[1]
    if name := _unknown_key(message, key):
        return f"Unknown option '--{name}'{nearest('--' + name, options)}; `{command} --help` lists all."
    if match := re.search(r"Unable to load config [\"'](.+?)[\"']", message):
        key = (re.search(r'Parser key "([\w.]+)"', message) or ["", "config"])[1]
        return f"--{key} {match[1]}: no such file; give a YAML file, or single options (--{key}.NAME)."
    return _bad_value(message, key, options)


def _unknown_key(message: str, key: str) -> str:
    """The full name of an option that a configuration file or a nested group does not have, or ""."""
    if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return f"{match[1]}.{match[2]}"
    if match := re.search(r"Option '([\w.]+)' is not accepted", message):
        return f"{key}.{match[1]}" if key else match[1]
    return ""


def _bad_value(message: str, key: str, options: list[str]) -> str:
    inner = re.findall(r'Parser key "([\w.]+)"', message)
    name = ".".join(dict.fromkeys(inner)) if len(inner) > 1 and not inner[1].startswith(inner[0]) else key
    value = _given(message)
    inside = [o for o in options if o.startswith(f"--{name}.") and not o.startswith(f"--{name}.help")]
    if inside and value and value[1:2] != "{":
        return f"--{name} is {value}, but is a group of settings; give single ones, such as {inside[0]}."
    kinds = re.findall(r"Expected a (<class '[^']+'>|typing\.Literal\[[^\]]*\])", message)
    choices = [part.strip() for kind in kinds if "Literal" in kind for part in kind.split("[")[1][:-1].split(",")]
    words = [_kind(kind) for kind in kinds if "Literal" not in kind]
    if choices:
        words.append("one of " + ", ".join(dict.fromkeys(choices)))
    allowed = " or ".join(dict.fromkeys(filter(None, words)))
    if name and allowed and value is not None:
        return f"--{name} is {value}, but must be {allowed}."
    reason = re.sub(r'^Parser key "[\w.]+": ', "", validation(message))
    return f"--{name}: {reason}" if name else reason


def _given(message: str) -> str | None:
    match = re.search(r"Got value: (.+)", message) or re.search(r"Given value: (.+)", message)
    if match is None:
        return None
    nested = re.match(r"NestedArg\(key='[^']*', val=(.+)\)$", match[1])
    text = (nested[1] if nested else match[1]).strip("'\"")
    return repr(text) if text else "empty"


def _kind(text: str) -> str:
    """A type as a person says it; "" for None, which is merely also allowed."""
    name = text.removeprefix("<class '").removesuffix("'>").split(".")[-1]
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}
    words["dict"] = "a mapping, {NAME: VALUE}"
    return words.get(name, "" if name == "NoneType" else f"a {name}")


def validation(message: str) -> str:
    """The sentence of a validator (ValueError) out of what jsonargparse wraps around it."""
    if "Does not validate against any" not in message:
        return " ".join(message.split())
    lines = [line.strip(" -") for line in message.splitlines()]
    start = next((i for i, line in enumerate(lines) if line.startswith("Errors:")), 0)
    noise = ("Expected a", "Given value", "Errors:", "Problem with given class_path", "Subtypes:", "Does not validate")
    found = [line for line in lines[start + 1 :] if line and not line.startswith(noise)]
    return found[0] if found else " ".join(message.split())


NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
"""What PyTorch says on a CPU where a tensor is too large; on a GPU it has an exception for that."""


def of_library(error: Exception) -> str | None:
    """The sentence for an error of PyTorch, Lightning or the system that the user can mend; None for any other."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The GPU's memory is full: lower --data.batch_size (and raise --trainer.accumulate_grad_batches by as much "
            "to keep the global batch), shorten the sequences, or make the model smaller."
        )
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)
    ):
        return (
            "The model or a batch does not fit into this machine's memory: make the model smaller, or lower "
            "--data.batch_size."
        )
    if isinstance(error, RuntimeError) and "loading state_dict" in text:
        problem = text.splitlines()[-1].strip().rstrip(".")
        return (
            f"The checkpoint does not fit the model ({problem}); use the options it was trained with, which are in the "
            "config.yaml of its run."
        )
    if isinstance(error, ValueError) and "loaded state dict" in text:
        return (
            "The optimizer of the checkpoint has other groups of parameters than these options make; leave the changed"
            " options of model.optimizer out."
        )
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    ):
        where = f"'{error.filename}'" if error.filename else "A file"
        return f"{where} cannot be written or read ({error.strerror}); make room or choose another folder."
    if "PytorchStreamWriter failed" in text or "unexpected pos" in text:
        return "A checkpoint could not be written whole, mostly because the disk is full; make room and resume the run."
    if type(error).__name__ == "MisconfigurationException" or (type(error) is ValueError and from_lightning(error)):
        return " ".join(text.split()).rstrip(".") + "."
    return None
