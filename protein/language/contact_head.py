"""Contacts from the attention maps of any masked language model, by logistic regression (Rao et al. 2020).

The feature of a residue pair for one head is its attention, A + Aᵀ, after the average product correction
F_ij - F_i· F_·j / F_··. The regression is linear in the features, so prediction needs one layer's maps at a time and
adds them up: heads x tokens² numbers instead of layers x heads x tokens². Heads whose weight is zero, which L1 makes of
most, are never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checkpoints.saved import SavedModel
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.lens.stream import stream_attention
from .model import EOS, PAD, SequenceModel, esm_tokens

HEAD = "contact_head"
"""Folder of a contact head inside that of its language model."""

MIN_SEPARATION = 6
"""Pairs closer than this in sequence are not fitted (Rao et al. 2020)."""

MAPS_BYTES = 8 << 20
"""Attention maps of a layer that a prediction holds at once, at least one: as many as a processor's cache holds."""


def attention_layers(config: TransformerConfig) -> list[int]:
    """Layers whose maps tell contacts. Raises UserError when there are none."""
    layers = [layer for layer in range(config.depth) if config.mixer_at(layer) == "attention"]
    if not layers:
        raise UserError(
            f"mixer is {config.mixer!r}, but a contact head reads the attention maps of at least one layer; take a "
            "pattern with A."
        )
    return layers


def contact_features(maps: Tensor, residues: Tensor) -> Tensor:
    """Symmetrised and corrected maps without <cls> and <eos>.

    maps `[batch, heads, tokens, tokens]`, residues bool `[batch, tokens]` (True for residues, not for special tokens)
    -> `[batch, heads, tokens - 2, tokens - 2]`.
    """
    keep = (residues[:, None, :, None] & residues[:, None, None, :]).to(maps.dtype)
    maps = (maps * keep)[..., 1:-1, 1:-1]
    maps = maps + maps.mT
    row = maps.sum(-1, keepdim=True)
    total = row.sum(-2, keepdim=True)
    return maps - row * row.mT / total.clamp(min=1e-12)


def stream_features(
    model: SequenceModel, tokens: Tensor, consume: Callable[[int, Tensor], None], heads: list[Tensor] | None = None
) -> None:
    """Runs `model` once and hands each layer's features to `consume(layer, features)`; nothing is kept between layers.

    Args:
        model: the language model.
        tokens: ESM-2 ids `[batch, tokens]`.
        consume: gets `[batch, heads, tokens - 2, tokens - 2]`.
        heads: for each layer, which heads; layers without any are skipped. All by default.
    """
    residues = _residues(tokens)
    _stream(model, tokens, lambda layer, maps: consume(layer, contact_features(maps, residues)), heads)


def _stream(
    model: SequenceModel, tokens: Tensor, consume: Callable[[int, Tensor], None], heads: list[Tensor] | None = None,
    group: int | None = None,
) -> None:  # fmt: skip
    """`stream_attention` of the model in evaluation mode, of its layers of attention.

    Raises:
        UserError: none of the layers is attention, or not one whose `heads` are wanted.
    """
    config = model.config.transformer
    layers = attention_layers(config)
    if heads is None:
        heads = [torch.arange(config.heads if layer in layers else 0) for layer in range(config.depth)]
    if wrong := [layer for layer, wanted in enumerate(heads) if len(wanted) and layer not in layers]:
        raise UserError(
            f"The contact head reads attention maps of layer {wrong[0]}, whose mixer is {config.mixer_at(wrong[0])}; "
            "it belongs to another model."
        )
    was_training = model.training
    model.eval()
    try:
        stream_attention(model.transformer, lambda: model.hidden(tokens), consume, heads, group)
    finally:
        model.train(was_training)


def _residues(tokens: Tensor) -> Tensor:
    """True for residues, not for <cls>, <eos> and <pad>; bool `[batch, tokens]`."""
    residues = (tokens != PAD) & (tokens != EOS)
    residues[:, 0] = False
    return residues


def add_maps(half: Tensor, maps: Tensor, keep: Tensor, weight: Tensor) -> None:
    """Adds the weighted features of some heads, so that half + halfᵀ grows by those of `contact_features`.

    Symmetrising and summing over heads change places, and the corrections of all heads are one product of their row
    sums: the maps are read three times and never copied.

    Args:
        half: `[batch, tokens, tokens]`; its entries for other tokens than residues mean nothing.
        maps: `[batch, heads, tokens, tokens]`.
        keep: 1 for residues, 0 for other tokens, float `[batch, tokens]`.
        weight: `[heads]`.
    """
    batch, heads = maps.shape[:2]
    half.view(batch, 1, -1).baddbmm_(weight.expand(batch, 1, heads), maps.flatten(2))
    rows = (maps @ keep[:, None, :, None])[..., 0] + (keep[:, None, None, :] @ maps)[:, :, 0]  # of A + Aᵀ
    rows = rows * keep[:, None]
    share = 0.5 * weight[:, None] / rows.sum(-1, keepdim=True).clamp(min=1e-12)
    half.baddbmm_((rows * share).mT, rows, alpha=-1)


class ContactHead(SavedModel):
    """sigmoid(sum over layers and heads of weight · feature + bias). One map `[batch, residues, residues]` of
    logits.
    """

    def __init__(self, depth: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(depth, heads), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(()), requires_grad=False)

    @torch.no_grad()
    def forward(self, model: SequenceModel, tokens: Tensor) -> Tensor:
        """ESM-2 ids `[batch, residues + 2]` -> contact logits, float32 `[batch, residues, residues]`.

        The heads of a layer are computed a few at a time, so many that their maps take `MAPS_BYTES`.
        """
        if not self.weight.any():
            raise UserError("This model has no contact regression; fit one on a few structures with ContactHead.fit.")
        residues = _residues(tokens)
        keep, (batch, length) = residues.float(), tokens.shape
        group = max(1, MAPS_BYTES // (4 * batch * length**2))
        half = torch.zeros(batch, length, length, device=tokens.device)  # half + halfᵀ are the logits
        used = [row.nonzero().flatten().cpu() for row in self.weight]
        weights = [iter(row[row != 0].to(half).split(group)) for row in self.weight]
        _stream(model, tokens, lambda layer, maps: add_maps(half, maps, keep, next(weights[layer])), used, group)
        logits = (half + half.mT).mul_(keep[:, :, None]).mul_(keep[:, None, :])
        return logits[:, 1:-1, 1:-1] + self.bias.to(half)

    @classmethod
    def fit(
        cls, model: SequenceModel, structures: Iterable[tuple[Tensor, Tensor]], strength: float = 0.15
    ) -> ContactHead:
        """Fits the regression on a few structures (Rao et al. 2020 take 20); minimises |w|₁ + strength · sum of log
        losses.

        Args:
            model: the language model.
            structures: pairs of tokens, numbers of `alphabet` int `[residues]`, and contacts int8 `[residues,
                residues]` as `metrics.contact_targets` makes them (-1 is ignored).
            strength: the inverse of the penalty, scikit-learn's `C`.

        Raises:
            UserError: the structures hold no contact, or nothing else; or no layer of the model is attention.
        """
        config = model.config.transformer
        model.eval()
        features, targets = [], []
        for tokens, contacts in structures:
            layers: list[Tensor] = []
            device = model.embedding.weight.device
            i, j = torch.triu_indices(len(tokens), len(tokens), MIN_SEPARATION)
            known = contacts[i, j] >= 0
            i, j = i[known].to(device), j[known].to(device)
            stream_features(
                model, esm_tokens(tokens[None].long().to(device)),
                lambda _, maps, at=(i, j), out=layers: out.append(maps[0, :, *at].T.cpu()),
            )  # fmt: skip
            features.append(torch.cat(layers, dim=1))  # [pairs, depth·heads], layers first
            targets.append(contacts[i.cpu(), j.cpu()].float())
        x, y = torch.cat(features), torch.cat(targets)
        if not 0 < y.sum() < len(y):
            raise UserError("The structures hold no pair in contact, or only such pairs; give more of them.")
        head = cls(config.depth, config.heads)
        weight, bias = l1_logistic_regression(x, y, strength)
        head.weight[attention_layers(config)] = weight.view(-1, config.heads)
        head.bias.fill_(bias)
        return head

    def settings(self) -> dict[str, Any]:
        depth, heads = self.weight.shape
        return {"depth": depth, "heads": heads}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ContactHead:
        return cls(settings["depth"], settings["heads"])


def l1_logistic_regression(
    x: Tensor, y: Tensor, strength: float, most: int = 3000, tolerance: float = 1e-7
) -> tuple[Tensor, float]:
    """Minimises |w|₁ + strength · sum of log losses by accelerated proximal gradient steps (Beck and Teboulle 2009).

    x `[samples, features]`, y `[samples]` of 0 and 1 -> weights `[features]` and the intercept, which is not penalised.
    Each feature is divided by its standard deviation for the steps, and its penalty with it, which changes nothing but
    the number of steps.
    """
    scale = x.std(0).clamp(min=1e-8)
    mean = x.mean(0)
    x = torch.cat([(x - mean) / scale, torch.ones(len(x), 1)], dim=1)
    penalty = torch.cat([1 / scale / (strength * len(y)), torch.zeros(1)])
    step = 4 / float(torch.linalg.eigvalsh((x.T @ x / len(y)).double())[-1])
    w = torch.zeros(x.shape[1])
    w[-1] = torch.logit(y.mean())
    ahead, momentum = w, 1.0
    for _ in range(most):
        gradient = x.T @ (torch.sigmoid(x @ ahead) - y) / len(y)
        stepped = ahead - step * gradient
        new = stepped.sign() * (stepped.abs() - step * penalty).clamp(min=0)
        if (ahead - new) @ (new - w) > 0:  # momentum points uphill: start it again (O'Donoghue and Candès 2015)
            momentum = 1.0
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / grown * (new - w)
        moved = (new - w).abs().max()
        w, momentum = new, grown
        if moved < tolerance:
            break
    weight = w[:-1] / scale
    return weight, float(w[-1] - weight @ mean)
