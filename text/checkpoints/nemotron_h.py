"""Nemotron-H: layers of one part each, Mamba-2, attention, a feed-forward or experts; a block here has a mixer and the
feed-forward that may follow it."""

from __future__ import annotations

from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ..model import LanguageModelConfig
from .hybrids import ATTENTION, LINEAR
from .mixtures import SIGMOID_EXPERTS, expert_rules, experts_of, read_sigmoid, shared_rules, write_sigmoid
from .recurrent import mamba2_rules
from .settings import FULL, PLAIN, REQUIRED, Settings, hf_family, name_of, usual_keys

MLP, MOE = "mlp", "moe"
LETTERS = {"M": LINEAR, "*": FULL, "-": MLP, "E": MOE}
NEMOTRON_H = SIGMOID_EXPERTS | {
    **dict.fromkeys(("vocab_size", "hidden_size"), REQUIRED),
    "layers_block_type": None, "hybrid_override_pattern": None, "tie_word_embeddings": False,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
    "intermediate_size": 21504, "mlp_hidden_act": "relu2", "mlp_bias": False, "ssm_state_size": 128,
    "mamba_num_heads": 128, "mamba_head_dim": 64, "mamba_hidden_act": "silu", "n_groups": 8, "conv_kernel": 4,
    "time_step_min": 0.001, "use_conv_bias": True, "use_bias": False, "layer_norm_epsilon": 1e-5,
    "n_routed_experts": 8, "moe_intermediate_size": 7688, "moe_shared_expert_intermediate_size": 7688,
    "moe_latent_size": None, "num_experts_per_tok": 2,
}  # fmt: skip
OLD_NAMES = {
    "layer_types": "layers_block_type", "num_local_experts": "n_routed_experts", "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel", "mamba_dt_min": "time_step_min", "mamba_conv_bias": "use_conv_bias",
}  # fmt: skip


def _parts(c: Settings) -> list[str]:
    """The kind of each of their layers."""
    listed, pattern = c["layers_block_type"], c["hybrid_override_pattern"]
    if listed is None:
        listed = [LINEAR, MOE, FULL, MLP] if pattern is None else [LETTERS.get(letter, letter) for letter in pattern]
    found = [ATTENTION.get(str(kind), str(kind)) for kind in listed]
    if unknown := sorted(set(found) - set(LETTERS.values())):
        raise UserError(
            f"'{c.name}' has layers of the kind {', '.join(unknown)}, which the core does not have; it has "
            f"{', '.join(LETTERS.values())}."
        )
    for layer, kind in enumerate(found):
        if kind in (MLP, MOE) and (layer == 0 or found[layer - 1] in (MLP, MOE)):
            raise UserError(
                f"'{c.name}' has a feed-forward in layer {layer} that follows no mixer, but a block of the core has a "
                "mixer before its feed-forward; use it in its own library."
            )
    if not found:
        raise UserError(f"'{c.name}' has no layers (layers_block_type).")
    return found


def _blocks(parts: list[str]) -> list[tuple[str, str | None]]:
    """Each mixer, with the feed-forward that follows it."""
    after = [*parts[1:], None]
    return [(kind, then if then in (MLP, MOE) else None) for kind, then in zip(parts, after) if kind in (LINEAR, FULL)]


def read_nemotron_h(c: Settings) -> LanguageModelConfig:
    """The config of Nemotron-H (NVIDIA 2025)."""
    c.require("mamba_hidden_act", "silu", "swish")
    c.require("moe_latent_size", None)
    blocks = _blocks(_parts(c))
    mixed = [i for i, (_, then) in enumerate(blocks) if then == MOE]
    if mixed:
        c.require("mlp_bias", False)  # the experts of such a model have no bias, but its shared one has
    mamba2 = {
        "state": c["ssm_state_size"], "conv": c["conv_kernel"], "heads": c["mamba_num_heads"],
        "width": c["mamba_head_dim"], "groups": c["n_groups"], "conv_bias": c["use_conv_bias"], "bias": c["use_bias"],
        "floor": float(c["time_step_min"]),
    }  # fmt: skip
    mixers = ["attention" if kind == FULL else "mamba2" for kind, _ in blocks]
    kind: Any = c.choose("mlp_hidden_act", PLAIN)
    transformer = TransformerConfig(
        dim=c["hidden_size"], depth=len(blocks), heads=c["num_attention_heads"],
        kv_heads=c["num_key_value_heads"] or c["num_attention_heads"], head_dim=c["head_dim"], causal=True,
        mixer=mixers, mixer_options={"mamba2": mamba2} if "mamba2" in mixers else {}, position="none",
        context=c["max_position_embeddings"], norm="rmsnorm", norm_eps=c["layer_norm_epsilon"],
        ffn=["none" if then is None else kind for _, then in blocks], ffn_dim=c["intermediate_size"],
        experts=read_sigmoid(c, mixed, c["moe_shared_expert_intermediate_size"]) if mixed else None,
        bias=["up", "down"] if c["mlp_bias"] else False,
    )  # fmt: skip
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"])


def _parts_of(t: TransformerConfig) -> list[tuple[int, str]]:
    """Their layers: the number of our block, and the kind."""
    found = []
    for layer in range(t.depth):
        found.append((layer, FULL if t.mixer_at(layer) == "attention" else LINEAR))
        if t.ffn_at(layer) != "none":
            found.append((layer, MLP if t.experts_at(layer) is None else MOE))
    return found


def write_nemotron_h(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_nemotron_h`."""
    t = ours.transformer.resolved()
    options = t.options_of("mamba2")
    kinds = [kind for _, kind in _parts_of(t)]
    letters = {kind: letter for letter, kind in LETTERS.items()}
    return (
        usual_keys(ours, "NemotronHForCausalLM")
        | write_sigmoid(t)
        | {
            "layers_block_type": kinds,
            "hybrid_override_pattern": "".join(letters[kind] for kind in kinds),
            "num_hidden_layers": len(kinds),
            "head_dim": t.head_dim,
            "mlp_hidden_act": name_of(PLAIN, next((kind for kind in t.ffns if kind != "none"), "relu2")),
            "mlp_bias": t.has_bias("down"),
            "ssm_state_size": options.state,
            "mamba_num_heads": options.heads,
            "mamba_head_dim": options.width,
            "n_groups": options.groups,
            "conv_kernel": options.conv,
            "time_step_min": options.floor,
            "expand": max(1, options.inner // t.dim),
            "use_conv_bias": options.conv_bias,
            "use_bias": options.biased(t.bias, "step"),
            "layer_norm_epsilon": t.norm_eps,
            "moe_shared_expert_intermediate_size": experts_of(t).shared,
        }
    )


def nemotron_h_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Nemotron-H, where two of its layers may be one block of ours."""
    t = config.transformer
    rules = [Rule("embedding", "backbone.embeddings"), Rule("transformer.final_norm", "backbone.norm_f")]
    rules += [Rule("head", "lm_head")]
    for theirs, (layer, kind) in enumerate(_parts_of(t)):
        block, there = f"transformer.blocks.{layer}", f"backbone.layers.{theirs}"
        mixer = f"{there}.mixer"
        rules += [Rule(f"{block}.norm{2 if kind in (MLP, MOE) else 1}", f"{there}.norm")]
        if kind == LINEAR:
            rules += mamba2_rules(f"{block}.attn", mixer, t)
        elif kind == FULL:
            names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
            rules += [Rule(f"{block}.attn.{ours}", f"{mixer}.{name}") for ours, name in names.items()]
        elif kind == MLP:
            rules += [Rule(f"{block}.ffn.{name}", f"{mixer}.{name}_proj") for name in ("up", "down")]
        else:
            rules += [Rule(f"{block}.ffn.router.balance", f"{mixer}.gate.e_score_correction_bias")]
            of_layer = (*expert_rules(mixer, t, "gate", "", "up_proj", "down_proj"), *shared_rules(mixer))
            rules += [rule._replace(ours=str(rule.ours).replace("{}", str(layer))) for rule in of_layer]
    return WeightMap(tuple(rules), ignored=(r"mtp\..*",))


NEMOTRON = (
    hf_family(
        "Nemotron-H", "nemotron_h", LanguageModelConfig, read_nemotron_h, write_nemotron_h, NEMOTRON_H,
        nemotron_h_weights, OLD_NAMES, prefix="backbone.", renames=((r"^model\.", "backbone."),),
    ),
)  # fmt: skip
