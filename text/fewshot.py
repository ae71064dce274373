"""Few-shot patterns of letters, on which `triune lens` measures what heads are good for (Crosbie and Shutova 2024).

A prompt holds a few lines such as `A B A B: Foo`, half of them with the pattern and half random letters, which are
`Bar`; measured is the label of the last line. Half of the prompts have the pattern there, so chance is 0.5.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.files import few
from .lens import TextSubject

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


@dataclass
class FewShotSubject(TextSubject):
    """A language model with prompts; heads are scored on random tokens that repeat.

    Args:
        scored: the model with these tokens.
        labels_of: the first tokens of `LABELS`.
        right: int `[prompts]`, which of them is right.
    """

    scored: TextSubject | None = None
    labels_of: tuple[int, int] = (0, 1)
    right: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    measures: tuple[str, ...] = ("accuracy", "log-probability")

    def score(self) -> dict[str, Tensor]:
        """Of the two labels: how often the right one is likelier, and the log of its share in nats."""
        last = self.model.hidden(self.ids, valid=self.valid)[:, -1:]
        chances = self.model.logits(last)[:, 0, list(self.labels_of)].float().log_softmax(-1)
        own = chances.gather(1, self.right[:, None]).mean()
        return {"accuracy": (chances.argmax(-1) == self.right).float().mean(), "log-probability": own}

    def scores(self) -> dict[str, Tensor]:
        assert self.scored is not None
        return self.scored.scores()


def few_shot(model: Any, tokenizer: Any, name: str, scored: TextSubject, options: Any) -> FewShotSubject:
    """The prompts of a pattern for a model.

    Raises:
        UserError: the model reads too little, or does not tell the labels apart by their first token.
    """
    found = prompts(PATTERNS[name], options.seed)
    rows = [tokenizer.beginning + tokenizer.encode(text).tolist() for text, _ in found]
    longest = max(map(len, rows))
    if longest > model.config.transformer.context:
        raise UserError(
            f"--prompts {name} take {longest} tokens, but the model reads {model.config.transformer.context}; leave "
            "them out."
        )
    labels = [tokenizer.encode(label).tolist()[:2] for label in LABELS]
    if labels[0][:1] == labels[1][:1]:
        raise UserError(f"The labels {few(LABELS)} begin with the same token for this model; leave --prompts out.")
    device, pad = model.embedding.weight.device, tokenizer.eos_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    starts = torch.tensor([longest - len(row) for row in rows], device=device)
    valid = torch.arange(longest, device=device) >= starts[:, None]
    shape = " ".join(PATTERNS[name])
    about = [
        scored.about[0],
        f"{len(rows)} prompts of {SHOTS} examples of `{shape}` (Foo) and random letters (Bar), seed {options.seed}; "
        f"chance 0.5; the first is {found[0][0]!r}",
        "heads are scored on random tokens that repeat",
    ]
    names = [tokenizer.decode([token], skip_special=False) for token in rows[0]]
    return FewShotSubject(
        model, about, names, options.measure or "", tokenizer=tokenizer, ids=ids, right=torch.tensor(
            [right for _, right in found], device=device
        ), valid=valid if bool(starts.any()) else None, scored=scored, labels_of=(labels[0][0], labels[1][0]),
    )  # fmt: skip
