"""The lens: what it costs, and the birth of induction heads in a model of two layers.

    python bench/lens.py cost                     recording and head scores beside the plain forward pass
    python bench/lens.py induction [--seeds 2]    about half a minute a seed on two cores, with its control

The task: 64 symbols behind a start token; a random segment of 8 to 32 symbols is repeated until the text is 64 tokens
long. Who has seen the segment once can copy the rest: look for an earlier copy of this symbol, and say what followed it
(Olsson et al. 2022). Attention alone, LayerNorm, rotary positions, embeddings of deviation 1, AdamW at 0.003.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import torch.nn.functional as F
from common import record, table
from torch import Tensor, nn

SYMBOLS, TOKENS, STEPS = 64, 64, 500


class Nothing(nn.Module):
    """A feed-forward that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Toy(nn.Module):
    """Token ids `[batch, tokens]` -> logits `[batch, tokens, SYMBOLS + 1]`; attention without feed-forward."""

    def __init__(self, depth: int) -> None:
        from triune.core.config import TransformerConfig
        from triune.core.transformer import Transformer

        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, 64)
        self.transformer = Transformer(TransformerConfig(dim=64, depth=depth, heads=4, causal=True, ffn_dim=1))
        for block in self.transformer.blocks:
            block.norm2, block.ffn, block.branch2 = nn.Identity(), Nothing(), nn.Identity()
        self.head = nn.Linear(64, SYMBOLS + 1, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.transformer(self.embedding(ids)))


def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids `[size, TOKENS]`, and bool `[size, TOKENS - 1]`: where the next symbol has been seen to follow."""
    rows, known = torch.zeros(size, TOKENS, dtype=torch.long), torch.zeros(size, TOKENS - 1, dtype=torch.bool)
    for row in range(size):
        length = int(torch.randint(8, 33, (), generator=generator))
        segment = torch.randint(1, SYMBOLS + 1, (length,), generator=generator)
        rows[row, 1:] = segment.repeat(TOKENS // length + 1)[: TOKENS - 1]
        known[row, length + 1 :] = True
    return rows, known


def accuracy(model: nn.Module, ids: Tensor, known: Tensor) -> float:
    """The share of repeated symbols that the model foretells."""
    with torch.no_grad():
        return float((model(ids)[:, :-1].argmax(-1) == ids[:, 1:])[known].float().mean())


def train(depth: int, seed: int) -> tuple[nn.Module, dict[int, float]]:
    """A model, and its accuracy by step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, curve = Toy(depth), {}
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.98))
    held = batch(128, torch.Generator().manual_seed(999))
    for step in range(1, STEPS + 1):
        ids, _ = batch(64, generator)
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            curve[step] = accuracy(model, *held)
            print(f"  {depth} layers, seed {seed}, step {step}: loss {loss.item():.3f}, accuracy {curve[step]:.3f}")
    return model.eval(), curve


def examined(model: nn.Module, ids: Tensor, known: Tensor) -> dict[str, Any]:
    """Head scores; accuracy without sets of heads beside other sets, and without the edges that induction needs."""
    from triune.core.lens.ablate import all_heads, head_edits, mean_outputs
    from triune.core.lens.edit import lens
    from triune.core.lens.scores import head_scores, previous
    from triune.core.lens.scores import induction as follows

    found = head_scores(model, lambda: model(ids), {"previous": previous, "induction": follows(ids)})
    heads, means = all_heads(model), mean_outputs(model, lambda: model(ids))
    order = sorted(heads, key=lambda head: -float(found["induction"][head]))
    before = sorted(heads, key=lambda head: -float(found["previous"][head]))

    def without(chosen: list[tuple[int, int]]) -> float:
        with lens(model, edit=head_edits(chosen, "mean", means)):
            return accuracy(model, ids, known)

    edges = torch.zeros(len(ids), 1, TOKENS, TOKENS, dtype=torch.bool)
    for keys in follows(ids)(TOKENS, ids.device).unbind(-1):
        row, query = (keys >= 0).nonzero().unbind(1)
        edges[row, 0, query, keys[row, query]] = True
    with lens(model, cut={1: edges}):
        cut = accuracy(model, ids, known)
    return {
        "best induction head": float(found["induction"].max()),
        "best previous-token head": float(found["previous"].max()),
        **{f"without {k} induction heads": without(order[:k]) for k in (1, 2, 3, 4)},
        **{f"without {k} previous-token heads": without(before[:k]) for k in (1, 2)},
        "without the two heads left": without([h for h in heads if h not in order[:4] and h not in before[:2]]),
        "induction edges cut in layer 1": cut,
    }  # fmt: skip


def induction(seeds: int) -> list[dict[str, Any]]:
    """Trains and examines a model of two layers for each seed, beside one of a single layer."""
    rows: list[dict[str, Any]] = []
    ids, known = batch(256, torch.Generator().manual_seed(999))
    for seed in range(seeds):
        started = time.perf_counter()
        model, curve = train(2, seed)
        seconds = time.perf_counter() - started
        row = {"seed": seed, "seconds": seconds, "accuracy": accuracy(model, ids, known), "by step": curve}
        rows.append(row | examined(model, ids, known) | {"one layer": train(1, seed)[1][STEPS]})
        print("\n".join(f"  {name}: {value}" for name, value in rows[-1].items()))
    return rows


def cost() -> list[dict[str, Any]]:
    """Seconds of a forward pass, with recording of the residual stream, and with head scores; B2 H12 T1024.

    The median of nine rounds, and of the ratios within a round.
    """
    from triune.core.config import TransformerConfig
    from triune.core.lens.edit import lens
    from triune.core.lens.record import record_attention
    from triune.core.lens.scores import first, head_scores, previous
    from triune.core.transformer import Transformer

    model = Transformer(TransformerConfig(dim=768, depth=2, heads=12, causal=True)).eval()
    x = torch.randn(2, 1024, 768)

    def plain() -> None:
        model(x)

    def kept() -> None:
        with lens(model, keep=["*.resid_post"]):
            model(x)

    def scores() -> None:
        head_scores(model, plain, {"previous": previous, "first": first})

    def weights() -> None:
        with record_attention(model, lambda _, w: w.diagonal(-1, 2, 3).mean((0, 2))):
            model(x)

    ways = {"plain": plain, "residual kept": kept, "two head scores": scores, "whole weights": weights}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(9):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    ratios = {name: sorted(t / p for t, p in zip(own, times["plain"]))[4] for name, own in times.items()}
    rows: list[dict[str, Any]] = [
        {"way": name, "seconds": sorted(own)[4], "times plain": ratios[name]} for name, own in times.items()
    ]
    print(table(rows))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "induction"))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    record(f"lens_{options.what}", cost() if options.what == "cost" else induction(options.seeds))


if __name__ == "__main__":
    main()
