"""Triune: one transformer core that trains, fine-tunes and explains models of images, proteins and text."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .core.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    """The public names of the core, loaded on first use: `from triune import Transformer`."""
    # Not `from . import core`, which would ask this function for `core` without end.
    core = import_module(".core", __name__)
    if name in core.__all__:
        return getattr(core, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
