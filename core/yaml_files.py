"""Settings in YAML that anybody may have written: read with a bound on size, nesting and aliases, no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .files import read_bytes

MAX_BYTES = 4 << 20
"""A larger YAML file is no configuration."""
MAX_NODES = 100_000
"""Values that a file may have once its aliases are written out: a few lines of aliases can stand for billions."""


class _Loader(yaml.SafeLoader):
    """Plain values only, and each key of a mapping once; PyYAML takes the last of several without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            known = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if known in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' stands twice in one mapping", key.start_mark
                )
            seen |= {known} if known else set()
        return super().construct_mapping(node, deep)


def check_option(name: str, value: str) -> None:
    """Raises UserError for the value of an option that is a mapping with a key that stands twice, `{a: 1, a: 2}`.

    What else may be wrong with it is its parser's to say.
    """
    if not value.lstrip().startswith("{") or len(value) > MAX_BYTES:
        return
    try:
        yaml.load(value, _Loader)
    except yaml.constructor.ConstructorError as error:
        if error.problem and "twice" in error.problem:
            raise UserError(f"{name} is {value}, but {error.problem}; leave one of them.") from None
    except Exception:  # not of a kind that is looked for here
        return


def read_yaml(path: Path, where: str) -> Any:
    """The value of a YAML file; None when it is empty.

    Args:
        path: the file.
        where: what messages call it.

    Raises:
        UserError: it is no regular file, too large, no UTF-8, not valid, nested too deeply, has a key twice, or its
            aliases stand for more than `MAX_NODES` values; names the line where there is one.
    """
    content = read_bytes(path, MAX_BYTES)
    try:
        loader = _Loader(content.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_NODES:
            raise UserError(f"{where} holds more than {MAX_NODES:,} values (with its aliases written out); shorten it.")
        return loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text (byte {error.start}); give a YAML file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise UserError(f"{where}{line}: {problem}, which is not valid YAML.") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply, or holds itself through an alias; write it out flat.") from None
    except (ValueError, OverflowError, KeyError, AttributeError, TypeError) as error:
        # A date such as 2001-99-99, a number of thousands of digits, a tag whose value does not fit it.
        raise UserError(f"{where} holds a value that cannot be read ({str(error).split(';')[0]}).") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values of a tree once its aliases are written out. Raises RecursionError when it holds itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = 0  # while its children are counted
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
