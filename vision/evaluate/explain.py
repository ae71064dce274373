"""Where a classifier looks, and what it really uses: attention weights beside the effect of hiding patches.

Attention weights say where values are read from, not what they do to the answer: over heads, their rank correlation
with the effect of an edit ranges from none to strong (Jain and Wallace 2019; Serrano and Smith 2019). So a map of
weights is shown here only beside the map of effects, with the correlation of the two.

The weights are recomputed from the inputs of the attention layers, so the prediction itself stays on the fused kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.canvas import figure, fitted, save
from ...core.lens.effects import rank_correlation, rollout
from ...core.lens.record import record_attention
from ...core.lens.stream import stream_attention
from ..model import VisionTransformer
from .plots import show, small_picture

_MOST_PASSES = 256
_SHARE = 0.2
"""Part of the patches that the deletion test hides."""
_RANDOM_SETS = 8
_LEAST_EFFECT = 0.01
"""Nats at which a patch has its full colour, at the least: of a model that is certain one would see the rounding."""


# --- effects ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_p(model: VisionTransformer, images: Tensor, target: int, temperature: float, batch_size: int) -> Tensor:
    """Log-probability of class `target` for images `[n, channels, height, width]`, float64 `[n]` on the CPU."""
    parts = [model(part).double().cpu() for part in images.split(batch_size)]
    return (torch.cat(parts) / temperature).log_softmax(dim=1)[:, target]


def hide(model: VisionTransformer, image: Tensor, hidden: Tensor) -> Tensor:
    """Copies of `image` `[channels, height, width]` with patches set to its mean colour.

    `hidden` is bool `[n, rows, columns]`; returns `[n, channels, height, width]`.
    """
    height, width = model.config.patch
    pixels = hidden.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2).to(image.device)
    mean = image.mean(dim=(1, 2), keepdim=True)
    return torch.where(pixels[:, None], mean, image)


@torch.no_grad()
def hiding_effect(
    model: VisionTransformer, image: Tensor, target: int, temperature: float = 1.0, window: int | None = None,
    batch_size: int = 64, value: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """What each patch does for class `target`: how far its log-probability falls when the patch is hidden (nats).

    Squares of `window` x `window` patches are set to the image's mean colour, one after another at every place
    (occlusion, Zeiler and Fergus 2014); a patch gets the mean over the squares that cover it. Neighbours stand in for
    each other, so single patches of a fine grid hardly matter alone: by default the window is about a seventh of the
    grid.

    Args:
        model: in `eval()` mode.
        image: `[channels, height, width]`, preprocessed.
        target: a class.
        temperature: logits are divided by it.
        window: side of the square in patches.
        batch_size: images of one forward pass.
        value: from images to what falls, float64 `[images]`, instead of the log-probability of `target`.

    Returns:
        float64 `[rows, columns]`; positive where the patch speaks for the class.
    """
    rows, columns = model.grid(image[None])
    window = window or max(1, round(min(rows, columns) / 7))
    high, wide = min(window, rows), min(window, columns)
    # Large grids are sampled with a stride, or they would take a forward pass for each of thousands of patches.
    stride = 1
    while len(_starts(rows, high, stride)) * len(_starts(columns, wide, stride)) > _MOST_PASSES and stride < window:
        stride += 1
    places = [(r, c) for r in _starts(rows, high, stride) for c in _starts(columns, wide, stride)]
    value = value or (lambda images: log_p(model, images, target, temperature, batch_size))
    base = value(image[None])
    total, times = torch.zeros(2, rows, columns, dtype=torch.float64)
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        hidden = torch.zeros(len(part), rows, columns, dtype=torch.bool)
        for square, (r, c) in zip(hidden, part):
            square[r : r + high, c : c + wide] = True
        drop = base - value(hide(model, image, hidden))
        total += (hidden * drop[:, None, None]).sum(dim=0)
        times += hidden.sum(dim=0)
    return total / times


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis; the last one ends at the edge."""
    return sorted({*range(0, length - window, stride), length - window})


# --- both, side by side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """What `explain` found for one image.

    Args:
        target: the class explained.
        probability: its calibrated probability.
        rollout: attention rollout, float `[rows, columns]`, as a multiple of what evenly spread attention would give.
        effect: `hiding_effect`, nats `[rows, columns]`.
        heads: attention of each head of the last layer to the patches, `[heads, rows, columns]`.
        correlation: Spearman's, of rollout and effect over the patches; nan if one of them is constant.
        deleted: nats of log-probability lost when a fifth of the patches is hidden, those highest by "rollout", by
            "effect", and "random" ones (mean of eight draws) as the control.
    """

    target: int
    probability: float
    rollout: Tensor
    effect: Tensor
    heads: Tensor
    correlation: float
    deleted: dict[str, float]

    def caption(self) -> str:
        """The sentence below the picture: how far the weights can be believed here."""
        r = self.correlation
        loss = {name: round(value, 2) + 0.0 for name, value in self.deleted.items()}  # no "-0.00"
        agreement = "is undefined (one map is flat)" if r != r else f"is {r:+.2f}"
        return (
            f"Rank correlation of rollout and effect {agreement}. Hiding a fifth of the patches costs "
            f"{loss['rollout']:.2f} nats by rollout, {loss['effect']:.2f} by effect, {loss['random']:.2f} at random."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "rank_correlation": None if self.correlation != self.correlation else self.correlation,
            "nats_lost_by_hiding_a_fifth": self.deleted,
            "rollout": self.rollout.tolist(),
            "effect": self.effect.tolist(),
        }


@torch.no_grad()
def explain(
    model: VisionTransformer, image: Tensor, target: int | None = None, temperature: float = 1.0,
    window: int | None = None, batch_size: int = 64,
) -> Explanation:  # fmt: skip
    """Explains one prediction; the model must be in `eval()` mode.

    Args:
        model: a classifier.
        image: `[channels, height, width]`, preprocessed, on the model's device.
        target: the class to explain; by default the predicted one.
        temperature: logits are divided by it.
        window: see `hiding_effect`.
        batch_size: images of one forward pass.
    """
    logits, maps, heads = attention_maps(model, image)
    p = (logits.double() / temperature).softmax(dim=0)
    target = int(p.argmax()) if target is None else target
    effect = hiding_effect(model, image, target, temperature, window, batch_size)
    return Explanation(
        target, float(p[target]), maps, effect, heads, rank_correlation(maps, effect),
        deletion(model, image, target, {"rollout": maps, "effect": effect}, temperature, batch_size),
    )  # fmt: skip


def attention_maps(model: VisionTransformer, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass: logits `[classes]`, rollout `[rows, columns]`, last layer's heads `[heads, rows, columns]`, on
    the CPU.

    What is followed back to the patches is what the head reads: the class token, the mean of the patches, or the
    attention pool's query. The rollout is a multiple of evenly spread attention.
    """
    config, grid = model.config, model.grid(image[None])
    config.transformer.require_attention("attention maps")
    means: list[Tensor] = []
    last: list[Tensor] = []
    logits: list[Tensor] = []

    def consume(layer: int, maps: Tensor) -> None:
        means.append(maps.mean(1))
        last[:] = [maps[0]]

    def run() -> None:
        logits.append(model(image[None])[0])

    read = reader(model, lambda: stream_attention(model.transformer, run, consume), means)
    even = 1 / means[0].shape[-1]
    to_patches = (read @ rollout(means)[0])[config.prefix :] / even
    heads = (read @ last[0])[:, config.prefix :] / even
    return logits[0].cpu(), to_patches.unflatten(0, grid).cpu(), heads.unflatten(1, grid).cpu()


def reader(model: VisionTransformer, run: Callable[[], Any], sized: Sequence[Tensor]) -> Tensor:
    """What the head reads as a distribution over the tokens, float32 `[tokens]`: the class token, the mean of the
    patches, or what the attention pool's query looks at.

    Args:
        model: a classifier or a backbone.
        run: runs it once, on one image.
        sized: filled by `run` with tensors whose last axis has all tokens.
    """
    config = model.config
    with record_attention(model.pool or nn.Identity(), lambda _, weights: weights) as seen:
        run()
    found = torch.zeros(sized[0].shape[-1], device=sized[0].device)
    if config.pool == "class":
        found[0] = 1
    elif config.pool in ("mean", "class_and_mean"):
        found[config.prefix :] = 1 / (len(found) - config.prefix)
        if config.pool == "class_and_mean":
            found[0] = 1
            found /= 2
    else:
        found[config.prefix :] = seen["attn"].mean(dim=(0, 1, 2))
    return found


def deletion(
    model: VisionTransformer, image: Tensor, target: int, maps: dict[str, Tensor], temperature: float, batch_size: int
) -> dict[str, float]:
    """Nats of log-probability lost by hiding the highest fifth of the patches by each map, and by random sets of that
    size.
    """
    patches = next(iter(maps.values())).numel()
    count = max(1, round(_SHARE * patches))
    generator = torch.Generator().manual_seed(0)
    chosen = [scores.flatten().topk(count).indices for scores in maps.values()]
    chosen += [torch.randperm(patches, generator=generator)[:count] for _ in range(_RANDOM_SETS)]
    hidden = torch.zeros(len(chosen), patches, dtype=torch.bool)
    for row, indices in zip(hidden, chosen):
        row[indices] = True
    images = hide(model, image, hidden.unflatten(1, model.grid(image[None])))
    p = log_p(model, torch.cat([image[None], images]), target, temperature, batch_size)
    lost = (p[0] - p[1:]).tolist()
    return dict(zip(maps, lost)) | {"random": sum(lost[len(maps) :]) / _RANDOM_SETS}


# --- the picture ------------------------------------------------------------------------------------------------------


def draw(found: Sequence[tuple[str, Any, Explanation]], target: Path) -> None:
    """A row for each image: the image, attention rollout, the effect of hiding patches, the last layer's heads.

    Args:
        found: title, the image as the model saw it (see `pictures.mistakes`), and what `explain` says about it.
        target: the PNG.
    """
    drawn = figure(12.4, 3.4 * len(found))
    for part, (title, image, explanation) in zip(np.atleast_1d(drawn.subfigures(len(found), 1)), found):
        panels = part.subplots(1, 4)
        show(panels[0], image)
        _overlay(panels[1], image, explanation.rollout, "× even attention")
        _overlay(panels[2], image, explanation.effect, "nats", signed=True)
        _heads(panels[3], explanation.heads)
        names = (
            fitted([title], 34)[0],
            "attention rollout",
            "log p lost when hidden",
            f"last layer's {len(explanation.heads)} heads",
        )
        for axes, name in zip(panels, names):
            axes.set_title(name, fontsize=10, loc="left")
        part.supxlabel(explanation.caption(), fontsize=9, color="#333333")
    save(drawn, target)


def _overlay(axes: Any, image: Any, values: Tensor, unit: str, signed: bool = False) -> None:
    """A map over the greyed image, one square a patch; a patch that stands out covers what is below it.

    Signed maps are red where the patch speaks for the class, blue where it speaks against it.
    """
    grey = np.asarray(small_picture(image, 384).convert("L")) / 255
    height, width = grey.shape
    axes.imshow(0.5 + 0.5 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    array = values.double().numpy()
    low, high = float(array.min()), float(array.max())
    if signed:
        high = max(abs(low), abs(high), _LEAST_EFFECT)
        low = -high
        strength = np.abs(array) / high
    else:
        strength = (array - low) / max(high - low, 1e-9)
    layer = axes.imshow(
        array, cmap="RdBu_r" if signed else "YlOrRd", vmin=low, vmax=high, alpha=0.15 + 0.7 * strength,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest",
    )  # fmt: skip
    axes.set_axis_off()
    bar = axes.figure.colorbar(layer, cax=axes.inset_axes((1.02, 0, 0.04, 1)))
    bar.solids.set_alpha(1)
    bar.ax.set_title(unit, fontsize=7, loc="left")
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _heads(axes: Any, heads: Tensor) -> None:
    """The heads as tiles of one picture, each on its own scale."""
    count, rows, columns = heads.shape
    across = math.ceil(math.sqrt(count))
    gap_r, gap_c = (max(1, round(side / 12)) for side in (rows, columns))
    down = math.ceil(count / across)
    tiles = np.full((down * (rows + gap_r) - gap_r, across * (columns + gap_c) - gap_c), np.nan)
    for number, head in enumerate(heads.double().numpy()):
        r, c = (number // across) * (rows + gap_r), (number % across) * (columns + gap_c)
        span = float(head.max() - head.min()) or 1.0
        tiles[r : r + rows, c : c + columns] = (head - head.min()) / span
    axes.imshow(tiles, cmap="viridis", interpolation="nearest")
    axes.set_axis_off()
