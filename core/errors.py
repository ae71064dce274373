"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend: the command line prints its text as one sentence and exits with 2.

    The text names the file or value, says what is allowed and what to do next.
    """

    said = False
    """Whether another process of the same training says it."""


class Stopped(BaseException):
    """A signal has ended the work, after everything was saved; `code` is the exit code of the command line.

    No Exception, as KeyboardInterrupt is none: whoever goes on after an error must not go on after a signal.
    """

    def __init__(self, code: int, text: str = "Stopped.") -> None:
        super().__init__(text)
        self.code = code


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the closest of `allowed`, or an empty string."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
