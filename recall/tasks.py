"""The tasks and their settings; `rows.py` draws their rows. No torch at import.

| name      | a row                                                       | asked                            |
|-----------|-------------------------------------------------------------|----------------------------------|
| mqar      | pairs of a key and a value, then keys among random tokens   | the value of each key            |
| induction | a segment of random tokens, repeated                        | each token of the repetitions    |
| copy      | tokens scattered among blanks, then markers                 | the tokens in their order        |
| lag       | a Markov chain whose lag, 1 to 3, differs from row to row   | the distribution of each token   |
| needle    | pairs in the first half of a long row, keys at its very end | the value of each key            |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError

VOCAB = 256
LAGS, STATES = (1, 2, 3), 5


@dataclass(frozen=True)
class Task:
    """One task, with its default settings.

    Args:
        name: of the task.
        about: in a few words.
        vocab: number of tokens.
        length: of a row in tokens.
        pairs: number of pairs, or of tokens to copy; 0 where there is no such number.
        steps: of training.
        batch: rows in a batch.
        depth: number of layers.
        rate: highest learning rate.
        shortest: length of the shortest row that holds so many pairs.
        chance: accuracy of saying one of the possible answers at random.
        most: the largest number of pairs.
        position: how attention is told positions; see `TransformerConfig.position`.
        schedule: how the learning rate falls; see `ScheduleConfig.kind`.
        doublings: training starts with rows shorter by so many halvings, which takes half of the steps; the rest is
            shared by the lengths up to the whole one.
    """

    name: str
    about: str
    vocab: int
    length: int
    pairs: int
    steps: int
    batch: int
    depth: int
    rate: float
    shortest: Callable[[int], int]
    chance: float
    most: int = 0
    position: str = "learned"
    schedule: str = "cosine"
    doublings: int = 0

    def batch_at(self, length: int, pairs: int, step: int, steps: int) -> tuple[int, int]:
        """Rows and tokens a row of a training step: as many tokens as at the end, but at most 64 rows."""
        longer = 0 if 2 * step < steps else 1 + (2 * step - steps) * self.doublings // steps
        short = max(length >> max(0, self.doublings - longer), min(length, self.shortest(pairs)))
        return (self.batch if short == length else min(64, self.batch * length // short)), short

    def check(self, length: int, pairs: int | None) -> tuple[int, int]:
        """The length and number of pairs to use.

        Raises:
            UserError: they do not go together.
        """
        if pairs is not None and not self.pairs:
            raise UserError(f"pairs is {pairs}, but the task {self.name} has none; leave it out.")
        pairs = self.pairs if pairs is None else pairs
        if self.pairs and not 1 <= pairs <= self.most:
            raise UserError(f"pairs is {pairs}, but must be from 1 to {self.most} in the task {self.name}; change it.")
        if length < (least := self.shortest(pairs)):
            room = f" for {pairs} pairs" if self.pairs else ""
            raise UserError(
                f"length is {length}, but must be at least {least}{room} in the task {self.name}; make it larger."
            )
        return length, pairs


def _four(pairs: int) -> int:
    return 4 * pairs


_ALL = (
    Task("mqar", "recall of values by their keys", VOCAB, 64, 8, 1500, 64, 2, 3e-3, _four, 2 / VOCAB, 127),
    Task("induction", "repetition of a segment", 65, 64, 0, 800, 64, 2, 3e-3, lambda _: 16, 1 / 64),
    Task("copy", "selective copying", 16, 64, 8, 1500, 64, 2, 3e-3, lambda pairs: 2 * pairs, 1 / 14, 4096),
    # With learned positions the lags are found late (KL 0.085 to 0.193 after 1,200 steps of a cosine, seed 0).
    Task(
        "lag", "selection of a lag", STATES, 64, 0, 900, 128, 3, 1e-3, lambda _: 8, 1 / STATES, 0, "rotary", "wsd"
    ),
    # Rotary, because a table of positions would be half untrained when the rows grow.
    Task(
        name="needle", about="recall far outside of a window", vocab=VOCAB, length=512, pairs=4, steps=600,
        batch=16, depth=2, rate=3e-3, shortest=_four, chance=4 / VOCAB, most=63, position="rotary", doublings=4,
    ),
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find(name: str) -> Task:
    """The task of that name. Raises UserError when there is none."""
    if name not in TASKS:
        raise UserError(f"task is '{name}', but must be one of {', '.join(TASKS)}.")
    return TASKS[name]


def settings(task: Task) -> dict[str, Any]:
    """The default settings of a task by name."""
    return {name: getattr(task, name) for name in ("length", "pairs", "steps", "batch", "depth", "rate")}
