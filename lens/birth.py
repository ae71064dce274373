"""`triune lens birth`: induction heads arise in a model of two layers, and none in one of a single layer.

The task: 64 symbols behind a start token; a random segment of 8 to 32 symbols is repeated until the text is 64 tokens
long. Who has seen the segment once can copy the rest: look for an earlier copy of this symbol, and say what followed it
(Olsson et al. 2022). Attention alone, LayerNorm, rotary positions, embeddings of deviation 1, AdamW at 0.003.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import TransformerConfig
from ..core.lens.ablate import Head, all_heads, head_edits, mean_outputs
from ..core.lens.edit import lens
from ..core.lens.effects import kl_divergence, rank_correlation
from ..core.lens.record import record_attention
from ..core.lens.scores import edges_of, head_scores, previous
from ..core.lens.scores import induction as follows
from ..core.subject import Table
from ..core.transformer import Transformer
from ..core.work import progress
from .report import Curves, Heads, Report

SYMBOLS, TOKENS, STEPS, EVERY = 64, 64, 500, 25
HELD = 999
"""Seed of the texts that are judged."""


class Toy(nn.Module):
    """Token ids `[batch, tokens]` -> logits `[batch, tokens, SYMBOLS + 1]`; attention without feed-forward."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, 64)
        config = TransformerConfig(dim=64, depth=depth, heads=4, causal=True, ffn="none")
        self.transformer = Transformer(config)
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


def train(depth: int, seed: int, steps: int = STEPS) -> tuple[Toy, list[dict[str, float]]]:
    """A model, and at every `EVERY` steps its accuracy and the highest head scores."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Toy(depth)
    curve: list[dict[str, float]] = []
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.98))
    ids, known = batch(64, torch.Generator().manual_seed(HELD))
    patterns = {"previous": previous, "induction": follows(ids)}
    with progress(f"training {depth} layer{'s' if depth > 1 else ''}, seed {seed}", steps, "steps") as done:
        for step in range(1, steps + 1):
            text, _ = batch(64, generator)
            loss = F.cross_entropy(model(text)[:, :-1].flatten(0, 1), text[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % EVERY == 0 or step == steps:
                scores = head_scores(model.eval(), lambda: model(ids), patterns)
                best = {name: float(values.max()) for name, values in scores.items()}
                curve.append({"step": step, "loss": loss.item(), "accuracy": accuracy(model, ids, known)} | best)
            done(1)
    return model.eval(), curve


def examined(model: Toy, ids: Tensor, known: Tensor) -> dict[str, Any]:
    """Head scores; accuracy without sets of heads beside other sets, and without the edges that induction needs."""
    found = head_scores(model, lambda: model(ids), {"previous": previous, "induction": follows(ids)})
    heads, means = all_heads(model), mean_outputs(model, lambda: model(ids))
    order = sorted(heads, key=lambda head: -float(found["induction"][head]))
    before = sorted((head for head in heads if head[0] == 0), key=lambda head: -float(found["previous"][head]))

    def without(chosen: list[Head]) -> float:
        with lens(model, edit=head_edits(chosen, "mean", means)):
            return accuracy(model, ids, known)

    with lens(model, cut={1: edges_of(follows(ids)(TOKENS, ids.device))[:, None]}):
        cut = accuracy(model, ids, known)
    whole = accuracy(model, ids, known)
    left = [head for head in heads if head not in order[:4] and head not in before[:2]]
    lost = torch.tensor([[whole - without([(layer, head)]) for head in range(4)] for layer in range(2)])
    weights = weight_and_effect(model, ids[:4])
    return {
        "accuracy": whole,
        "best induction head": float(found["induction"].max()),
        "best previous-token head": float(found["previous"].max()),
        **{f"without {k} induction heads": without(order[:k]) for k in (1, 2, 3, 4)},
        **{f"without {k} previous-token heads": without(before[:k]) for k in (1, 2)},
        "without the two heads left": without(left),
        "induction edges cut in layer 1": cut,
        "scores": found, "fall without each head": lost,
        "rank correlation of weight and effect, by head": weights,
    }  # fmt: skip


@torch.no_grad()
def weight_and_effect(model: Toy, ids: Tensor) -> Tensor:
    """For each head the rank correlation, over the keys of the last token, of its weight and of what the answer there
    moves when this edge of this head is cut (nats); in a mean over texts. `[layers, heads]`.
    """
    found = torch.zeros(2, 4)
    for text in ids:
        with record_attention(model, lambda _, weights: weights[0, :, -1]) as seen:
            whole = model(text[None])[0, -1].double().log_softmax(-1)
        for layer, weights in enumerate(seen.values()):
            for head in range(4):
                edges = torch.zeros(TOKENS, 4, TOKENS, TOKENS, dtype=torch.bool)
                edges[torch.arange(TOKENS), head, -1, torch.arange(TOKENS)] = True
                with lens(model, cut={layer: edges}):
                    moved = model(text.expand(TOKENS, -1))[:, -1].double().log_softmax(-1)
                found[layer, head] += rank_correlation(weights[head], kl_divergence(whole, moved)) / len(ids)
    return found


def birth(seeds: int = 1, steps: int = STEPS) -> tuple[Report, list[dict[str, Any]]]:
    """Trains and examines a model of two layers for each seed, beside one of a single layer."""
    ids, known = batch(256, torch.Generator().manual_seed(HELD))
    rows = []
    for seed in range(seeds):
        model, curve = train(2, seed, steps)
        _, alone = train(1, seed, steps)
        by_step = {"by step": curve, "one layer by step": alone, "one layer": alone[-1]["accuracy"]}
        rows.append({"seed": seed} | examined(model, ids, known) | by_step | {"jump in 100 steps": jump(curve)})
    report = Report(
        "The birth of induction heads: two layers of four heads, attention alone",
        [
            f"Texts of {TOKENS} tokens in which a random segment repeats, {steps} steps of 64 texts; accuracy is that "
            "of the repeated symbols, chance 1/64. A head that is left out is replaced by its mean."
        ],
    )
    numbers = [key for key, value in rows[0].items() if isinstance(value, float)]
    columns = ["", *(f"seed {row['seed']}" for row in rows)]
    report.tables.append(Table("What was found", columns, [[key, *(row[key] for row in rows)] for key in numbers]))
    first = rows[0]
    x = [point["step"] for point in first["by step"]]
    lines = {
        "accuracy": [point["accuracy"] for point in first["by step"]],
        "best induction score": [point["induction"] for point in first["by step"]],
        "best previous-token score": [point["previous"] for point in first["by step"]],
        "accuracy of one layer": [point["accuracy"] for point in first["one layer by step"]],
    }
    report.panels.append(Curves("in training, seed 0", x, lines, "share", "optimizer steps"))
    cliff = [first["accuracy"], *(first[f"without {k} induction heads"] for k in (1, 2, 3, 4))]
    report.panels.append(
        Curves("without the best induction heads", [0, 1, 2, 3, 4], {"accuracy": cliff}, "accuracy", "heads left out")
    )
    r = rank_correlation(first["scores"]["induction"].flatten(), first["fall without each head"].flatten())
    caption = f"rank correlation with the effects {r:+.2f} over 8 heads"
    report.panels.append(Heads("induction", first["scores"]["induction"], "mean attention", caption=caption))
    report.panels.append(Heads("effect", first["fall without each head"], "fall", True, "fall of the accuracy"))
    weights = first["rank correlation of weight and effect, by head"]
    report.panels.append(Heads("weight and effect", weights, "rank correlation", True, "of edges to the last token"))
    report.notes.append(
        "Rank correlation of the weight of an edge and of what cutting it does, by head: "
        f"{float(weights.min()):+.2f} to {float(weights.max()):+.2f}. Weights say what is read, effects what is used."
    )
    report.data = {"rows": rows}
    return report, rows


def jump(curve: list[dict[str, float]]) -> float:
    """The largest gain of accuracy within 100 steps."""
    window = max(1, 100 // EVERY)
    values = [0.0, *(point["accuracy"] for point in curve)]
    return max(later - values[max(0, at - window)] for at, later in enumerate(values))
