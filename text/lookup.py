"""Guessing the next tokens from the text itself, so that one forward pass gives several (prompt look-up decoding).

Where the last tokens of a text stood before, what followed there is tried: the model reads all guesses at once, and
draws the token behind each as it would have without them. A guess that equals the drawn token stands, and the first
that does not ends the round with the token that was drawn. Each token is thus drawn from the model's own chances given
all before it, with the same random numbers: greedy and sampled texts are those without guesses. (Leviathan et al. 2023
with a draft whose chances are 0 and 1; Saxena 2023 for the look-up.)
"""

from __future__ import annotations

import math

LONGEST, SHORTEST = 3, 2
"""Tokens that must stand before, at most and at least."""
COST = 0.25
"""What reading one more guess costs of a step: measured for 4-bit weights on a CPU (`bench/generation.py`)."""
FIRST, KEPT = (2.0, 3.0), 0.9
"""Guesses that were right, and all that were judged, before the first one; and what is kept of both with each."""


class Lookup:
    """Where each run of a few tokens stood last in a text that grows.

    Args:
        tokens: the text so far.
        most: tokens that are guessed at once.
    """

    def __init__(self, tokens: list[int], most: int) -> None:
        self.tokens: list[int] = []
        self.most = most
        self.right, self.judged = FIRST
        """Of the guesses of late: how many were right, and how many were compared with what was drawn."""
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Appends a token."""
        # What ends before the new token is now followed by something.
        for length in range(SHORTEST, LONGEST + 1):
            if len(self.tokens) >= length:
                self._after[tuple(self.tokens[-length:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self, room: int) -> list[int]:
        """Tokens that may follow, at most `room`; none where the last ones are new. Behind the end of the text they go
        on from their beginning, as a loop would."""
        for length in range(LONGEST, SHORTEST - 1, -1):
            at = self._after.get(tuple(self.tokens[-length:])) if len(self.tokens) >= length else None
            if at is not None:
                known = self.tokens[at : at + (count := min(self.size, room))]
                return [known[i % len(known)] for i in range(count)]
        return []

    @property
    def size(self) -> int:
        """Guesses of the next round: as many as are likelier to be right, all up to that one, than they cost.

        At least one, which costs next to nothing, and finds out where guesses are right again.
        """
        rate = self.right / self.judged
        most = self.most if rate >= COST ** (1 / self.most) else int(math.log(COST) / math.log(max(rate, 1e-9)))
        return max(1, most)

    def learn(self, guessed: int, right: int) -> None:
        """Notes that the first `right` of `guessed` tokens were those that were drawn; the one behind them was not."""
        if guessed:
            judged = min(guessed, right + 1)
            kept = KEPT**judged
            self.right, self.judged = kept * self.right + right, kept * self.judged + judged
