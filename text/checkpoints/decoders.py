"""How Llama and its relatives are read and written; `decoder_families.py` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap
from ...core.config import Linears, TransformerConfig, uniform
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from .mixtures import Mixture
from .rope import by_kind, of_all, old_rotary, write_rotary
from .settings import (
    FULL,
    GATED,
    PLAIN,
    SLIDING,
    Settings,
    inverse,
    multipliers,
    name_of,
    per_layer,
    usual_keys,
)


def rotating(c: Settings, kinds: Sequence[str]) -> list[bool]:
    """Whether each layer has rotary positions."""
    interval = c.get("no_rope_layer_interval")
    flags = c.get("no_rope_layers")  # 1 where there *is* a rotation
    if flags is not None:
        return [bool(flag) for flag in flags[: len(kinds)]]
    return [interval is None or (layer + 1) % interval != 0 for layer in range(len(kinds))]


def where_windowed(c: Settings, kinds: Sequence[str]) -> list[bool]:
    """Rotary positions in layers with a window only (Cohere 2)."""
    return [kind == SLIDING for kind in kinds]


@dataclass(frozen=True)
class Decoder:
    """What all models of a family have, and their configs therefore do not say.

    Args:
        architecture: the class in transformers.
        activation, eps: their keys of the activation and of the norms' epsilon.
        core: settings of our `TransformerConfig` besides causal attention with rotary positions.
        switches: keys that turn settings of our `TransformerConfig` on, and the values these then have.
        bias: linear layers that always have a bias.
        biases: keys that give linear layers a bias, and which.
        gated: the feed-forward has a gate.
        head_bias: the logits have a bias.
        scaled: the embedding is multiplied by sqrt(dim).
        interleaved: neighbouring channels are rotated together.
        fraction: the key of the rotated part of a head; None where all of it is.
        scalings: kinds of rotary scaling; None for all that the library has.
        thetas: where each kind of layer has rotary settings of its own, the old key of its base, or the base.
        kinds: the kind of each layer when `layer_types` does not say it.
        rotates: whether each layer has rotary positions.
        require: keys, and the values that they may have.
        more: keys from our config that are written otherwise than those of the other families.
        rules: lines of the weight table that come before those of Llama.
        ignored: names of parts that its class does not load, as layers that predict further tokens.
        mixture: how experts are written; None for a family without.
    """

    architecture: str
    activation: str = "hidden_act"
    eps: str = "rms_norm_eps"
    core: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bias: tuple[str, ...] = ()
    biases: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"attention_bias": Linears[:4], "mlp_bias": Linears[4:]}
    )
    gated: bool = True
    head_bias: bool = False
    scaled: bool = False
    interleaved: bool = False
    fraction: str | None = None
    scalings: tuple[str, ...] | None = None
    thetas: Mapping[str, str | float] | None = None
    kinds: Callable[[Settings, int], str] = lambda c, layer: FULL
    rotates: Callable[[Settings, Sequence[str]], list[bool]] = rotating
    require: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    more: Callable[[TransformerConfig], dict[str, Any]] = lambda t: {}
    rules: Callable[[LanguageModelConfig], tuple[Rule, ...]] = lambda config: ()
    ignored: Callable[[LanguageModelConfig], tuple[str, ...]] = lambda config: ()
    mixture: Mixture | None = None

    @property
    def activations(self) -> Mapping[str, str]:
        """Their words for the activation and ours."""
        return GATED if self.gated else PLAIN


def read_decoder(c: Settings, family: Decoder) -> LanguageModelConfig:
    """The config of a decoder with rotary positions."""
    for key, allowed in ({"use_bidirectional_attention": (None, False)} | dict(family.require)).items():
        c.require(key, *allowed)
    depth, heads = c.depth(), c["num_attention_heads"]
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    kinds = c.get("layer_types") or [family.kinds(c, layer) for layer in range(depth)]
    # What Gemma's first configs called its tanh approximation.
    legacy = family.scaled and family.activation == "hidden_act" and c["hidden_act"] == "gelu"
    scalar = c.get("query_pre_attn_scalar", head_dim)
    bias = {*family.bias, *(name for key, names in family.biases.items() if c.get(key) for name in names)}
    core: dict[str, Any] = {"norm": "rmsnorm", "norm_eps": c.get(family.eps)} | dict(family.core)
    core |= {name: value for key, on in family.switches.items() if c[key] for name, value in on.items()}
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=depth,
        heads=heads,
        kv_heads=c["num_key_value_heads"] or heads,
        head_dim=head_dim,
        causal=True,
        window=c.windows(kinds),
        context=c["max_position_embeddings"],
        rotary=_rotary(c, family, kinds),
        residual_scale=c.get("residual_multiplier", 1.0),
        attention_scale=c.get("attention_multiplier", None if scalar == head_dim else scalar**-0.5),
        attention_softcap=c.get("attn_logit_softcapping"),
        ffn="geglu_tanh" if legacy else c.choose(family.activation, family.activations),  # type: ignore[arg-type]
        ffn_dim=c["intermediate_size"],
        bias=[name for name in Linears if name in bias] or False,
        experts=None if family.mixture is None else family.mixture.read(c),
        **core,
    )
    return LanguageModelConfig(
        c["vocab_size"], transformer, tied=c["tie_word_embeddings"], head_bias=family.head_bias,
        embedding_scale=c.get("embedding_multiplier", family.scaled),
        logit_scale=c.get("logit_scale", inverse(c.get("logits_scaling", 1.0))),
        logit_softcap=c.get("final_logit_softcapping"),
    )  # fmt: skip


def _rotary(c: Settings, family: Decoder, kinds: Sequence[str]) -> Any:
    """Rotary settings of all layers, or of each."""
    if family.thetas is not None:
        of_kind = by_kind(c, kinds, family.thetas, (FULL,))
        return uniform([of_kind[kind] for kind in kinds])
    rotary = of_all(c, fraction=family.fraction, interleaved=family.interleaved, scalings=family.scalings)
    found = [rotary if rotates else None for rotates in family.rotates(c, kinds)]
    return uniform(found) or found


def write_decoder(ours: LanguageModelConfig, family: Decoder, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `read_decoder`, as far as the family has keys for it."""
    t = ours.transformer.resolved()
    windows = per_layer(t.window, t.depth)
    kinds = [FULL if window is None else SLIDING for window in windows]
    rotary = [t.rotary_at(layer) for layer in range(t.depth)]
    found = [r for r in rotary if r is not None] or [RotaryConfig()]
    of_kind = {kind: next((r for k, r in zip(kinds, rotary) if k == kind and r), found[0]) for kind in (FULL, SLIDING)}
    head_dim = t.head_dim or 0
    scale = head_dim**-0.5 if t.attention_scale is None else t.attention_scale
    # Gemma 2 and 3 insist on a number even where `layer_types` leaves it unused.
    unused = defaults["sliding_window"] if "layer_types" in defaults else None
    usual = usual_keys(ours, family.architecture)
    values = (
        usual
        | multipliers(ours)
        | {
            "head_dim": head_dim,
            family.eps: t.norm_eps,
            family.activation: name_of(family.activations, t.ffn),
            **{key: t.has_bias(names[-1]) for key, names in family.biases.items()},
            **{key: all(getattr(t, name) == on[name] for name in on) for key, on in family.switches.items()},
            "sliding_window": next((window for window in windows if window), unused),
            "use_sliding_window": any(windows),
            "max_window_layers": kinds.index(SLIDING) if SLIDING in kinds else t.depth,
            "layer_types": kinds,
            "no_rope_layers": [int(r is not None) for r in rotary],
            "query_pre_attn_scalar": head_dim if t.attention_scale is None else round(scale**-2),
            "attn_logit_softcapping": t.attention_softcap,
            "final_logit_softcapping": ours.logit_softcap,
            "rope_local_base_freq": of_kind[SLIDING].base,
            "partial_rotary_factor": found[0].fraction,
            "original_max_position_embeddings": found[0].original_context or t.context,
            "attention_multiplier": scale,
            "residual_multiplier": t.residual_scale,
            "logit_scale": ours.logit_scale,
        }
    )
    if family.mixture is not None:
        values |= family.mixture.write(t)
    general = {key: usual[key] for key in ("architectures", "attention_dropout")}
    rope = {kind: write_rotary(r) for kind, r in of_kind.items()}
    parts = {} if family.fraction is None else {"partial_rotary_factor": found[0].fraction}
    return (
        general
        | {key: value for key, value in values.items() if key in defaults}
        | old_rotary(rope[FULL])
        | {"rope_parameters": write_rotary(found[0]) | parts if family.thetas is None else rope}
        | family.more(t)
    )


LLAMA_RULES = (
    Rule("embedding", "model.embed_tokens"),
    *(
        Rule(f"transformer.blocks.{{}}.attn.{ours}", f"model.layers.{{}}.self_attn.{theirs}")
        for ours, theirs in {
            "q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm",
        }.items()
    ),
    *(
        Rule(f"transformer.blocks.{{}}.ffn.{name}", f"model.layers.{{}}.mlp.{name}_proj")
        for name in ("gate", "up", "down")
    ),
    Rule("transformer.blocks.{}.norm1", "model.layers.{}.input_layernorm"),
    Rule("transformer.final_norm", "model.norm"),
    Rule("head", "lm_head"),
)  # fmt: skip
PRE_NORM_RULES = (Rule("transformer.blocks.{}.norm2", "model.layers.{}.post_attention_layernorm"),)
BRANCH_NORM_RULES = (
    Rule("transformer.blocks.{}.branch1.norm", "model.layers.{}.post_attention_layernorm"),
    Rule("transformer.blocks.{}.norm2", "model.layers.{}.pre_feedforward_layernorm"),
    Rule("transformer.blocks.{}.branch2.norm", "model.layers.{}.post_feedforward_layernorm"),
)


def decoder_weights(config: LanguageModelConfig, family: Decoder) -> WeightMap:
    """The table of Llama and its relatives."""
    norms = PRE_NORM_RULES if config.transformer.placement == "pre" else BRANCH_NORM_RULES
    gains = family.core.get("norm_weight") != "none"
    ignored = (r".*rotary_emb\.inv_freq", *family.ignored(config))
    return WeightMap((*family.rules(config), *LLAMA_RULES, *norms), ignored, gains=gains)
