"""Questions about heads and other parts: what they look at, and what the answer loses without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError, nearest
from ..core.lens.ablate import Ablation, How, Part, ablation, alike, estimated_effects, mean_outputs, without_edges
from ..core.lens.effects import rank_correlation
from ..core.lens.scores import edges_of
from ..core.subject import Subject, Table
from ..core.work import progress
from .cost import CAUTION, SHOWN, Budget, part_named, signed, timed
from .report import Curves, Heads, Report


def heads(subject: Subject, budget: Budget, effects: str, how: How) -> Report:
    """What each head looks at, and beside it what the answer loses without it."""
    _check_heads(subject)
    scores = subject.scores()
    report = Report(f"What the heads look at: {subject.about[0]}", [*subject.about[1:]])
    whole, each = timed(subject.measure)
    lost: Tensor | None = None
    singles = subject.heads()
    points = sorted({name for name, _ in singles.values()})
    means = mean_outputs(subject.model, subject.measure, points) if how == "mean" or effects == "estimate" else None
    lost_of = torch.full(
        (1 + max(row for row, _ in singles), len(subject.columns())), float("nan"), dtype=torch.float64
    )
    if effects == "ablation":
        budget.announce(
            "Leaving out each head", len(singles), each, "pass --effects estimate (one backward pass) or --effects none"
        )
        lost = lost_of
        with progress("leaving out heads", len(singles), "passes") as step:
            for at, part in singles.items():
                lost[at] = ablation(subject.model, subject.measure, [part], how, 0, means=means, whole=whole).effect
                step(1)
        about = f"fall of the {subject.picked} without the head ({how}-ablated; whole model {whole:.3f})"
    elif effects == "estimate":
        if subject.measures == ("similarity",):
            raise UserError(
                "--effects estimate needs a slope, but the likeness to the whole model is at its largest, where it has "
                "none; take --effects ablation."
            )
        assert means is not None
        by_point = estimated_effects(subject.model, lambda: subject.score()[subject.measures[0]], means)
        lost = lost_of
        for at, (name, number) in singles.items():
            lost[at] = by_point[name][number or 0]
        about = f"estimated fall of the {subject.measures[0]} without the head (gradient × difference to its mean)"
    else:
        report.notes.append("No effects were measured: without them the scores say what is read, not what is used.")
        about = ""
    agreements: dict[str, float] = {}
    for name, values in scores.items():
        caption = "no effects were measured"
        if lost is not None:
            known = ~(values.isnan() | lost.isnan())
            agreements[name] = rank_correlation(values[known], lost[known])
            caption = f"rank correlation with the effects {signed(agreements[name])} over {int(known.sum())} heads"
        report.panels.append(
            Heads(name, values, "" if name.startswith("P@L") else "mean attention", False, caption, subject.columns())
        )
    if lost is not None:
        report.panels.append(Heads("effect", lost, "fall", True, about, subject.columns()))
        said = ", ".join(f"{name} {signed(r)}" for name, r in agreements.items())
        report.notes.append(f"Effect: {about}. Rank correlation of scores and effects over heads: {said}. {CAUTION}")
    report.tables.append(_head_table(scores, lost, subject.columns()))
    report.data = {
        "scores": scores,
        "effects": lost,
        "rank_correlations": agreements,
        "measure": subject.picked,
        "whole": whole,
    }
    return report


def _head_table(scores: dict[str, Tensor], lost: Tensor | None, names: list[str]) -> Table:
    """The heads that stand out by any score or by their effect."""
    each = max(2, SHOWN // (len(scores) + 1))
    chosen: dict[tuple[int, int], None] = {}
    for values in [*([] if lost is None else [lost]), *scores.values()]:
        flat = values.nan_to_num(nan=-torch.inf).flatten()
        for index in flat.topk(min(each, len(flat))).indices.tolist():
            chosen[divmod(index, values.shape[1])] = None
    rows = []
    for layer, head in sorted(chosen):
        cells = [float(values[layer, head]) for values in scores.values()]
        rows.append([f"{layer}.{names[head]}", *cells, *([] if lost is None else [float(lost[layer, head])])])
    columns = ["head", *scores, *([] if lost is None else ["effect"])]
    return Table("Heads that stand out, as LAYER.HEAD", columns, rows)


def ablate(subject: Subject, budget: Budget, options: Any) -> Report:
    """What the answer loses without sets of parts, or without edges, beside random sets of as many others."""
    model, controls = subject.model, options.controls
    sets, by = _sets(subject, options) if options.edges is None else ({}, None)
    whole, each = timed(subject.measure)
    count = len(sets) or 1
    budget.announce(
        f"Leaving out {count} set{'s' if count > 1 else ''}", count * (1 + controls), each, "fewer --controls or sets"
    )
    report = Report(f"What the answer loses: {subject.about[0]}", [*subject.about[1:]])
    rows: list[list[Any]] = []
    found: list[Ablation] = []

    def add(name: str, size: int, done: Ablation) -> None:
        found.append(done)
        low, high = (f(done.controls) if done.controls else None for f in (min, max))
        control = sum(done.controls) / len(done.controls) if done.controls else None
        rows.append([name, size, done.without, done.effect, control, low, high])

    with progress("leaving out sets", count, "sets") as step:
        if options.edges is not None:
            edges, heads = _edges(subject, options)
            sets = {f"edges {options.edges}": heads}
            cut = without_edges(model, subject.measure, edges, heads, controls, options.seed, subject.visible(), whole)
            add(f"edges {options.edges}" + (f" in {options.parts}" if options.parts else ""), int(edges.sum()), cut)
            step(1)
        else:
            kinds = sorted({name for parts in sets.values() for name, _ in alike(model, parts)})
            means = mean_outputs(model, subject.measure, kinds) if options.how == "mean" else None
            for name, parts in sets.items():
                args = (parts, options.how, controls, options.seed, means, whole)
                add(name, len(parts), ablation(model, subject.measure, *args))
                step(1)
    what = "edges" if options.edges is not None else "parts"
    columns = ["left out", what, subject.picked, "fall", f"random {what}: mean", "lowest", "highest"]
    report.tables.append(Table(f"{subject.picked.capitalize()} of the whole model: {whole:.3f}", columns, rows))
    done_how = (
        f"Each part is replaced ({options.how}); beside it {controls} random sets of as many other parts of its kind."
    )
    if what == "edges":
        done_how = (
            f"No value flows along the edges, in {options.parts or 'all heads'}; beside it {controls} random sets that "
            "take as many other edges from each query."
        )
    report.notes.append(
        done_how if controls else "No random controls were asked for: what any other parts would cost is not known."
    )
    if by:
        report.notes.append(f"Sets are the highest by the score '{by}', measured on the same input.")
    lines, band = {"left out": [done.without for done in found]}, None
    if controls:
        lines["random, mean"] = [sum(done.controls) / controls for done in found]
        band = ([min(done.controls) for done in found], [max(done.controls) for done in found])
    x, title = [row[1] for row in rows], f"without sets of {what}"
    report.panels.append(Curves(title, x, lines, subject.picked, f"{what} left out", band, f"whole model {whole:.3f}"))
    report.data = {
        "measure": subject.picked, "whole": whole, "how": options.how, "by": by,
        "sets": [
            {"name": name, "parts": [list(part) for part in parts], "without": done.without, "controls": done.controls}
            for (name, parts), done in zip(sets.items(), found)
        ],
    }  # fmt: skip
    return report


def _check_heads(subject: Subject) -> None:
    if not subject.heads():
        raise UserError(
            "No layer of this model attends, so it has no heads; ask for depth or patch, or for ablate --parts with "
            "0.mixed and the like."
        )


def _edges(subject: Subject, options: Any) -> tuple[Tensor, list[Part]]:
    """The edges to cut, bool `[inputs or 1, tokens, tokens]`, and where; nowhere in particular where none is named."""
    _check_heads(subject)
    if subject.picked == "contact precision" and len(getattr(subject, "chains", [])) > 1:
        raise UserError("--edges with the contact precision takes one chain, each of which runs alone; give one.")
    words = [] if options.parts is None else options.parts.split(",")
    # LAYER is all heads of a layer.
    heads = [part for word in words for part in _heads_named(subject, word.strip())]
    rules, tokens = subject.patterns(), len(subject.labels)
    if ">" not in options.edges:
        if options.edges not in rules:
            known = f"{' or '.join(rules)} here, or" if rules else "a rule has no meaning for this model; give"
            raise UserError(
                f"--edges is '{options.edges}'{nearest(options.edges, rules)}, but must be {known} a list such as "
                "7>3,8>* (query>key)."
            )
        device = next(subject.model.parameters()).device
        return edges_of(rules[options.edges](tokens, device)), heads
    edges = torch.zeros(1, tokens, tokens, dtype=torch.bool)
    for word in options.edges.split(","):
        ends = [end.strip() for end in word.split(">")]
        if len(ends) != 2 or not all(end == "*" or end.isdigit() for end in ends):
            raise UserError(f"--edges has '{word}', but must have edges such as 7>3, 8>* or *>0 (query>key).")
        if wrong := [end for end in ends if end != "*" and int(end) >= tokens]:
            raise UserError(
                f"--edges has '{word}', but the first input has places 0 to {tokens - 1}; {wrong[0]} is none."
            )
        query, key = (slice(None) if end == "*" else int(end) for end in ends)
        edges[0, query, key] = True
    if subject.causal:
        if not bool(edges.tril().any()):
            raise UserError(
                f"--edges is '{options.edges}', but no token of a causal model sees a later one; cut others."
            )
        edges = edges.tril()
    return edges, heads


def _heads_named(subject: Subject, word: str) -> list[Part]:
    layer, _, head = word.partition(".")
    if not head and layer.isdigit():
        subject.check_head(int(layer), None)
        return [part for (at, _), part in subject.heads().items() if at == int(layer)]
    part = part_named(subject, word)
    if part not in subject.heads().values():
        raise UserError(f"--parts has '{word}', but edges are cut in heads; name LAYER or LAYER.HEAD.")
    return [part]


def _sets(subject: Subject, options: Any) -> tuple[dict[str, list[Part]], str | None]:
    """Sets of parts by name, and the score they were chosen by."""
    if options.parts:
        parts = [part_named(subject, word) for word in options.parts.split(",")]
        return {options.parts: parts}, None
    _check_heads(subject)
    scores = subject.scores()
    by = options.by or next(iter(scores))
    if by not in scores:
        raise UserError(f"--by is '{by}'{nearest(by, scores)}, but must be {' or '.join(scores)} here.")
    values = scores[by]
    known = [at for at in subject.heads() if not bool(values[at].isnan())]
    order = [subject.heads()[at] for at in sorted(known, key=lambda at: -float(values[at]))]
    if options.top:
        sizes = [_size(options.top, len(order))]
    else:
        sizes = [1 << k for k in range(8) if 1 << k <= len(order) // 2]
    if not sizes or (sizes[-1] * 2 > len(order) and options.controls):
        raise UserError(
            f"--top {options.top or 1} is {sizes[-1] if sizes else 1} of {len(order)} heads, so that not as many "
            "others are left for a control; ask for fewer, or pass --controls 0."
        )
    return {f"top {size} by {by}": order[:size] for size in sizes}, by


def _size(text: str, count: int) -> int:
    """A number of heads, or a percentage of `count`, rounded up."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if text.endswith("%") and 0 < value <= 100:
        return max(1, -int(-count * value // 100))
    if not text.endswith("%") and value.is_integer() and 1 <= value <= count:
        return int(value)
    raise UserError(f"--top is '{text}', but must be a number from 1 to {count}, or a percentage such as 3%.")
