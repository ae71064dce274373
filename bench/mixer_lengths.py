"""Time and memory of a training step over the number of tokens: attention, sparse forms of it, and recurrent mixers.

    python bench/mixer_lengths.py [--shapes image protein text] [--lengths 64 128 ...]
    python bench/mixer_lengths.py --draw       the picture docs/mixer-lengths.png alone, from the last result

Blocks of ViT-Ti (`image`), of ESM-2 8M (`protein`), both reading in both directions, and of a small causal model
(`text`). All mixers have the same number of parameters, to one in a hundred, by the width of their feed-forwards, and
each step reads the same number of tokens, in fewer rows where these are longer. A run keeps what the file has of other
shapes and lengths. Time is that of the processor on one
thread (not of the clock, so that other programs count little), the best of several rounds in turns; memory what
autograd keeps for the backward pass, without parameters. `crossing` is the shortest length from which on the mixer
takes less than attention.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, record, table
from torch import Tensor

from triune.core.canvas import BLUE, GREEN, GREY, RED, figure, plain, save
from triune.core.config import TransformerConfig
from triune.core.sparse import SparseConfig
from triune.core.transformer import Transformer

SHAPES: dict[str, dict[str, Any]] = {
    "image": {"dim": 192, "heads": 3, "causal": False},
    "protein": {"dim": 320, "heads": 20, "causal": False},
    "text": {"dim": 256, "heads": 4, "causal": True},
}
MIXERS: dict[str, dict[str, Any]] = {
    "attention": {},
    "window 128": {"window": 128},
    "blocks of 64": {"sparse": SparseConfig(block=64, around=1, first=1, random=1)},
    "mamba2": {"mixer": "mamba2", "mixer_options": {"mamba2": {"expand": 1}}},
    "gated_delta": {"mixer": "gated_delta"},
}
DEPTH = 2
FILE = RESULTS / "mixer_lengths.json"


def build(shape: str, mixer: str, wanted: int | None = None) -> Transformer:
    """Two blocks; with `wanted` of about so many parameters."""

    def of(width: int) -> Transformer:
        recurrent = "mixer" in MIXERS[mixer]
        return Transformer(
            TransformerConfig(
                depth=DEPTH, ffn_dim=width, position="none" if recurrent else "rotary", context=1 << 16,
                **SHAPES[shape], **MIXERS[mixer],
            )
        )  # fmt: skip

    if wanted is None:
        return of(4 * SHAPES[shape]["dim"])
    one, two = parameters(of(8)), parameters(of(16))
    return of(8 + 8 * round((wanted - one) / (two - one)))


def parameters(model: Transformer) -> int:
    return sum(p.numel() for p in model.parameters())


def kept(model: Transformer, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)  # held, so that no storage is freed and its place taken by another one
    del y
    return sum(found.values())


def step(model: Transformer, x: Tensor) -> float:
    """Seconds of the processor for a forward and a backward pass."""
    start = time.process_time()
    model(x).sum().backward()
    seconds = time.process_time() - start
    model.zero_grad(set_to_none=True)
    return seconds


def crossing(rows: list[dict[str, Any]], shape: str, mixer: str, what: str) -> int | None:
    """The shortest length from which on `mixer` takes less than attention; None if it does not at the longest."""
    mine, full = (
        {r["tokens"]: r[what] for r in rows if (r["shape"], r["mixer"]) == (shape, m)} for m in (mixer, "attention")
    )
    found = None
    for tokens in sorted(mine, reverse=True):
        if mine[tokens] >= full[tokens]:
            break
        found = tokens
    return found


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Time and memory over length, as multiples of attention's."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    full = {(r["shape"], r["tokens"]): r for r in rows if r["mixer"] == "attention"}
    drawn = figure(11, 3.4 * len(shapes))
    axes = drawn.subplots(len(shapes), 2, squeeze=False)
    for line, shape in zip(axes, shapes):
        for axis, what, name in zip(line, ("seconds", "megabytes"), ("time", "memory for the backward pass")):
            axis.axhline(1.0, color=GREY, linestyle=":", linewidth=1.2)
            for mixer, color in zip(list(MIXERS)[1:], (BLUE, GREEN, RED, "#e0a030")):
                here = [r for r in rows if (r["shape"], r["mixer"]) == (shape, mixer)]
                ratios = [r[what] / full[shape, r["tokens"]][what] for r in here]
                axis.plot([r["tokens"] for r in here], ratios, color=color, marker="o", label=mixer)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_xlabel("tokens")
            axis.set_ylabel("multiple of attention's")
            axis.set_title(f"{shape}: {name} of a training step", loc="left", fontsize=11)
            plain(axis)
        line[1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(drawn, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    picture = Path(__file__).parent.parent / "docs" / "mixer-lengths.png"
    if options.draw:
        draw(json.loads(FILE.read_text())["rows"], picture)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for shape in options.shapes:
        full = parameters(build(shape, "attention"))
        models = {mixer: build(shape, mixer, full) for mixer in MIXERS}
        for length in options.lengths:
            keep(measure(shape, models, length, options.tokens, options.rounds), options.tokens)
    draw(json.loads(FILE.read_text())["rows"], picture)


def measure(shape: str, models: dict[str, Transformer], length: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each mixer."""
    x = torch.randn(tokens // length, length, SHAPES[shape]["dim"])
    seconds: dict[str, list[float]] = {mixer: [] for mixer in models}
    for turn in range(rounds + 1):
        for mixer, model in models.items():
            taken = step(model, x)
            seconds[mixer] += [taken] if turn else []
    rows = []
    for mixer, model in models.items():
        known = {"shape": shape, "mixer": mixer, "tokens": length, "parameters": parameters(model)}
        spread = {"seconds": min(seconds[mixer]), "slowest": max(seconds[mixer])}
        rows.append(known | spread | {"megabytes": kept(model, x) / 1e6})
    print(table(rows), flush=True)
    return rows


def keep(rows: list[dict[str, Any]], tokens: int) -> None:
    """Writes the rows to those of other shapes and lengths."""
    new = {(row["shape"], row["tokens"]) for row in rows}
    held = json.loads(FILE.read_text())["rows"] if FILE.is_file() else []
    rows = [row for row in held if (row["shape"], row["tokens"]) not in new] + rows
    rows.sort(key=lambda row: (row["shape"], row["tokens"]))
    crossings = {
        shape: {m: {w: crossing(rows, shape, m, w) for w in ("seconds", "megabytes")} for m in list(MIXERS)[1:]}
        for shape in dict.fromkeys(row["shape"] for row in rows)
    }
    record("mixer_lengths", rows, tokens_a_step=tokens, threads=1, crossing=crossings)


if __name__ == "__main__":
    main()
