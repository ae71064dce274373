"""Names of classes as those of a head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def apart(names: Sequence[str]) -> list[str]:
    """The same names, each once: those that stand twice, such as the two cranes of ImageNet, get their number, as in
    "crane (134)".
    """
    counts = Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
