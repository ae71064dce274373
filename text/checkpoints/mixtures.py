"""Mixtures of experts in other libraries' checkpoints: their settings, and the lines of weight tables for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.checkpoints.weights import Layout, Rule, reshaped
from ...core.config import TransformerConfig
from ...core.expert_options import ExpertsConfig
from .settings import Settings

SIDE_BY_SIDE = Layout(
    lambda parts: torch.cat(parts, dim=1),
    lambda whole, shapes: list(whole.split([shape[1] for shape in shapes], dim=1)),
    stacked=False,
)
"""Gate and up of all experts in one tensor, `[experts, 2·hidden, dim]`."""


@dataclass(frozen=True)
class Mixture:
    """How a family writes its experts.

    Args:
        read: our settings from theirs; None for a model without experts.
        write: theirs from our config.
    """

    read: Callable[[Settings], ExpertsConfig | None]
    write: Callable[[TransformerConfig], dict[str, Any]]


def experts_of(t: TransformerConfig) -> ExpertsConfig:
    """The settings of the experts of a resolved config; the defaults where it has none."""
    return t.experts or ExpertsConfig(dim=t.ffn_dim, layers=[], bias_rate=0.0)


def dense_layers(t: TransformerConfig) -> list[int]:
    """Numbers of the layers without experts."""
    return [layer for layer in range(t.depth) if t.experts_at(layer) is None]


def some(count: int, layers: Sequence[int], **settings: Any) -> ExpertsConfig | None:
    """Experts without a balance, which is a matter of training, in these layers; None where there are no layers."""
    return ExpertsConfig(count=count, layers=list(layers), bias_rate=0.0, **settings) if layers else None


def expert_rules(theirs: str, t: TransformerConfig, router: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Lines for experts whose matrices are tensors of their own there.

    Args:
        theirs: the module that holds router and experts, with `{}` for the layer.
        t: the config of ours.
        router, gate, up, down: their names.
    """
    if t.experts is None:
        return ()
    ours, wide = "transformer.blocks.{}.ffn", {"gate": t.dim, "up": t.dim, "down": experts_of(t.resolved()).dim or 0}
    each = range(t.experts.count)
    return (
        Rule(f"{ours}.router", f"{theirs}.{router}"),
        *(
            Rule(f"{ours}.experts.{name}", tuple(f"{theirs}.experts.{e}.{there}" for e in each), reshaped(-1, width))
            for (name, width), there in zip(wide.items(), (gate, up, down), strict=True)
        ),
    )


# --- Mixtral and Qwen 3 -----------------------------------------------------------------------------------------------

QWEN_EXPERTS = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
}
"""Keys of Qwen's mixtures, with the defaults of Qwen 3."""


def _read_mixtral(c: Settings) -> ExpertsConfig | None:
    count = c.values.get("num_experts", c["num_local_experts"])
    return some(count, range(c.depth()), active=c["num_experts_per_tok"])


def _write_mixtral(t: TransformerConfig) -> dict[str, Any]:
    experts = experts_of(t)
    return {
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "intermediate_size": experts.dim,
    }


def read_qwen(c: Settings, count: int, **more: Any) -> ExpertsConfig | None:
    """The `count` experts of a model of Qwen, in every `decoder_sparse_step`-th layer but for `mlp_only_layers`."""
    step, without = c["decoder_sparse_step"], c["mlp_only_layers"] or ()
    layers = [layer for layer in range(c.depth()) if layer not in without and count > 0 and (layer + 1) % step == 0]
    return some(
        count, layers, active=c["num_experts_per_tok"], dim=c["moe_intermediate_size"],
        renormalise=c["norm_topk_prob"], **more,
    )  # fmt: skip


def write_qwen(t: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_qwen`."""
    experts = experts_of(t)
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "moe_intermediate_size": experts.dim,
        "norm_topk_prob": experts.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense_layers(t),
    }


MIXTRAL = Mixture(_read_mixtral, _write_mixtral)
QWEN = Mixture(
    lambda c: read_qwen(c, c["num_local_experts"] or c["num_experts"]),
    lambda t: write_qwen(t) | {"num_local_experts": experts_of(t).count},
)


def mixtral_rules(config: Any) -> tuple[Rule, ...]:
    """Lines for the experts of Mixtral."""
    return expert_rules("model.layers.{}.block_sparse_moe", config.transformer, "gate", "w1", "w3", "w2")


def qwen_rules(config: Any) -> tuple[Rule, ...]:
    """Lines for the experts of Qwen 3."""
    return expert_rules("model.layers.{}.mlp", config.transformer, "gate", "gate_proj", "up_proj", "down_proj")
