"""Few-shot patterns of letters, on which `triune lens` measures what heads are good for (Crosbie and Shutova 2024).

A prompt holds a few lines such as `A B A B: Foo`, half of them with the pattern and half random letters, which are
`Bar`; measured is the label of the last line. Half of the prompts have the pattern there, so chance is 0.5.
"""

from __future__ import annotations

import random

PATTERNS = {"repetition": "ABAB", "recursion": "ABBB", "centre": "ABCBA"}
"""Equal letters stand for equal ones: `V H V H`, `V H H H` and `N F I F N` of the paper."""
LABELS = (" Foo", " Bar")
SHOTS, ITEMS = 6, 32


def prompts(pattern: str, seed: int, items: int = ITEMS, shots: int = SHOTS) -> list[tuple[str, int]]:
    """Prompts, and which of `LABELS` is right."""
    draw = random.Random(seed)

    def line(kind: int) -> str:
        drawn = draw.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", len(pattern))
        shape = dict(zip(dict.fromkeys(pattern), drawn))
        return " ".join(shape[place] for place in pattern) if kind == 0 else " ".join(drawn)

    found = []
    for item in range(items):
        kinds = [0, 1] * (shots // 2)
        draw.shuffle(kinds)
        lines = [f"{line(kind)}:{LABELS[kind]}" for kind in kinds]
        found.append(("\n".join([*lines, f"{line(item % 2)}:"]), item % 2))
    return found
