"""Questions about the way of an answer: where it comes from, at which depth it is there, what it reads and uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.lens.ablate import Part
from ..core.lens.decode import Direct, NotASum
from ..core.lens.effects import Scope, agreement, rank_correlation
from ..core.lens.patch import attribute, patch, path
from ..core.lens.points import blocks_of, has_heads, matching, points
from ..core.subject import Subject, Table
from .cost import CAUTION, SHOWN, Budget, part_named, signed, timed
from .report import Curves, Grid, Heads, Report, Tokens

PAGE_NUMBERS = 2_500_000
"""Weights of single heads that a page holds at most."""


def patched(subject: Subject, budget: Budget, options: Any) -> Report:
    """Where values of the clean input bring its answer back in a run of the corrupted one."""
    contrast = subject.contrast(options.against, options.answer)
    model = contrast.model or subject.model
    question = (model, contrast.clean, contrast.corrupted, contrast.measure)
    report = Report(f"Where the answer comes from: {subject.about[0]}", [*subject.about[1:]])
    report.notes.append(f"Measured: {contrast.about}. 1 brings the clean answer back, 0 changes nothing.")
    with torch.no_grad():
        _, each = timed(lambda: contrast.measure(model(contrast.corrupted)))
    if options.path:
        budget.announce("The path", 5, each, "a shorter input")
        sender = part_named(subject, options.path[0])
        receiver = None if options.path[1] == "answer" else part_named(subject, options.path[1])
        value = path(*question, sender, receiver)
        name = f"{_name(sender)} → {_name(receiver) if receiver else 'answer'}"
        report.tables.append(Table("Effect along one path", ["path", "effect"], [[name, value]]))
        report.data = {"path": name, "effect": value}
        return report
    positions, known = len(contrast.labels), points(model)
    where = options.where or "resid_post"
    names = [f"*.{where}"]
    places, by_head = matching(known, names[0]), has_heads(where)
    parts = sum(positions + (known[name].size if by_head else 0) for name in places)
    budget.announce("Patching layers × positions", parts, each, "a shorter input, or --where with fewer points")
    found = patch(*question, names, range(positions))
    estimate = attribute(*question, names, range(positions))
    grid = torch.stack([values[:, 0] for values in found.values()])
    guess = torch.stack([values[:, 0] for values in estimate.values()])
    error = float((grid - guess).abs().mean())
    agree = rank_correlation(grid, guess)
    rows = [name.split(".")[0] for name in found]
    report.panels.append(
        Grid(
            f"{where} by layer and position", grid, rows, contrast.labels, "share of the answer",
            f"The estimate from one backward pass has a mean error of {error:.3f}, rank correlation {signed(agree)}.",
        )
    )  # fmt: skip
    best = grid.flatten().topk(min(SHOWN, grid.numel())).indices.tolist()
    cells = [divmod(index, grid.shape[1]) for index in best]
    report.tables.append(
        Table(
            f"Largest effects of {where}", ["layer", "position", "token", "effect", "estimate"],
            [[rows[r], c, contrast.labels[c], float(grid[r, c]), float(guess[r, c])] for r, c in cells],
        )
    )  # fmt: skip
    report.notes.append(
        f"Attribution patching: mean error {error:.3f}, rank correlation {signed(agree)} with patching."
    )
    report.data = {"where": where, "labels": contrast.labels, "effects": grid, "estimates": guess}
    if by_head:
        of_heads = patch(*question, names, None, heads=True)
        width = max(known[name].size for name in places)
        values = torch.full((len(blocks_of(model)), width), float("nan"), dtype=torch.float64)
        for name, effects in of_heads.items():
            values[int(name.split(".")[0]), : effects.shape[1]] = effects[0]
        report.panels.append(Heads(f"{where} by head", values, "share of the answer", signed=True))
        report.data["by_head"] = values
        top = values.nan_to_num(nan=-torch.inf).flatten().topk(min(SHOWN, values.numel())).indices.tolist()
        pairs = [divmod(index, values.shape[1]) for index in top]
        report.tables.append(
            Table(
                f"Heads whose {where} matters most",
                ["head", "effect"],
                [[f"{a}.{b}", float(values[a, b])] for a, b in pairs],
            )
        )
    return report


def _name(part: Part) -> str:
    return part[0] if part[1] is None else f"{part[0]}:{part[1]}"


def depth(subject: Subject, options: Any) -> Report:
    """What the model's own head says after each block, and what each layer and head adds to the answer directly."""
    found = subject.depths()
    report = Report(f"What each depth says: {subject.about[0]}", [*subject.about[1:]], [found.table])
    report.notes.append(
        "The final norm and head read each depth; nothing is trained, so early depths may hold more than they show."
    )
    x = list(range(len(next(iter(found.curves.values())))))
    report.panels.append(Curves("by depth", x, found.curves, found.unit, "depth (blocks)"))
    report.data = {"curves": found.curves, "unit": found.unit}
    try:
        added = subject.direct(options.against, options.answer)
    except NotASum as error:
        if options.against or options.answer:
            raise
        report.notes.append(str(error))
        return report
    if added is not None:
        _direct(report, subject, *added)
    return report


def _direct(report: Report, subject: Subject, found: Direct, about: str) -> None:
    """Adds the direct contributions to a report."""
    kinds = list(dict.fromkeys(name.split(".")[1] for name in found.parts if name != "0.resid_pre"))
    layers = range(1 + max(int(name.split(".")[0]) for name in found.parts))
    rows: list[list[Any]] = [["input", *[None] * len(kinds), found.parts["0.resid_pre"]]]
    for layer in layers:
        cells = [found.parts.get(f"{layer}.{kind}") for kind in kinds]
        rows.append([layer, *cells, sum(cell for cell in cells if cell is not None)])
    rows.append(["rest", *[None] * len(kinds), found.rest])
    rows.append(["all", *[None] * len(kinds), found.score])
    report.tables.append(Table(f"What each layer adds directly to the {about}", ["layer", *kinds, "together"], rows))
    report.notes.append(
        f"Direct contributions to the {about}: they and the rest (biases behind the last block, a head that is not "
        "linear) sum to it, with the statistics of the final norm held fixed; what a part does through later layers is "
        "not in them (ablate and patch measure that)."
    )
    report.data |= {"answer": about, "direct": found.parts, "rest": found.rest, "score": found.score}
    if not found.heads:
        return
    places, columns = {part: place for place, part in subject.heads().items()}, subject.columns()
    values = torch.full((len(layers), len(columns)), float("nan"), dtype=torch.float64)
    for name, added in found.heads.items():
        for number, value in enumerate(added.tolist()):
            values[places[name, number]] = value
    top = values.abs().nan_to_num(nan=-1.0).flatten().topk(min(SHOWN, values.numel())).indices.tolist()
    cells = [divmod(index, len(columns)) for index in top]
    table = [[f"{layer}.{columns[column]}", float(values[layer, column])] for layer, column in cells]
    report.tables.append(Table("Heads that add or take most", ["head", "adds"], table))
    report.panels.append(Heads("direct contribution", values, "logits", signed=True, caption=f"to the {about}"))
    report.data["direct_by_head"] = values


def attention(subject: Subject, budget: Budget, options: Any) -> Report:
    """What each place of the answer reads, by weights, and what moves it, by hiding tokens."""
    scope = _scope(subject, options.head)
    tokens = len(subject.labels)
    _, each = timed(subject.once)
    weights, name = subject.weights(scope)
    reader = subject.reader()
    reads = weights if reader is None else reader.double().cpu() @ weights
    budget.announce("Measuring the effects", subject.passes(scope), each, "a shorter input or a coarser grid")
    effects, how = subject.effects(scope, options.group)
    if reader is None:  # a token's own weight and effect say nothing about what it reads of others
        own = torch.eye(tokens, dtype=torch.bool)
        effects = effects.masked_fill(own, float("nan"))
        if subject.causal:
            effects = effects.masked_fill(torch.ones_like(own).triu(1), float("nan"))
        compared = reads.masked_fill(effects.isnan(), float("nan"))
    else:
        skipped = tokens - subject.grid[0] * subject.grid[1] if subject.grid else 0
        compared = reads.clone()
        compared[:, :skipped] = float("nan")
    r = agreement(compared, effects)
    places = subject.labels if reader is None else ["answer"]
    caption = f"Rank correlation of weights and effects: {signed(r)}" + (
        " (median over places)." if len(places) > 1 else "."
    )
    report = Report(f"What is read and what is used, {name}: {subject.about[0]}", [*subject.about[1:]])
    report.notes.append(f"{caption} {CAUTION} {how}")
    known = [row for row in range(len(places)) if not bool(effects[row].isnan().all())]
    at = known[-1] if options.query is None else options.query
    if not 0 <= at < len(places):
        raise UserError(f"--query is {at}, but the answer has places 0 to {len(places) - 1}.")
    report.tables.append(_read_table(subject, reads[at], effects[at], places[at]))
    single = {} if scope is not None else _single_heads(subject, reader, tokens)
    report.panels.append(
        Tokens(
            name,
            subject.labels,
            places,
            reads,
            effects,
            caption,
            subject.grid,
            single,
            subject.extra.get("image"),
            subject.unit,
        )
    )
    tables, squares = subject.maps() if scope is None else ([], [])
    report.tables += tables
    report.panels += squares
    report.data = {"scope": name, "labels": subject.labels, "weights": reads, "effects": effects, "rank_correlation": r}
    return report


def _single_heads(subject: Subject, reader: Tensor | None, tokens: int) -> dict[str, Tensor]:
    """Weights of single heads for the page, where it can hold them."""
    if len(subject.heads()) * tokens * (tokens if reader is None else 1) > PAGE_NUMBERS:
        return {}
    found = subject.single_weights()
    return found if reader is None else {name: reader.cpu() @ weights for name, weights in found.items()}


def _scope(subject: Subject, text: str | None) -> Scope:
    """`5` is a layer, `5.3` a head, None the whole model."""
    if text is None:
        return None
    layer, _, head = text.partition(".")
    if not layer.isdigit() or (head and not head.isdigit()):
        raise UserError(f"--head is '{text}', but must be LAYER or LAYER.HEAD, such as 5.3.")
    subject.check_head(int(layer), int(head) if head else None)
    return int(layer), int(head) if head else None


def _read_table(subject: Subject, weights: Tensor, effects: Tensor, place: str) -> Table:
    order = sorted(range(len(weights)), key=lambda at: -max(0.0, float(effects[at].nan_to_num(nan=-1.0))))
    by_weight = weights.topk(min(6, len(weights))).indices.tolist()
    chosen = sorted({*order[:6], *by_weight})
    return Table(
        f"Tokens that {place!r} reads most, or that move it most",
        ["position", "token", "weight", f"effect ({subject.unit})"],
        [[at, subject.labels[at], float(weights[at]), float(effects[at])] for at in chosen],
    )  # fmt: skip
