"""The list of the tasks. Standard library only: `triune --help` reads it."""

from __future__ import annotations

from importlib import import_module

from .core.task import Task

NAMES = ("vision", "protein", "text")
"""The folders of the tasks. Each has a `TASK` in its `__init__`; a new task is one folder and one name here."""


def task(name: str) -> Task:
    """The descriptor of a task, by the name of its folder."""
    return import_module(f".{name}", __package__).TASK


def tasks() -> dict[str, Task]:
    """All tasks by name, in the order of the help."""
    return {name: task(name) for name in NAMES}
