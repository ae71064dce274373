"""Guessing the next tokens from the text itself, so that one forward pass gives several (prompt look-up decoding).

Where the last tokens of a text stood before, what followed there is tried: the model reads all guesses at once, and
draws the token behind each as it would have without them. A guess that equals the drawn token stands, and the first
that does not ends the round with the token that was drawn. Each token is thus drawn from the model's own chances given
all before it, with the same random numbers: greedy and sampled texts are those without guesses. (Leviathan et al. 2023
with a draft whose chances are 0 and 1; Saxena 2023 for the look-up.)
"""

from __future__ import annotations

LONGEST, SHORTEST = 3, 2
"""Tokens that must stand before, at most and at least."""


class Lookup:
    """Where each run of a few tokens stood last in a text that grows.

    Args:
        tokens: the text so far.
        most: tokens that are guessed at once.
    """

    def __init__(self, tokens: list[int], most: int) -> None:
        self.tokens: list[int] = []
        self.most = most
        self.size = most
        """Guesses of the next round: fewer where they turned out wrong, since each costs a little."""
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
                known = self.tokens[at : at + min(self.size, room)]
                return [known[i % len(known)] for i in range(min(self.size, room))]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Adapts the number of guesses: twice as many after a round in which all were right, else one more than were
        right."""
        if guessed:
            self.size = min(self.most, 2 * self.size if right == guessed else right + 1)
