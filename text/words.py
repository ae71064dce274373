"""Words of a text, which spaces part, and the tokens they begin with."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..core.errors import UserError
from .tokenizer import Tokenizer

WORD = re.compile(r"\S+")


class Words(NamedTuple):
    """A text whose words have a label each.

    Args:
        tokens: int64 `[tokens]`, the special ones around the text included.
        first: the token that each word begins with, int64 `[words]`; -1 for a word without any token.
    """

    tokens: np.ndarray
    first: np.ndarray


def first_tokens(tokenizer: Tokenizer, text: str, tokens: np.ndarray, name: str = "the text") -> np.ndarray:
    """The first token of each word, int64 `[words]`; -1 for a word of which the tokenizer leaves nothing.

    A token belongs to a word when it stands for a part of it; one of a space and a letter belongs to the word of the
    letter. A token that two words share, which few tokenizers have, is the first of both.

    Args:
        tokenizer: of the model.
        text: as it was given.
        tokens: of the text without special ones, int64 `[tokens]`.
        name: what messages call the text.

    Raises:
        UserError: it cannot be said which tokens stand for which letters.
    """
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    if encoding.ids != tokens.tolist():
        raise UserError(f"The words of {name} cannot be found among its tokens; give shorter texts.")
    ends = np.maximum.accumulate(np.array([end for _, end in encoding.offsets], np.int64))
    begins = np.array([begin for begin, _ in encoding.offsets], np.int64)
    spans = np.array([match.span() for match in WORD.finditer(text)], np.int64).reshape(-1, 2)
    # Of the tokens in their order the first that ends behind the beginning of the word.
    first = np.searchsorted(ends, spans[:, 0], side="right")
    inside = np.append(begins, len(text))[np.minimum(first, len(begins))] < spans[:, 1]
    return np.where(inside & (first < len(ends)), first, -1)
