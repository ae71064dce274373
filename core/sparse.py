"""Settings of block-sparse attention; `masks.py` says what they mean for each pair of tokens. No torch at import."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .checks import check, check_types, counts

PREFIX = "sparse."


@dataclass(frozen=True)
class SparseConfig:
    """Attention within blocks of tokens: near ones, some that all tokens share, and some at random.

    BigBird (Zaheer et al. 2020, section 2) is `around` 1 with `first`, `last` and `random`; Longformer (Beltagy et al.
    2020, section 3.1) is a window with global tokens, which are an input of the model. Blocks are counted from the
    first real token of each document.

    transformers evaluates BigBird without random blocks: the first block stands in their place, so that its keys count
    1 + (number of random blocks) times (`weight`), and short texts have full attention (`whole`).

    Args:
        block: tokens of a block.
        around: blocks to each side of its own that a token sees; with `causal` only those before.
        first: blocks at the beginning that see all tokens and that all tokens see.
        last: the same at the end; 0 with `causal`, because the end moves while a text grows.
        random: further blocks that each block sees, other ones in every layer; all heads of a layer see the same.
        seed: chooses the random blocks.
        weight: how many times keys of the first blocks count in the softmax of tokens that are not global.
        whole: documents of at most so many tokens have no limits; 0 with `causal`, because a text grows.
    """

    block: int = 64
    around: int = 1
    first: int = 1
    last: int = 0
    random: int = 0
    seed: int = 0
    weight: int = 1
    whole: int = 0

    def __post_init__(self) -> None:
        check_types(self, PREFIX)
        check(counts(self.block), f"{PREFIX}block", self.block, "a positive number of tokens")
        check(counts(self.weight), f"{PREFIX}weight", self.weight, "a positive integer")
        for name in ("around", "first", "last", "random", "seed", "whole"):
            value = getattr(self, name)
            check(0 <= value < 2**31, f"{PREFIX}{name}", value, "at least 0 and below 2^31")

    def at(self, layer: int) -> SparseConfig:
        """The settings of one layer: its random blocks are its own."""
        return dataclasses.replace(self, seed=(self.seed + layer) % 2**31) if self.random else self

    def canonical(self) -> SparseConfig:
        """The same function in one spelling."""
        weight = self.weight if self.first else 1
        return dataclasses.replace(self, seed=self.seed if self.random else 0, weight=weight)
