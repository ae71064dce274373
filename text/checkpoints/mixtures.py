"""Mixtures of experts in other libraries' checkpoints: their settings, and the lines of weight tables for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.checkpoints.weights import Layout, Rule, reshaped
from ...core.config import TransformerConfig
from ...core.errors import UserError
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
    settings = {"bias_rate": 0.0} | settings
    return ExpertsConfig(count=count, layers=list(layers), **settings) if layers else None


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


# --- sigmoid scores with a bias (DeepSeek-V3), softmax scores with one (Ernie 4.5) ------------------------------------

SIGMOID_EXPERTS = {
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
}
"""Keys of mixtures as DeepSeek-V3 has them, with the defaults of GLM 4 MoE."""
BIASED = {"bias_rate": ExpertsConfig.bias_rate}
ERNIE_EXPERTS = {
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
}


def read_sigmoid(c: Settings, layers: Sequence[int], shared: int) -> ExpertsConfig | None:
    """Experts of DeepSeek-V3 in these layers, where no group of experts is left out."""
    if c["n_group"] != c["topk_group"]:
        raise UserError(
            f"'{c.name}' chooses experts from {c['topk_group']} of {c['n_group']} groups (n_group, topk_group), but the"
            " core only from all; use it in its own library."
        )
    if shared < 1:
        raise UserError(f"'{c.name}' has experts without a shared one, which models of its family always have.")
    return some(
        c["n_routed_experts"], layers, active=c["num_experts_per_tok"], dim=c["moe_intermediate_size"],
        score="sigmoid", renormalise=c["norm_topk_prob"], scale=float(c["routed_scaling_factor"]), shared=shared,
        **BIASED,
    )  # fmt: skip


def write_sigmoid(t: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_sigmoid`, but for the layers and the shared expert."""
    experts = experts_of(t)
    return {
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "moe_intermediate_size": experts.dim,
        "norm_topk_prob": experts.renormalise,
        "routed_scaling_factor": experts.scale,
        "n_group": 1,
        "topk_group": 1,
    }


def _read_glm(c: Settings) -> ExpertsConfig | None:
    layers = range(min(c["first_k_dense_replace"], c.depth()), c.depth())
    return read_sigmoid(c, layers, c["n_shared_experts"] * c["moe_intermediate_size"])


def _write_glm(t: TransformerConfig) -> dict[str, Any]:
    experts = experts_of(t)
    first = next((layer for layer in range(t.depth) if t.experts_at(layer)), t.depth)
    shared = experts.shared // (experts.dim or 1)
    return write_sigmoid(t) | {"first_k_dense_replace": first, "n_shared_experts": shared}


def _read_ernie(c: Settings) -> ExpertsConfig | None:
    c.require("moe_norm_min", 1e-12)  # chosen scores never add up to less
    last = c.depth() - 1 if c["moe_layer_end_index"] == -1 else c["moe_layer_end_index"]
    own = [i for i in range(c.depth()) if (i + 1) % c["moe_layer_interval"] == 0]
    return some(
        c["moe_num_experts"], [i for i in own if c["moe_layer_start_index"] <= i <= last], active=c["moe_k"],
        dim=c["moe_intermediate_size"], shared=c["moe_num_shared_experts"] * c["moe_intermediate_size"], **BIASED,
    )  # fmt: skip


def _write_ernie(t: TransformerConfig) -> dict[str, Any]:
    experts = experts_of(t)
    layers = [layer for layer in range(t.depth) if t.experts_at(layer)] or [t.depth]
    step = (
        layers[1] - layers[0] if len(layers) > 1 else next(n for n in range(1, t.depth + 2) if (layers[0] + 1) % n == 0)
    )
    return {
        "moe_num_experts": experts.count,
        "moe_k": experts.active,
        "moe_intermediate_size": experts.dim,
        "moe_num_shared_experts": experts.shared // (experts.dim or 1),
        "moe_layer_start_index": layers[0],
        "moe_layer_end_index": layers[-1],
        "moe_layer_interval": step,
    }


# --- what they read and write -----------------------------------------------------------------------------------------

GLM = Mixture(_read_glm, _write_glm)
ERNIE = Mixture(_read_ernie, _write_ernie)
QWEN2 = Mixture(
    lambda c: read_qwen(c, c["num_experts"], shared=c["shared_expert_intermediate_size"], shared_gate=True),
    lambda t: write_qwen(t) | {"shared_expert_intermediate_size": experts_of(t).shared},
)
OLMOE = Mixture(
    lambda c: some(
        c["num_experts"], range(c.depth()), active=c["num_experts_per_tok"], renormalise=c["norm_topk_prob"]
    ),
    lambda t: (
        {key: write_qwen(t)[key] for key in ("num_experts", "num_experts_per_tok", "norm_topk_prob")}
        | {"intermediate_size": experts_of(t).dim}
    ),
)
GRANITE = Mixture(
    lambda c: some(
        c["num_local_experts"], range(c.depth()), active=c["num_experts_per_tok"],
        shared=c.get("shared_intermediate_size", 0),
    ),
    lambda t: _write_mixtral(t) | {"shared_intermediate_size": experts_of(t).shared},
)  # fmt: skip
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


def shared_rules(theirs: str, shared: str = "shared_experts", gate: str = "shared_expert_gate") -> tuple[Rule, ...]:
    """Lines for the expert that all tokens read, and its gate.

    Args:
        theirs: the module that holds it, with `{}` for the layer.
        shared, gate: their names.
    """
    ours = "transformer.blocks.{}.ffn"
    names = ("gate", "up", "down")
    rules = tuple(Rule(f"{ours}.shared.{name}", f"{theirs}.{shared}.{name}_proj") for name in names)
    return (Rule(f"{ours}.shared_gate", f"{theirs}.{gate}"), *rules)


def glm_rules(config: Any) -> tuple[Rule, ...]:
    """Lines for the experts of DeepSeek-V3 and GLM 4 MoE."""
    balance = Rule("transformer.blocks.{}.ffn.router.balance", "model.layers.{}.mlp.gate.e_score_correction_bias")
    return (balance, *qwen_rules(config), *shared_rules("model.layers.{}.mlp"))


def qwen2_rules(config: Any) -> tuple[Rule, ...]:
    """Lines for the experts of Qwen 2."""
    return (*qwen_rules(config), *shared_rules("model.layers.{}.mlp", "shared_expert"))


def ernie_rules(config: Any) -> tuple[Rule, ...]:
    """Lines for the experts of Ernie 4.5, whose balance has one group."""
    theirs = "model.layers.{}.mlp.moe_statics.e_score_correction_bias"
    balance = Rule("transformer.blocks.{}.ffn.router.balance", theirs, reshaped(1, -1))
    return (balance, *qwen_rules(config), *shared_rules("model.layers.{}.mlp"))


def granite_rules(config: Any) -> tuple[Rule, ...]:
    """Lines for the experts of Granite, where gate and up lie in one tensor."""
    ours, theirs, moe = "transformer.blocks.{}.ffn", "model.layers.{}", "block_sparse_moe"
    own = ours if config.transformer.experts is None else f"{ours}.shared"
    return (
        Rule(f"{ours}.router", f"{theirs}.{moe}.router.layer"),
        Rule((f"{ours}.experts.gate", f"{ours}.experts.up"), f"{theirs}.{moe}.input_linear", SIDE_BY_SIDE),
        Rule(f"{ours}.experts.down", f"{theirs}.{moe}.output_linear"),
        Rule((f"{own}.gate", f"{own}.up"), f"{theirs}.shared_mlp.input_linear"),
        Rule(f"{own}.down", f"{theirs}.shared_mlp.output_linear"),
    )
