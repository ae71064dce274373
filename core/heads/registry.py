"""The kinds of heads that come with the package, known by name."""

from __future__ import annotations

from .classify import Classify
from .known import HEADS, head_class, make_head, prepare, register
from .multilabel import Multilabel
from .ordinal import Ordinal
from .regress import Regress
from .several import Several
from .tag import Tag

__all__ = ["HEADS", "head_class", "make_head", "prepare", "register"]

for _head in (Classify, Multilabel, Regress, Ordinal, Tag, Several):
    register(_head)
