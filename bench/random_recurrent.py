"""Random options of recurrent and hybrid models of transformers, for `parity_random.py`."""

from __future__ import annotations

import random
from typing import Any


def recurrent(r: random.Random, kind: str, heads: int, depth: int, width: int) -> dict[str, Any]:
    """Options of one config beside those that all language models have.

    Args:
        r: source of randomness.
        kind: start of the name of the class.
        heads, depth, width: number of heads and layers, channels of a head.
    """
    tied = {"tie_word_embeddings": r.random() < 0.5}
    if kind in ("Mamba", "Mamba2"):
        return tied | _alone(r, kind, heads * width)
    found = tied | {"num_key_value_heads": r.choice([n for n in (1, 2, 3, heads) if heads % n == 0])}
    if kind == "RecurrentGemma":
        return found | {
            "attention_window_size": r.randint(1, 20), "conv1d_width": r.randint(1, 4),
            "logits_soft_cap": r.choice((1.0, 30.0)), "attention_bias": r.random() < 0.5,
            "lru_width": r.choice((None, heads * width, 2 * heads * width)),
            "block_types": [r.choice(("recurrent", "attention")) for _ in range(r.randint(1, 3))],
        }  # fmt: skip
    if kind == "Qwen3Next":
        return found | _delta(r, depth)
    found |= {"mamba_d_state": r.randint(1, 6), "mamba_d_conv": r.randint(2, 4), "mamba_expand": r.choice((1, 2))}
    found |= {"mamba_conv_bias": r.random() < 0.5, "mamba_proj_bias": r.random() < 0.3}
    if kind == "Jamba":
        period = r.randint(1, 3)
        return found | {
            "attn_layer_period": period, "attn_layer_offset": r.randrange(period), "num_experts": r.choice((1, 3)),
            "expert_layer_period": (step := r.randint(1, 2)), "expert_layer_offset": r.randrange(step),
            "num_experts_per_tok": r.choice((1, 2)), "mamba_dt_rank": r.choice(("auto", 3)),
        }  # fmt: skip
    inner = found["mamba_expand"] * heads * width
    found["mamba_n_heads"] = r.choice([n for n in (1, 2, 4) if inner % n == 0])
    found["mamba_n_groups"] = r.choice([n for n in (1, 2) if found["mamba_n_heads"] % n == 0])
    found |= {"attention_bias": r.random() < 0.3, "mamba_chunk_size": r.choice((8, 256))}
    if kind == "Bamba":
        layers = [layer for layer in range(depth) if r.random() < 0.5]
        return found | {"attn_layer_indices": layers, "mlp_bias": r.random() < 0.3}
    kinds = ("mamba", "attention") if r.random() < 0.5 else ("linear_attention", "full_attention")
    return found | {
        "layer_types": [r.choice(kinds) for _ in range(depth)], "num_local_experts": r.choice((0, 2, 3)),
        "num_experts_per_tok": r.choice((1, 2)), "shared_intermediate_size": r.randint(3, 30),
        "position_embedding_type": r.choice((None, "rope")), "embedding_multiplier": r.choice((1.0, 12)),
        "logits_scaling": r.choice((1.0, 6.0)), "residual_multiplier": r.choice((1.0, 0.22)),
        "attention_multiplier": r.choice((1.0, 0.0625)),
    }  # fmt: skip


def _alone(r: random.Random, kind: str, dim: int) -> dict[str, Any]:
    found = {
        "state_size": r.randint(1, 6), "conv_kernel": r.randint(2, 4), "expand": (expand := r.choice((1, 2, 3))),
        "use_bias": r.random() < 0.4, "use_conv_bias": r.random() < 0.6, "layer_norm_epsilon": r.choice((1e-6, 1e-3)),
    }  # fmt: skip
    if kind == "Mamba":
        return found | {"time_step_rank": r.choice(("auto", 3))}
    heads = r.choice([n for n in (1, 2, 4, 6) if expand * dim % n == 0])
    groups = r.choice([n for n in (1, 2, 3) if heads % n == 0])
    return found | {"num_heads": heads, "head_dim": expand * dim // heads, "n_groups": groups, "chunk_size": 8}


def _delta(r: random.Random, depth: int) -> dict[str, Any]:
    heads = r.choice((1, 2))
    return {
        "head_dim": r.choice((8, 12)), "attention_bias": r.random() < 0.3, "linear_num_key_heads": heads,
        "linear_num_value_heads": heads * r.choice((1, 2, 3)), "linear_key_head_dim": r.randint(2, 7),
        "linear_value_head_dim": r.randint(2, 7), "linear_conv_kernel_dim": r.randint(2, 4),
        "layer_types": [r.choice(("linear_attention", "full_attention")) for _ in range(depth)],
        "num_experts": r.choice((0, 3)), "num_experts_per_tok": r.choice((1, 2)), "norm_topk_prob": r.random() < 0.5,
        "moe_intermediate_size": r.randint(3, 14), "shared_expert_intermediate_size": r.randint(3, 14),
        "decoder_sparse_step": r.choice((1, 2)), "mlp_only_layers": r.choice((None, [0], [1])),
    }  # fmt: skip
