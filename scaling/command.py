"""`triune scaling`: a law of the loss over parameters and tokens, and what it predicts for more compute."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import few, write_json
from ..core.options import SEED, Parser, add_output, picture_beside, whole
from ..core.version import __version__


def parser() -> argparse.ArgumentParser:
    """The options of `triune scaling`."""
    p = Parser(
        prog="triune scaling",
        description="Fit loss = E + A / parameters^alpha + B / tokens^beta to runs (Hoffmann et al. 2022), with "
        "intervals by bootstrap over the runs, and predict what more compute reaches.",
        epilog="A run counts with the parameters, tokens and val_loss in its summary.json; it needs a schedule that "
        "ended, and all runs the same validation data. Where all runs have the same parameters or the same tokens, "
        "that term is left out.",
    )
    p.add_argument(
        "runs", nargs="+", metavar="RUN|TABLE",
        help="run folders of one task, or one CSV or TSV file with the columns parameters, tokens and loss",
    )  # fmt: skip
    p.add_argument(
        "--more", type=whole(2, 10**9), default=10, help="how many times the largest compute to predict (default: 10)"
    )
    p.add_argument(
        "--bootstrap", type=whole(0, 10_000), default=200,
        help="samples of the runs for the intervals; 0 for none (default: 200)",
    )  # fmt: skip
    p.add_argument("--seed", type=SEED, default=0, help="of the samples (default: 0)")
    add_output(p, "scaling.json")
    return p


def main(args: list[str]) -> int:
    """Runs `triune scaling` and returns its exit code."""
    options = parser().parse_args(args)
    picture = picture_beside(options)
    from .law import bootstrap, fit
    from .runs import read

    runs = read(options.runs)
    for note in runs.notes:
        print(f"note: {note}", file=sys.stderr)
    if not len(runs.loss):
        raise UserError(f"None of {few(options.runs)} can be used; give runs that have ended, or rows.")
    law = fit(runs.parameters, runs.tokens, runs.loss)
    laws = []
    if options.bootstrap:
        laws = bootstrap(runs.parameters, runs.tokens, runs.loss, law, options.bootstrap, options.seed)
        if not laws:
            print(f"note: {len(runs.loss)} runs are too few for intervals by bootstrap.", file=sys.stderr)
    found = summary(runs, law, laws, options.more)
    write_json(options.output, {"command": " ".join(["triune scaling", *args]), "version": __version__, **found})
    print(table(found))
    draw(runs, law, laws, found, picture)
    print(f"Written: {options.output}, {picture}")
    return 0


def summary(runs: Any, law: Any, laws: list[Any], more: int) -> dict[str, Any]:
    """Everything that is printed, drawn and written: the numbers of the law, its errors, and the prediction."""
    import numpy as np

    from .law import FLOPS_PER, LARGEST, interval

    def entry(of: Any) -> dict[str, Any]:
        return {"value": float(of(law)), "interval": interval([float(of(sample)) for sample in laws]) if laws else None}

    sizes, seen = law.a > 0, law.b > 0
    numbers = {"E": entry(lambda x: x.e)}
    if sizes:
        numbers |= {"A": entry(lambda x: x.a), "alpha": entry(lambda x: x.alpha)}
    if seen:
        numbers |= {"B": entry(lambda x: x.b), "beta": entry(lambda x: x.beta)}
    predicted = law.loss(runs.parameters, runs.tokens)
    errors = np.log(predicted) - np.log(runs.loss)
    compute = float((FLOPS_PER * runs.parameters * runs.tokens).max())
    found: dict[str, Any] = {
        "runs": [
            {"name": name, "parameters": n, "tokens": d, "loss": loss, "predicted": float(p)}
            for name, n, d, loss, p in zip(
                runs.names, *(v.tolist() for v in (runs.parameters, runs.tokens, runs.loss)), predicted, strict=True
            )
        ],
        "unit": runs.unit,
        "law": numbers,
        "error": {"root_mean_square": float(np.sqrt((errors**2).mean())), "largest": float(np.abs(errors).max())},
        "largest_compute": compute,
        "warnings": [],
    }
    for name, value in (("alpha", law.alpha if sizes else 0.0), ("beta", law.beta if seen else 0.0)):
        if value >= 0.999 * LARGEST:
            found["warnings"].append(f"{name} is at its bound of {LARGEST:g}: the runs do not tell it.")
    if law.e == 0:
        found["warnings"].append("E is 0, its bound: the runs are too far from the floor of the loss to tell it.")
    if sizes and seen:
        best = law.best(more * compute)
        found["shares"] = {"parameters": entry(lambda x: x.shares[0]), "tokens": entry(lambda x: x.shares[1])}
        found["prediction"] = {
            "compute": more * compute,
            "parameters": entry(lambda x: x.best(more * compute)[0]),
            "tokens": entry(lambda x: x.best(more * compute)[1]),
            "loss": entry(lambda x: x.loss(*x.best(more * compute))),
        }
        best_now = law.best(compute)
        found["best_now"] = {"parameters": best_now[0], "tokens": best_now[1], "loss": float(law.loss(*best_now))}
    else:
        n, d = float(runs.parameters.max()), float(runs.tokens.max())
        best = (more * n, d) if sizes else (n, more * d)
        found["prediction"] = {"parameters": best[0], "tokens": best[1], "loss": entry(lambda x: x.loss(*best))}
    found["more"] = more
    return found


def table(found: dict[str, Any]) -> str:
    """The law and its prediction, as lines for a terminal."""
    from ..core.training.run.progress import short

    def shown(entry: dict[str, Any] | float, form: Any) -> str:
        if not isinstance(entry, dict):
            return form(entry)
        low_high = entry["interval"]
        return form(entry["value"]) + (f"  [{form(low_high[0])}, {form(low_high[1])}]" if low_high else "")

    def number(x: float) -> str:
        return f"{x:.4g}"

    unit, law = found["unit"], found["law"]
    terms = ["A / parameters^alpha"] * ("A" in law) + [f"B / {unit}^beta"] * ("B" in law)
    lines = [f"loss = E + {' + '.join(terms)}, fitted to {len(found['runs'])} runs"]
    if law["E"]["interval"]:
        lines[0] += "; in brackets 95 % of the samples"
    lines += [f"  {name:<7}{shown(entry, number)}" for name, entry in law.items()]
    error = found["error"]
    lines.append(
        f"  error of the fit: {error['root_mean_square']:.2%} of the loss (root mean square), "
        f"at most {error['largest']:.2%}"
    )
    if "shares" in found:
        lines.append(f"Best use of more compute, 6 · parameters · {unit}")
        names = {"parameters": "parameters", "tokens": unit}
        lines += [f"  {names[name]} ~ compute^{shown(entry, number)}" for name, entry in found["shares"].items()]
        now = found["best_now"]
        lines.append(
            f"  at the largest compute of the runs: {short(now['parameters'])} parameters, "
            f"{short(now['tokens'])} {unit}, loss {now['loss']:.4f}"
        )
        what = f"{found['more']} times that compute"
    else:
        what = f"{found['more']} times the {'parameters' if 'A' in law else unit}"
    told = found["prediction"]
    lines.append(
        f"Prediction for {what}: loss {shown(told['loss'], lambda x: f'{x:.4f}')}\n"
        f"  parameters {shown(told['parameters'], short)}, {unit} {shown(told['tokens'], short)}"
    )
    return "\n".join(lines + [f"warning: {text}" for text in found["warnings"]])


def draw(runs: Any, law: Any, laws: list[Any], found: dict[str, Any], target: Path) -> None:
    """Writes the picture: the runs with the law's curves, and the lowest loss over compute with the prediction."""
    import numpy as np

    from ..core.canvas import BLUE, GREY, RED, figure, plain, save
    from .law import FLOPS_PER, interval

    both = "shares" in found
    drawn = figure(9.6 if both else 5.2, 3.8)
    axes = drawn.subplots(1, 2 if both else 1, squeeze=False)[0]
    across, within = (runs.tokens, runs.parameters) if law.b else (runs.parameters, runs.tokens)
    line = np.geomspace(across.min() / 1.3, across.max() * 1.3, 100)
    values = np.unique(within)
    shades = np.linspace(0.35, 1.0, len(values))
    for value, shade in zip(values, shades, strict=True):
        rows = within == value
        curve = law.loss(value, line) if law.b else law.loss(line, value)
        axes[0].plot(line, curve, color=BLUE, alpha=shade, linewidth=1)
        axes[0].plot(across[rows], runs.loss[rows], "o", color=BLUE, alpha=shade, markersize=4)
    axes[0].set_xlabel(found["unit"] if law.b else "parameters")
    axes[0].set_title("runs, and the law (darker: more parameters)" if both else "runs, and the law", fontsize=10)
    if both:
        compute = np.geomspace((FLOPS_PER * runs.parameters * runs.tokens).min(), found["prediction"]["compute"], 100)
        lowest = [float(law.loss(*law.best(c))) for c in compute]
        if laws:
            bands = np.array([interval([float(x.loss(*x.best(c))) for x in laws]) for c in compute])
            axes[1].fill_between(compute, *bands.T, color=BLUE, alpha=0.15, linewidth=0)
        axes[1].plot(compute, lowest, color=BLUE, linewidth=1.2, label="best use of the compute")
        axes[1].plot(FLOPS_PER * runs.parameters * runs.tokens, runs.loss, "o", color=GREY, markersize=4, label="runs")
        axes[1].plot(compute[-1], lowest[-1], "D", color=RED, markersize=5, label=f"{found['more']} times the compute")
        axes[1].set_xlabel(f"compute (6 · parameters · {found['unit']})")
        axes[1].set_title("lowest loss over compute", fontsize=10)
        axes[1].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_ylabel("loss")
        plain(axis)
    save(drawn, target)
