"""Training of one small model on one task, and its score on rows that it has not seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..core.training.schedules import ScheduleConfig, factor
from .models import Recaller, state_bytes
from .names import choose, sized
from .rows import DRAW, IGNORED, Rows, divergence
from .tasks import Task, find

SCHEDULES = {"cosine": ScheduleConfig(kind="cosine", warmup=0.1), "wsd": ScheduleConfig(kind="wsd", warmup=0.05)}
TEST_TOKENS = 1 << 16
ENOUGH = 0.999
Watch = Callable[[int, int, float], None]
"""`watch(step, steps, loss)` is called after every step."""


def recall(
    mixer: str = "attention", task: str = "mqar", pairs: int | None = None, length: int | None = None,
    state: int | None = None, steps: int | None = None, depth: int | None = None, dim: int = 64, seed: int = 0,
    watch: Watch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains a model with one mixer on one task from the start, and scores it.

    Args:
        mixer: see `names.choose`; also one of your own, by the name that `register_mixer` gave it.
        task: one of `tasks.TASKS`.
        pairs: pairs to remember, or tokens to copy.
        length: of a row in tokens.
        state: size of the state, of mixers that have such an option.
        steps: of training.
        depth: number of layers; a pattern has its own.
        dim: width of the token vectors.
        seed: of the weights and of the training rows; the test rows are always the same.
        watch: is told of every step.

    Returns:
        The settings; `accuracy` over all questions, `exact` (rows with all of them right), `slices`, for `lag` also
        `kl` in nats and its `oracles`; `chance`; `state_bytes` of one row, `parameters`, `seconds`, and `history`, the
        accuracy after each twentieth of the steps, which end early when two in a row reach `ENOUGH`.

    Raises:
        UserError: a value out of range, or one that is not used.
    """
    rule = find(task)
    numbers = {"steps": steps, "depth": depth, "state": state, "dim": dim, "pairs": pairs, "length": length}
    for name, value in {**numbers, "seed": seed}.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{name} is {value!r}, but must be a whole number; change it.")
    for name in ("steps", "depth", "state", "dim"):
        if numbers[name] is not None and numbers[name] < 1:
            raise UserError(f"{name} is {numbers[name]}, but must be at least 1; change it.")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}, but must be from 0 to 2^63 - 1; change it.")
    length, count = rule.check(rule.length if length is None else length, pairs)
    choice = choose(mixer, depth or rule.depth)
    if depth is not None and len(choice.layers) != depth:
        raise UserError(f"depth is {depth}, but the pattern {mixer} has {len(choice.layers)} layers; leave depth out.")
    if state is not None and not any(sized(kind, state) for kind in choice.layers):
        raise UserError(f"state is {state}, but mixer {mixer} has no such size; leave it out.")
    steps = steps or rule.steps
    torch.manual_seed(seed)
    model = Recaller(choice, rule.vocab, length, dim, state, rule.position)
    start = time.perf_counter()
    test = DRAW[task](max(256, TEST_TOKENS // length), length, count, torch.Generator().manual_seed(2**40))
    history = _train(model, rule, test, length, count, steps, seed, watch)
    return {
        "task": task, "mixer": mixer, "layers": list(choice.layers), "pairs": count if rule.pairs else None,
        "length": length, "state": state, "dim": dim, "depth": len(choice.layers), "steps": steps, "seed": seed,
        **score(model, test), "chance": rule.chance, "state_bytes": state_bytes(model, length),
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": round(time.perf_counter() - start, 1),
        "history": history,
    }  # fmt: skip


def _train(
    model: Recaller, rule: Task, test: Rows, length: int, pairs: int, steps: int, seed: int, watch: Watch | None
) -> list[tuple[int, float]]:
    """Trains `model`; returns pairs of step and accuracy on a part of the test rows.

    It ends when two in a row reach `ENOUGH`.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1 if rule.vocab > 5 else 0.0},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rule.rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    some = len(test.tokens) // 8
    part = Rows(test.tokens[:some], test.targets[:some])
    history = []
    for step in range(steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = rule.rate * factor(SCHEDULES[rule.schedule], step, steps)
        batch, short = rule.batch_at(length, pairs, step, steps)
        rows = DRAW[rule.name](batch, short, pairs, generator)
        asked = rows.targets != IGNORED
        loss = F.cross_entropy(model.head(model.hidden(rows.tokens)[asked]), rows.targets[asked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if watch:
            watch(step + 1, steps, float(loss.detach()))
        if (step + 1) % max(1, steps // 20) == 0:
            history.append((step + 1, score(model, part)["accuracy"]))
            if short == length and len(history) > 1 and min(accuracy for _, accuracy in history[-2:]) >= ENOUGH:
                break
    return history


@torch.no_grad()
def score(model: Recaller, rows: Rows) -> dict[str, Any]:
    """`accuracy`, `exact`, and where the rows have them `slices`, `kl` and `oracles`."""
    model.eval()
    logits = torch.cat([model(part) for part in rows.tokens.split(128)])
    asked, right = rows.targets != IGNORED, logits.argmax(-1) == rows.targets
    found: dict[str, Any] = {
        "accuracy": float(right[asked].double().mean()),
        "exact": float((right | ~asked).all(1).double().mean()),
    }
    if rows.slices is not None and int(rows.slices.max()):
        found["slices"] = _by_slice(right, asked, rows.slices)
    if rows.truth is not None:
        found["kl"] = divergence(rows.truth, logits[:, -1].double().softmax(-1))
        found["oracles"] = rows.oracles
    return found


def _by_slice(right: Tensor, asked: Tensor, slices: Tensor) -> dict[str, float]:
    """Accuracy by quarters of the row's length between a pair and its question."""
    found = {}
    for number in range(4):
        here = asked & (slices == number)
        if bool(here.any()):
            found[f"{number}/4 to {number + 1}/4"] = float(right[here].double().mean())
    return found
