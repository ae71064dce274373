"""`triune emergence`: a smooth and a sharp metric of the same models, beside the phase change of induction.

A ladder of model sizes learns to add. Of the same models the share of right digits and the log-likelihood stand beside
the share of sums with every digit right. That is about the product of the digits' accuracies, which is drawn too: as
far as the two agree, a leap of whole sums beyond that of the digits is made by the metric (Schaeffer et al. 2023, "Are
Emergent Abilities of Large Language Models a Mirage?"). Beside it, induction over the steps of training (Olsson et al.
2022): a model of two attention layers learns to repeat within a short part of its training, by the smooth metric too;
one of one layer is the control.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import write_json
from ..core.options import SEED, Parser, add_output, number, picture_beside
from ..core.version import __version__

WIDTHS = "4,8,12,16,24,32,48,64"
DIGITS = 3  # of a number that is added; a sum has one more
STEPS, BATCH, RATE = 1500, 128, 4e-3
TEST_SUMS = 2000
MARKS = 40  # points of the curves of induction
PLUS, EQUALS, VOCAB = 10, 11, 12
LAYERS = (2, 1)


def parser() -> argparse.ArgumentParser:
    """The options of `triune emergence`."""
    p = Parser(
        prog="triune emergence",
        description="Train a ladder of model sizes to add, and draw a smooth metric beside a sharp one of the same "
        "models; train attention of two layers and of one to repeat, and draw a real phase change beside them.",
    )
    p.add_argument("--widths", default=WIDTHS, help=f"widths of the ladder's models, with commas (default: {WIDTHS})")
    p.add_argument("--budget", type=number(0, 100), default=1.0, help="factor on the steps of training (default: 1)")
    p.add_argument("--seed", type=SEED, default=0, help="of weights and training rows (default: 0)")
    add_output(p, "emergence.json")
    return p


def main(args: list[str]) -> int:
    """Runs `triune emergence` and returns its exit code."""
    options = parser().parse_args(args)
    picture = picture_beside(options)
    widths = chosen(options.widths)
    start = time.perf_counter()
    found: dict[str, Any] = {"command": " ".join(["triune emergence", *args]), "version": __version__, "ladder": []}
    for width in widths:
        found["ladder"].append(rung(width, max(1, round(options.budget * STEPS)), options.seed))
        print(line(found["ladder"][-1]), flush=True)
    found["induction"] = [repeats(layers, options.budget, options.seed) for layers in LAYERS]
    for run in found["induction"]:
        print(told(run), flush=True)
    found["seconds"] = round(time.perf_counter() - start, 1)
    write_json(options.output, found)
    print(verdict(found))
    draw(found, picture)
    print(f"Written: {options.output}, {picture}")
    return 0


def chosen(text: str) -> list[int]:
    """The widths of the ladder. Raises UserError for anything but at least two different ones."""
    words = [word.strip() for word in text.split(",")]
    good = all(word.isascii() and word.isdigit() and 1 < int(word) <= 1024 and int(word) % 2 == 0 for word in words)
    if not good or len(set(map(int, words))) != len(words) or len(words) < 2:
        raise UserError(
            f"--widths is '{text}', but must be at least two different even numbers from 2 to 1,024, separated by "
            "commas."
        )
    return sorted(map(int, words))


# -- the ladder -------------------------------------------------------------------------------------------------------


def sums(first: Any, second: Any) -> Any:
    """Rows `a+b=c` of digits, the highest first, int `[rows, 3 * DIGITS + 3]`; first and second int `[rows]`."""
    import torch

    def digits(values: Any, count: int) -> Any:
        return torch.stack([values // 10**place % 10 for place in reversed(range(count))], dim=1)

    plus, equals = (torch.full_like(first, sign)[:, None] for sign in (PLUS, EQUALS))
    return torch.cat(
        [digits(first, DIGITS), plus, digits(second, DIGITS), equals, digits(first + second, DIGITS + 1)], dim=1
    )


def rung(width: int, steps: int, seed: int) -> dict[str, Any]:
    """Trains a model of one width to add; its metrics on sums that it was never trained on.

    One sum in ten is for the test alone, by a residue that tells nothing about single digits: with one of 10, pairs of
    last digits would never be seen in training.
    """
    import torch
    import torch.nn.functional as F

    torch.manual_seed(seed)
    model = adder(width)
    top, generator = 10**DIGITS, torch.Generator().manual_seed(seed + 1)

    def rows(count: int, held_out: bool, source: torch.Generator) -> Any:
        terms = torch.randint(top, (2, 20 * count), generator=source)
        mine = ((terms[0] * 7 + terms[1] * 13) % 101 < 10) == held_out
        first, second = terms[:, mine][:, :count]
        return sums(first, second)

    answer = slice(2 * DIGITS + 1, 3 * DIGITS + 2)  # of the tokens before each digit of the sum
    start = time.perf_counter()

    def step(_: int) -> Any:
        batch = rows(BATCH, False, generator)
        logits = model(batch[:, :-1])[:, answer]
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:][:, answer].flatten())

    train(model, step, steps)
    test = rows(TEST_SUMS, True, torch.Generator().manual_seed(2**40))
    with torch.no_grad():
        logits = model.eval()(test[:, :-1])[:, answer]
    wanted = test[:, 1:][:, answer]
    right = logits.argmax(-1) == wanted
    share = float(right.double().mean())
    return {
        "width": width, "parameters": sum(p.numel() for p in model.parameters()), "steps": steps,
        "digit_accuracy": share, "exact_match": float(right.all(1).double().mean()),
        "log_likelihood": -float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten())),
        "expected_exact_match": float(right.double().mean(0).prod()), "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def adder(width: int) -> Any:
    """A small language model of the ladder."""
    from torch import nn

    from ..core.config import TransformerConfig
    from ..core.transformer import Transformer

    class Adder(nn.Module):
        """Int `[batch, tokens]` -> logits `[batch, tokens, VOCAB]`."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCAB, width)
            self.transformer = Transformer(
                TransformerConfig(
                    dim=width, depth=2, heads=2, causal=True, position="learned", context=16, init_std=None,
                    norm="rmsnorm", bias=False,
                )
            )  # fmt: skip
            nn.init.normal_(self.transformer.positions.weight)  # type: ignore[union-attr, arg-type]
            self.head = nn.Linear(width, VOCAB)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.transformer(self.embed(tokens)))

    return Adder()


def train(model: Any, loss: Callable[[int], Any], steps: int, rate: float = RATE, decay: bool = True) -> None:
    """Steps of AdamW on `loss(step)`, with a warm-up of a tenth and, where asked for, a cosine to zero."""
    import torch

    from ..core.training.schedules import ScheduleConfig, factor

    schedule = ScheduleConfig(kind="cosine" if decay else "constant", warmup=0.1 if decay else 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(schedule, step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


# -- induction --------------------------------------------------------------------------------------------------------


def repeats(layers: int, budget: float, seed: int) -> dict[str, Any]:
    """Trains attention of so many layers on repeated segments, at a constant rate; its score over the steps.

    Of the repeated tokens: nats, accuracy, and rows with all of them right.
    """
    import torch
    import torch.nn.functional as F

    from .models import Recaller
    from .names import choose
    from .rows import DRAW, IGNORED
    from .tasks import find

    rule, draw_rows = find("induction"), DRAW["induction"]
    steps = max(2, round(budget * rule.steps))
    torch.manual_seed(seed)
    model = Recaller(choose("attention", layers), rule.vocab, rule.length, position=rule.position)
    test = draw_rows(256, rule.length, 0, torch.Generator().manual_seed(2**40))
    asked, generator = test.targets != IGNORED, torch.Generator().manual_seed(seed)
    points: list[dict[str, Any]] = []
    marks = {round(i * steps / MARKS) for i in range(MARKS)}

    @torch.no_grad()
    def mark(step: int) -> None:
        logits = model.eval()(test.tokens)
        right = logits.argmax(-1) == test.targets
        nats = F.cross_entropy(logits[asked], test.targets[asked])
        exact = (right | ~asked).all(1).double().mean()
        points.append(
            {"step": step, "nats": float(nats), "accuracy": float(right[asked].double().mean()), "exact": float(exact)}
        )

    def loss(step: int) -> Any:
        if step in marks:
            mark(step)
            model.train()
        rows = draw_rows(rule.batch, rule.length, 0, generator)
        here = rows.targets != IGNORED
        return F.cross_entropy(model(rows.tokens)[here], rows.targets[here])

    start = time.perf_counter()
    train(model, loss, steps, rule.rate, decay=False)
    mark(steps)
    return {
        "layers": layers, "parameters": sum(p.numel() for p in model.parameters()), "steps": steps,
        "chance": rule.chance, "points": points, **change(points),
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def change(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where the nats fall fastest: the part of their whole fall that the steepest tenth of the training brings."""
    steps, nats = [p["step"] for p in points], [p["nats"] for p in points]
    window = max(1, round(0.1 * (len(points) - 1)))
    falls = [nats[i] - nats[i + window] for i in range(len(points) - window)]
    at = max(range(len(falls)), key=falls.__getitem__)
    whole = nats[0] - min(nats)
    return {
        "fall": whole, "steepest": [steps[at], steps[at + window]],
        "share_of_fall": falls[at] / whole if whole > 0 else 0.0,
    }  # fmt: skip


# -- what is shown ----------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    """A rung of the ladder in words."""
    return (
        f"width {row['width']:>4}, {row['parameters']:>7,} parameters: digits {row['digit_accuracy']:.3f}, "
        f"log-likelihood {row['log_likelihood']:.3f}, whole sums {row['exact_match']:.3f} "
        f"(digits multiplied: {row['expected_exact_match']:.3f}), {row['seconds']:.0f} s"
    )


def told(run: dict[str, Any]) -> str:
    """A run of induction in words."""
    last, (begin, end) = run["points"][-1], run["steepest"]
    return (
        f"induction, {run['layers']} layer{'s' * (run['layers'] > 1)}: nats {last['nats']:.3f}, accuracy "
        f"{last['accuracy']:.3f} after {run['steps']:,} steps; {run['share_of_fall']:.0%} of the fall in steps "
        f"{begin:,} to {end:,}, {run['seconds']:.0f} s"
    )


def leap(values: Sequence[float]) -> float:
    """The largest step between neighbours, as a part of the whole range; 0 where nothing changes."""
    span = max(values) - min(values)
    return max(abs(b - a) for a, b in itertools.pairwise(values)) / span if span else 0.0


def verdict(found: dict[str, Any]) -> str:
    """What both pictures say, in sentences that follow from the figures."""
    ladder, (two, one) = found["ladder"], found["induction"]
    smooth, sharp = (leap([row[name] for row in ladder]) for name in ("digit_accuracy", "exact_match"))
    off = max(abs(row["exact_match"] - row["expected_exact_match"]) for row in ladder)
    below = [row for row in ladder if row["exact_match"] < 0.05]
    lines = [
        f"The largest step between neighbours of the ladder is {smooth:.0%} of the range of right digits, and "
        f"{sharp:.0%} of that of whole sums; the digits' accuracies multiplied give the whole sums within {off:.2f}."
    ]
    if len(below) == len(ladder):
        lines = [
            "No model of this ladder has 5 % of the sums right, so that it shows no leap of whole sums; train longer "
            "(--budget) or wider (--widths)."
        ]
    elif below:
        best = below[-1]
        lines.append(
            f"The model of width {best['width']} has {best['exact_match']:.1%} of the sums right, and "
            f"{best['digit_accuracy']:.0%} of the digits (chance 10 %)."
        )
    lines.append(
        f"Induction: two layers reach {two['points'][-1]['accuracy']:.3f}, one layer "
        f"{one['points'][-1]['accuracy']:.3f} (chance {two['chance']:.3f}); with two, "
        f"{two['share_of_fall']:.0%} of the fall of the nats, a smooth metric, "
        "happens within a tenth of the training."
    )
    return "\n".join(lines)


def draw(found: dict[str, Any], target: Path) -> None:
    """Writes the picture: both metrics of the ladder over size, and of induction over steps."""
    from ..core.canvas import BLUE, GREY, RED, figure, plain, save

    drawn = figure(12.5, 4.3)
    smooth, sharp, phase = drawn.subplots(1, 3)
    ladder = found["ladder"]
    size = [row["parameters"] for row in ladder]
    smooth.plot(size, [row["log_likelihood"] for row in ladder], "o-", color=BLUE, markersize=4)
    smooth.set_ylabel("log-likelihood of a digit (nats)")
    smooth.set_title("addition: log-likelihood", fontsize=10)
    sharp.plot(size, [row["digit_accuracy"] for row in ladder], "o-", color=BLUE, markersize=4, label="digits right")
    sharp.plot(size, [row["exact_match"] for row in ladder], "s-", color=RED, markersize=4, label="whole sums right")
    expected = [row["expected_exact_match"] for row in ladder]
    sharp.plot(size, expected, ":", color=GREY, linewidth=1.4, label="digits multiplied")
    sharp.set_ylabel("share")
    sharp.set_title("the same models: digits, and whole sums", fontsize=10)
    sharp.legend(frameon=False, fontsize=8)
    for axis in (smooth, sharp):
        axis.set_xscale("log")
        axis.set_xticks(size, [f"{n / 1000:.0f}k" for n in size], rotation=90 if len(size) > 5 else 0)
        axis.minorticks_off()
        axis.set_xlabel("parameters")
    for run, style in zip(found["induction"], ("-", "--")):
        steps, name = [p["step"] for p in run["points"]], f"{run['layers']} layer{'s' * (run['layers'] > 1)}"
        nats = [p["nats"] for p in run["points"]]
        phase.plot(steps, nats, style, color=BLUE, label=f"{name}: nats of a repeated token")
    phase.set_ylabel("nats", color=BLUE)
    phase.set_xlabel("steps")
    phase.set_title("induction over the steps of training", fontsize=10)
    other = phase.twinx()
    for run, style in zip(found["induction"], ("-", "--")):
        steps, name = [p["step"] for p in run["points"]], f"{run['layers']} layer{'s' * (run['layers'] > 1)}"
        accuracy = [p["accuracy"] for p in run["points"]]
        other.plot(steps, accuracy, style, color=RED, linewidth=1, label=f"{name}: accuracy")
    other.set_ylabel("accuracy", color=RED)
    other.set_ylim(-0.03, 1.03)
    sharp.set_ylim(-0.03, 1.03)
    lines = [*phase.get_lines(), *other.get_lines()]
    phase.legend(
        lines,
        [entry.get_label() for entry in lines],
        frameon=False,
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=2,
    )
    for axis in (smooth, sharp, phase):
        plain(axis)
    other.spines["top"].set_visible(False)
    save(drawn, target)
