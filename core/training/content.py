"""What examples are, as one number: to know the same ones again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def content_of(examples: Iterable[str | bytes], ordered: bool = False) -> str:
    """A hash of examples, whatever their order unless it is `ordered`."""
    parts = (part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in examples)
    every = hashlib.blake2b(digest_size=16)
    if ordered:
        for part in parts:
            every.update(len(part).to_bytes(8, "little") + part)
        return every.hexdigest()
    for digest in sorted(hashlib.blake2b(part, digest_size=16).digest() for part in parts):
        every.update(digest)
    return every.hexdigest()
