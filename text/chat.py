"""`triune text chat`: a conversation in the terminal, which is `triune text generate --chat` without a prompt."""

from __future__ import annotations

from .generate import main as generate


def main(args: list[str]) -> int:
    """Runs `triune text chat` and returns its exit code."""
    return generate(["--chat", *args], "triune text chat")
