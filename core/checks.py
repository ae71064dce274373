"""Checks of configurations: types by their annotations, ranges, choices and keys, each with one sentence. No torch at
import.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

from .errors import UserError, nearest


def check(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises UserError "NAME is VALUE, but must be ALLOWED." unless the condition holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}, but must be {allowed}.")


def counts(value: object) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def check_choice(name: str, value: object, kind: Any) -> None:
    """Raises UserError unless `value` is one of the choices of a `Literal`; names the nearest one."""
    choices = get_args(kind)
    if value not in choices:
        hint = nearest(str(value), choices)
        raise UserError(f"{name} is {value!r}{hint}, but must be one of {', '.join(map(str, choices))}.")


def check_keys(cls: type, values: Any, where: str) -> dict[str, Any]:
    """Returns `values` if each key is a field of the dataclass `cls` and none that it needs is missing.

    Raises UserError otherwise; for an unknown key it names the nearest field.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is a {type(values).__name__}, but must be a mapping of settings.")
    known = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            raise UserError(f"Unknown key '{where}.{key}'{nearest(key, known)}; known keys are {', '.join(known)}.")
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"The key '{where}.{f.name}' is missing.")
    return values


def check_types(config: Any, prefix: str = "") -> None:
    """Raises UserError for the first field of a dataclass whose value is not of the annotated type.

    A number is no text and no truth value: "1e-5", which YAML reads as text, and "no" are refused. An integer is a
    number too.

    Args:
        config: a dataclass, right after it was made.
        prefix: before the names of its fields in the sentence, such as "rotary.".
    """
    for name, hint, kinds_of_all, texts in _hints(type(config)):
        value = getattr(config, name)
        kind = type(value)
        if kind is float and not math.isfinite(value):
            raise UserError(f"{prefix}{name} is {value}, but must be a finite number.")
        if kind in kinds_of_all or (kind is str and value in texts):
            continue  # nearly all values; there are hundreds of configs in a comparison with other libraries
        if not _fits(value, hint):
            kinds = list(_kinds(hint))
            lists = [kind for kind in kinds if get_origin(kind) is list]
            if isinstance(value, list) and lists:  # name the entry
                kinds = [kind for part in get_args(lists[0]) for kind in _kinds(part)]
                value = next(entry for entry in value if not any(_fits(entry, kind) for kind in kinds))
            choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            meant = nearest(value, choices) if isinstance(value, str) else ""
            words = " or ".join(dict.fromkeys(map(_words, kinds)))
            raise UserError(f"{prefix}{name} is {value!r}{meant}, but must be {words}{_advice(value, kinds)}.")


def hashed(config: Any) -> int:
    """A hash of a frozen dataclass whose fields may be lists, dicts and dataclasses; equal ones have equal hashes."""
    return hash((type(config).__name__, *(_frozen(getattr(config, f.name)) for f in dataclasses.fields(config))))


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(part)) for key, part in value.items()))
    return value


@cache
def _hints(cls: type) -> list[tuple[str, Any, frozenset[type], frozenset[str]]]:
    """Name and type of each field, the kinds of which all values fit, and the texts that do."""
    hints = typing.get_type_hints(cls)
    return [(f.name, hints[f.name], *_plain(hints[f.name])) for f in dataclasses.fields(cls)]


def _plain(hint: Any) -> tuple[frozenset[type], frozenset[str]]:
    kinds, texts = set[type](), set[str]()
    for part in _kinds(hint):
        if get_origin(part) is Literal:
            texts |= {choice for choice in get_args(part) if isinstance(choice, str)}
        elif part in (bool, int, float, str, type(None)):
            kinds |= {int, float} if part is float else {part}
    return frozenset(kinds), frozenset(texts)


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and isinstance(value, bool) == isinstance(part, bool) for part in parts)
    if origin in (list, tuple) or hint in (list, tuple):
        # A list in a file is a tuple in code, and the other way round.
        inner = [part for part in parts if part is not Ellipsis]
        if not isinstance(value, list | tuple) or (_counted(hint) and len(value) != len(parts)):
            return False
        return all(any(_fits(v, part) for part in inner) or not inner for v in value)
    if origin is dict or hint is dict:
        right = isinstance(value, dict)
        return right and (not parts or all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items()))
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _counted(hint: Any) -> bool:
    """Whether a type is a list of a stated number of entries."""
    return get_origin(hint) is tuple and Ellipsis not in get_args(hint)


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that a union allows."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _kinds(part)
    else:
        yield hint


def _words(kind: Any) -> str:
    """What a type is, as a person says it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (list, tuple):
        inner = " or ".join(dict.fromkeys(_words(k) for part in parts if part is not Ellipsis for k in _kinds(part)))
        many = f"a list of {len(parts)}" if _counted(kind) else "a list"
        return f"{many} (each entry {inner})" if inner else many
    if origin is dict and parts[1] is not Any:
        return f"a mapping (each entry {_words(parts[1])})"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
    return {**names, dict: "a mapping"}.get(origin or kind, "settings")


def _advice(value: Any, kinds: list[Any]) -> str:
    """How a number that a file holds as text is written."""
    if not isinstance(value, str) or not {int, float} & {kind for kind in kinds if isinstance(kind, type)}:
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f"; it is text, write the number {number:g} without quotes (an exponent needs a point: 1.0e-5)"
