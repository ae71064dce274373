"""The loop that writes answers: one thread with the model, which writes what waits together, a token of each at a time.

Answers that arrive while others are written join them at the next pause: all texts are then read again side by side,
which costs one forward pass. Whoever goes away is left out at the next token.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..generate import Continuation
from ..model import LanguageModel
from ..sampling import Row, Views, draw
from ..tokenizer import Tokenizer
from .requests import Job

PAUSE = 16
"""Tokens between two moments at which waiting answers may join."""


@dataclass
class Event:
    """News of an answer: text that is new, how many tokens so far, and at its end why (`stop`, `length`, `error`)."""

    text: str = ""
    tokens: int = 0
    reason: str | None = None
    error: str = ""


@dataclass
class Answer:
    """An answer on its way.

    Args:
        job: what is wanted.
        tell: called with each `Event`, from the thread of the model.
    """

    job: Job
    tell: Callable[[Event], None]
    cancelled: bool = False
    finished: bool = False
    row: Row | None = field(default=None, repr=False)
    text: Continuation | None = field(default=None, repr=False)


class Engine:
    """Writes answers, several at a time.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        batch: answers that are written together.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch: int) -> None:
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        self._waiting: queue.Queue[Answer | None] = queue.Queue()
        self._numbers = 0
        self.steps = 0
        """Forward passes so far."""
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the token that is being written."""
        self._stopped = True
        self._waiting.put(None)
        self._thread.join(timeout=10)

    _stopped = False

    def add(self, answer: Answer) -> None:
        """Writes an answer as soon as there is room."""
        self._waiting.put(answer)

    def _work(self) -> None:
        while not self._stopped:
            first = self._waiting.get()
            if first is None:
                return
            batch = self._joined([first])
            try:
                self._write(batch)
            except Exception as error:  # of any kind: the server goes on, and those who wait are told
                line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                for answer in batch:
                    answer.tell(Event(reason="error", error=f"The model failed ({line}); try again."))

    def _joined(self, batch: list[Answer]) -> list[Answer]:
        """`batch` with the answers that wait, as many as there is room for."""
        while len(batch) < self.batch and not self._stopped:
            try:
                answer = self._waiting.get_nowait()
            except queue.Empty:
                break
            if answer is None:
                self._stopped = True
            elif not answer.cancelled:
                batch.append(answer)
        for answer in batch:
            if answer.row is None:
                job = answer.job
                generator = None if job.seed is None else torch.Generator().manual_seed(job.seed)
                answer.row = Row(self._numbers, list(job.ids), generator)
                answer.text = Continuation(self.tokenizer, job.stops, job.ids, job.lead)
                self._numbers += 1
        return batch

    @torch.inference_mode()
    def _write(self, batch: list[Answer]) -> None:
        """Writes until nobody of `batch`, which grows and shrinks in place, waits for a token."""
        device = next(self.model.parameters()).device
        views: Views | None = None
        since = 0
        while batch and not self._stopped:
            if since >= PAUSE and len(batch) < self.batch and not self._waiting.empty():
                before = len(batch)
                self._joined(batch)
                views = views if len(batch) == before else None
                since = 0
            gone = [at for at, answer in enumerate(batch) if answer.cancelled]
            if gone:
                self._leave(batch, views, [at for at in range(len(batch)) if at not in gone])
                continue
            left = max(answer.job.tokens - self._written(answer) for answer in batch)
            if views is None:
                rows = [answer.row for answer in batch if answer.row is not None]
                views = Views(self.model, rows, device, True)
            logits = views.logits(left)[:, -1]
            self.steps += 1
            since += 1
            keep = [at for at, answer in enumerate(batch) if not self._push(answer, logits[at : at + 1])]
            self._leave(batch, views, keep)

    @staticmethod
    def _leave(batch: list[Answer], views: Views | None, keep: list[int]) -> None:
        if len(keep) == len(batch):
            return
        if views is not None and keep:
            views.select(keep)
        batch[:] = [batch[at] for at in keep]

    @staticmethod
    def _written(answer: Answer) -> int:
        return 0 if answer.row is None else len(answer.row.tokens) - len(answer.job.ids)

    def _push(self, answer: Answer, logits: torch.Tensor) -> bool:
        """Draws a token for an answer and tells what became of it; whether that was the last."""
        row, text = answer.row, answer.text
        assert row is not None and text is not None
        (token,) = draw(logits, answer.job.config, [row.generator]).tolist()
        row.tokens.append(token)
        ended = token in self.tokenizer.end_ids
        shown = "" if ended else text.push(token)
        written = self._written(answer)
        reason: Any = "stop" if ended or text.done else "length" if written >= answer.job.tokens else None
        if reason is not None:
            shown += text.flush()
        if shown or reason is not None:
            answer.tell(Event(shown, written, reason))
        return reason is not None
