"""The table of the kinds of heads by name, which `registry` fills."""

from __future__ import annotations

from typing import Any, TypeVar

from ..checks import check_keys
from ..errors import UserError, nearest
from ..labels.guess import READ_AS
from .base import Head, HeadSpec, Labelled

HEADS: dict[str, type[Head]] = {}
Kind = TypeVar("Kind", bound=type[Head])


def register(head: Kind) -> Kind:
    """Makes a kind of head known by its `kind`; usable as a decorator. Raises UserError for a name that is taken."""
    read = ("classify", "multilabel", "regress", "ordinal")
    if head.reads and head.reads not in read:
        raise UserError(f"{head.__name__}.reads is '{head.reads}', but must be one of {', '.join(read)}.")
    if HEADS.setdefault(head.kind, head) is not head:
        raise UserError(f"A kind of head named '{head.kind}' exists already; choose another name.")
    if head.reads:
        READ_AS[head.kind] = head.reads
    return head


def head_class(kind: str) -> type[Head]:
    """The class of a kind; raises UserError for one that is not registered."""
    if kind not in HEADS:
        raise UserError(f"The kind of head is '{kind}'{nearest(kind, HEADS)}, but must be one of {', '.join(HEADS)}.")
    return HEADS[kind]


def prepare(kind: str, target: Labelled, options: dict[str, Any] | None = None) -> HeadSpec:
    """The spec of a head of this kind for the values of the training rows. Raises UserError for an unknown option."""
    head = head_class(kind)
    try:
        chosen = check_keys(head.Options, dict(options or {}), "model.head")
    except UserError as error:
        what = str(error).removesuffix(".")
        raise UserError(f"{what}, those of a head of kind {kind}; --data.kind says another kind.") from None
    return head.prepare(target, chosen)


def make_head(spec: HeadSpec, dim: int) -> Head:
    """A new head on vectors of width `dim`, as the spec says."""
    return head_class(spec.kind)(dim, spec)
