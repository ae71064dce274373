"""What a transformer is, as data: validated where it is made, written to and read from `config.json`.

The fields are orthogonal: each names one choice that published models differ in. What the checkpoints need:

| model            | fields that differ from the defaults                                                         |
|------------------|----------------------------------------------------------------------------------------------|
| 2017             | placement post, position sinusoidal, ffn relu, cross_attention in the decoder                |
| GPT-2            | position learned, ffn gelu_tanh                                                              |
| BERT             | placement post, position learned, input_norm, causal False                                   |
| GPT-NeoX, Pythia | parallel, rotary.fraction 0.25                                                               |
| Llama, SmolLM    | norm rmsnorm, ffn swiglu, bias False, kv_heads, rotary.scaling llama3; per layer (SmolLM 3)  |
| Mistral          | + window                                                                                     |
| Qwen 2 / 3       | bias (q, k, v) / qk_norm head with head_dim                                                  |
| Gemma 1 / 2 / 3  | norm_weight offset, ffn geglu_tanh / placement sandwich, softcap / windows, rotary per layer |
| ESM-2            | position rotary with half_precision frequencies, causal False                                |
| timm ViT, DINOv2 | causal False, layer_scale, input_norm (CLIP), qk_norm head, inner_norm                       |
| EVA-02, DINOv3   | rotary.axes 2, ffn swiglu with inner_norm ffn, bias without k                                |
| RoPE-ViT         | rotary.learned                                                                               |
| OLMo 2, EVA-02 E | placement branch, qk_norm full                                                               |
| Granite          | residual_scale, attention_scale                                                              |
| Cohere, GPT-J    | parallel with shared_norm, rotary.interleaved                                                |
| StableLM         | qk_norm per_head                                                                             |
| ModernBERT       | first_norm False, windows and rotary per layer, causal False                                 |
| OPT, RoBERTa     | position_offset 2                                                                            |
| Longformer       | RoBERTa with windows and global_projections; BigBird: BERT with sparse                       |
| Mixtral, Jamba   | experts (Jamba: in every second layer); Mamba: ffn none                                      |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import check, check_choice, check_keys, check_types, counts, hashed
from .config_checks import check_numbers, check_patterns
from .expert_options import ExpertsConfig, in_words
from .mixers import options as mixers
from .rotary import RotaryConfig
from .sparse import SparseConfig

FeedForwardKind = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "swiglu", "geglu", "geglu_tanh", "reglu",
    "none",
]  # fmt: skip
Linears = ("q", "k", "v", "out", "gate", "up", "down")
"""Names of the linear layers of a block, as `bias` lists them."""
MOST_LAYERS = 10_000
TRAINING_ONLY = ("dropout", "attention_dropout", "stochastic_depth", "init_std", "init_residual")
"""Settings of `TransformerConfig` that matter in training and at its start, and that no output of a trained model
depends on.
"""


@dataclass(frozen=True)
class TransformerConfig:
    """A stack of transformer blocks.

    Args:
        dim: width of the token vectors.
        depth: number of blocks.
        heads: query heads.
        kv_heads: key and value heads (grouped-query attention, Ainslie et al. 2023); None means `heads`.
        head_dim: width of one head; None means dim / heads.
        causal: a token attends only to itself and the tokens before it.
        mixer: what lets tokens exchange information: one name for all layers, a pattern with a letter for each such as
            "MMMAMMM", or a list with a name for each (core/mixers/options.py lists them).
        mixer_options: settings by the name of the kind, such as {mamba2: {state: 128}}.
        window: a token attends only to tokens at a distance below `window` (itself included); one number for all layers
            or a list with one entry (or null) per layer.
        sparse: blocks of tokens that a token attends to, in all layers with attention, in the place of a window.
        short_convolution: tokens that a convolution over each channel of queries, keys and values reads (So et al.
            2021), with `causal` the last ones, else those around a token; 0 for none. Other mixers have `conv`.
        position: `none`, a `learned` or `sinusoidal` (Vaswani et al. 2017, section 3.5) table added to the input, or
            `rotary`.
        position_offset: further rows of the learned table, before that of position 0 (OPT, RoBERTa: 2).
        context: rows of the learned table from position 0 on; for the others the longest input seen in training, in
            tokens.
        rotary: settings of the rotary embedding; one for all layers or a list with one entry (or null, for a layer
            without position) per layer.
        norm: `layernorm` (Ba et al. 2016) or `rmsnorm` (Zhang and Sennrich 2019).
        norm_eps: added to the variance.
        norm_weight: `plain` gain, gain stored as `offset` from one (Gemma), or `none` (no gain, no bias).
        norm_bias: LayerNorm has a bias.
        placement: norm before each sub-layer (`pre`), after the residual sum (`post`, 2017), or inside the residual
            branch after each sub-layer (`branch`, OLMo 2) or before and after it (`sandwich`).
        parallel: attention and feed-forward read the same input and are added together (GPT-J, GPT-NeoX).
        shared_norm: with `parallel`, both read the output of one norm (GPT-J) instead of having one each (GPT-NeoX).
        input_norm: a norm on the input, after positions are added (BERT, CLIP).
        first_norm: the first block has a norm before its attention; ModernBERT has only its `input_norm` there.
        final_norm: a norm after the last block; None means yes, except for `post`.
        qk_norm: normalise queries and keys over each `head` with one gain for all heads, over each with a gain of its
            own and no bias (`per_head`), or over the `full` width.
        inner_norm: norms inside the sub-layers: before the output projection of `attention`, of `ffn`, or both.
        residual_scale: factor on each residual branch (Granite).
        residual_fp32: residual sums are float32 where the weights have 16 bits (Mamba).
        attention_scale: factor on query·key; None means head_dim^-0.5.
        attention_softcap: scores become cap·tanh(score / cap) (Gemma 2).
        attention_gate: what the heads found is multiplied by the sigmoid of a linear function of the token
            (Qwen3-Next), which has a bias where q has one.
        global_projections: for what global tokens read there are linear layers of their own (Longformer).
        ffn: feed-forward kind; the glu ones are gated (Shazeer 2020), relu2 is the squared ReLU (So et al. 2021), and
            none leaves the feed-forward out; one for all layers or a list with one for each.
        ffn_dim: hidden width; None means 4·dim, or 8/3·dim rounded up to a multiple of 8 for gated kinds.
        experts: settings of mixtures of experts, and which layers have them; None means no layer.
        bias: which linear layers have a bias: true, false or a list of q, k, v, out, gate, up, down.
        cross_attention: each block also attends to a `memory` (the decoder of 2017).
        dropout: on the input, on each residual branch and inside the feed-forward.
        attention_dropout: on the attention weights.
        stochastic_depth: chance to skip a residual branch, growing linearly from 0 to this over the layers (Huang et
            al. 2016).
        layer_scale: initial gain of each residual branch, learned per channel (Touvron et al. 2021); None means no
            gain.
        init_std: standard deviation of the linear layers; None means 1/sqrt(fan in).
        init_residual: output projections start `scaled` by 1/sqrt(2·depth) (GPT-2) or at `zero`.
    """

    dim: int = 256
    depth: int = 6
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool = False
    mixer: str | list[str] = "attention"
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    window: int | list[int | None] | None = None
    sparse: SparseConfig | None = None
    short_convolution: int = 0
    position: Literal["none", "learned", "sinusoidal", "rotary"] = "rotary"
    position_offset: int = 0
    context: int = 1024
    rotary: RotaryConfig | list[RotaryConfig | None] = field(default_factory=RotaryConfig)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    norm_weight: Literal["plain", "offset", "none"] = "plain"
    norm_bias: bool = True
    placement: Literal["pre", "post", "branch", "sandwich"] = "pre"
    parallel: bool = False
    shared_norm: bool = False
    input_norm: bool = False
    first_norm: bool = True
    final_norm: bool | None = None
    qk_norm: Literal["none", "head", "per_head", "full"] = "none"
    inner_norm: list[Literal["attention", "ffn"]] = field(default_factory=list)
    residual_scale: float = 1.0
    residual_fp32: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    attention_gate: bool = False
    global_projections: bool = False
    ffn: FeedForwardKind | list[FeedForwardKind] = "gelu"
    ffn_dim: int | None = None
    experts: ExpertsConfig | None = None
    bias: bool | list[str] = True
    cross_attention: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    layer_scale: float | None = None
    init_std: float | None = 0.02
    init_residual: Literal["scaled", "zero"] = "scaled"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("dim", "depth", "heads", "context"):
            value = getattr(self, name)
            check(counts(value), name, value, "a positive integer")
        # Each layer is made by itself, so that no single allocation would be refused.
        check(self.depth <= MOST_LAYERS, "depth", self.depth, f"at most {MOST_LAYERS:,}")
        if self.head_dim is None:
            check(
                self.dim % self.heads == 0, "dim", self.dim,
                f"divisible by heads ({self.heads}) when head_dim is not given; try {self._near_multiple()}",
            )  # fmt: skip
        self._check_choices()
        check_numbers(self)
        self._check_layers()
        self._check_ffn()
        self._check_mixers()
        check_patterns(self)

    def __hash__(self) -> int:
        return hashed(self)

    def resolved(self) -> TransformerConfig:
        """The same with each None that stands for a computed value replaced by it.

        A model keeps its config in this form, so that a saved one does not depend on today's rules.
        """
        ffn_dim = 8 * math.ceil(self.dim / 3) if self.gated else 4 * self.dim
        names = [self.mixer_at(layer) for layer in range(self.depth)]
        return dataclasses.replace(
            self,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.head_dim or self.dim // self.heads,
            ffn=uniform(self.ffns),
            ffn_dim=self.ffn_dim or ffn_dim,
            experts=self.experts and self.experts.resolved(self.ffn_dim or ffn_dim, self.ffns),
            final_norm=self.placement != "post" if self.final_norm is None else self.final_norm,
            mixer=names[0] if len(set(names)) == 1 else names,
            mixer_options={name: values for name in dict.fromkeys(names) if (values := self._all_options(name))},
        )

    def canonical(self) -> TransformerConfig:
        """The same function in one spelling: two configs describe the same function where these are equal.

        It is made once: a model is compared with those of all families of other libraries.

        What is computed is written out, what has no effect gets its default, and so do `TRAINING_ONLY` settings. A
        gain of one and no gain are the same function, and so are all initial values of a learned `layer_scale`.
        """
        if (known := self.__dict__.get("_one")) is None:
            known = self.__dict__["_one"] = self._canonical()
        return known

    def _canonical(self) -> TransformerConfig:
        full, plain = self.resolved(), TransformerConfig()
        rotary = [r and r.canonical(full.head_dim or 0) for r in map(full.rotary_at, range(full.depth))]
        turned = any(rotary)
        table = full.position in ("learned", "sinusoidal")
        names = [full.mixer_at(layer) for layer in range(full.depth)]
        scale = (full.head_dim or 0) ** -0.5 if full.attention_scale is None else full.attention_scale
        return dataclasses.replace(
            full,
            window=uniform([full.window_at(layer) for layer in range(full.depth)]),
            sparse=full.sparse and full.sparse.canonical(),
            position=full.position if turned or full.position != "rotary" else "none",
            context=full.context if table else plain.context,
            rotary=uniform(rotary) if turned else plain.rotary,
            norm_weight="plain" if full.norm_weight == "none" and full.norm == "rmsnorm" else full.norm_weight,
            norm_bias=full.norm_bias and full.norm == "layernorm" and full.norm_weight != "none",
            first_norm=full.first_norm or full.placement in ("post", "branch"),
            inner_norm=sorted(set(full.inner_norm)),
            attention_scale=scale if "attention" in names else plain.attention_scale,
            ffn_dim=full.ffn_dim if full._plain_ffn() else plain.ffn_dim,
            experts=full.experts and full.experts.canonical(),
            **mixers.canonical(full, Linears),
            layer_scale=None if full.layer_scale is None else 1.0,
            **{name: getattr(plain, name) for name in TRAINING_ONLY},
        )

    def _near_multiple(self) -> str:
        below = self.dim // self.heads * self.heads
        return " or ".join(str(n) for n in (below, below + self.heads) if n)

    def _check_choices(self) -> None:
        check_choice("position", self.position, Literal["none", "learned", "sinusoidal", "rotary"])
        check_choice("norm", self.norm, Literal["layernorm", "rmsnorm"])
        check_choice("norm_weight", self.norm_weight, Literal["plain", "offset", "none"])
        check_choice("placement", self.placement, Literal["pre", "post", "branch", "sandwich"])
        check_choice("qk_norm", self.qk_norm, Literal["none", "head", "per_head", "full"])
        for kind in self.ffns:
            check_choice("ffn", kind, FeedForwardKind)
        check_choice("init_residual", self.init_residual, Literal["scaled", "zero"])
        for name in self.inner_norm:
            check_choice("inner_norm", name, Literal["attention", "ffn"])
        if not isinstance(self.bias, bool):
            check(not isinstance(self.bias, str), "bias", self.bias, f"true, false or a list of {', '.join(Linears)}")
            for name in self.bias:
                check(name in Linears, "bias", name, f"true, false or a list of {', '.join(Linears)}")
        if self.parallel:
            check(self.placement == "pre", "placement", self.placement, "pre when parallel is true")
            check(not self.cross_attention, "cross_attention", self.cross_attention, "false when parallel is true")
        check(self.parallel or not self.shared_norm, "shared_norm", self.shared_norm, "false when parallel is false")

    def _check_layers(self) -> None:
        for name in ("window", "rotary", "ffn"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, list(value))
                check(
                    len(value) == self.depth, name, value, f"one entry for all or one for each of {self.depth} layers"
                )
        for layer in range(self.depth):
            window, rotary = self.window_at(layer), self.rotary_at(layer)
            check(window is None or counts(window), "window", window, "a positive number of tokens or null")
            if rotary is not None:
                rotary.check_heads(self.head_dim or self.dim // self.heads, self.heads, self.kv_heads)
        axes = {r.axes for r in map(self.rotary_at, range(self.depth)) if r is not None}
        check(len(axes) < 2, "rotary.axes", sorted(axes), "the same in all layers, which share their positions")

    def _check_ffn(self) -> None:
        kinds = self.ffns
        mixed = len({"glu" in kind for kind in kinds if kind != "none"}) == 2
        allowed = "given, because its default differs between gated and other kinds of ffn"
        check(not mixed or self.ffn_dim is not None, "ffn_dim", self.ffn_dim, allowed)
        if self.experts is not None:
            self.experts.check_layers(kinds)
            check("ffn" not in self.inner_norm, "inner_norm", self.inner_norm, "without ffn where a layer has experts")

    def _check_mixers(self) -> None:
        names = mixers.expand(self.mixer, self.depth)
        for name in self.mixer_options:
            choices = ", ".join(dict.fromkeys(names))
            check(name in names, "mixer_options", name, f"for a kind that a layer has: {choices}")
        for name in dict.fromkeys(names):
            self.options_of(name)
            needs_all = mixers.KINDS[name].direction == "both"
            check(not (needs_all and self.causal), "mixer", name, "one that can be causal, because causal is true")
        for layer, name in enumerate(names):
            for field_name in ("window", "rotary"):
                value = getattr(self, field_name)
                unused = name != "attention" and isinstance(value, list) and value[layer] is not None
                check(not unused, field_name, value, f"null for layer {layer}, whose mixer is {name}, not attention")
        if "attention" not in names:
            for f in (f for f in dataclasses.fields(self) if f.name in mixers.OF_ATTENTION):
                value = getattr(self, f.name)
                check(value == f.default, f.name, value, f"{f.default}, because no layer has the mixer attention")

    @property
    def gated(self) -> bool:
        """A feed-forward has a gate: down(act(gate(x)) * up(x))."""
        return any("glu" in kind for kind in self.ffns)

    @property
    def ffns(self) -> list[FeedForwardKind]:
        """Kind of the feed-forward of each layer."""
        return [self.ffn] * self.depth if isinstance(self.ffn, str) else self.ffn

    def ffn_words(self) -> str:
        """The feed-forwards of all layers, in words."""
        return in_words(self.ffns, self.resolved().experts)

    def ffn_at(self, layer: int) -> FeedForwardKind:
        """Kind of the feed-forward of one layer."""
        return self.ffns[layer]

    def experts_at(self, layer: int) -> ExpertsConfig | None:
        """Settings of the experts of one layer, None for a layer without."""
        return self.experts if self.experts is not None and self.experts.of(layer, self.ffns) else None

    def _plain_ffn(self) -> bool:
        """Whether the width of a feed-forward outside of experts matters."""
        return any(self.ffn_at(i) != "none" and self.experts_at(i) is None for i in range(self.depth))

    def has_bias(self, linear: str) -> bool:
        """Whether the linear layer called `linear` (one of `Linears`) has a bias."""
        return self.bias if isinstance(self.bias, bool) else linear in self.bias

    def mixer_at(self, layer: int) -> str:
        """Name of the kind of mixer of one layer."""
        return mixers.expand(self.mixer, self.depth)[layer]

    def require_attention(self, what: str) -> None:
        """Raises UserError, naming `what` is asked for, unless every layer has the mixer attention."""
        for layer in range(self.depth):
            name = self.mixer_at(layer)
            check(name == "attention", f"mixer of layer {layer}", name, f"attention for {what}")

    def options_of(self, mixer: str) -> Any:
        """Options of a kind of mixer, as its dataclass."""
        head_dim = self.head_dim or self.dim // self.heads
        return mixers.options_of(mixer, self.mixer_options.get(mixer, {}), self.dim, self.heads, head_dim)

    def _all_options(self, mixer: str) -> dict[str, Any]:
        return dataclasses.asdict(self.options_of(mixer))

    def window_at(self, layer: int) -> int | None:
        """Window of one layer in tokens, None for no limit and for a layer without attention."""
        if self.mixer_at(layer) != "attention":
            return None
        return self.window[layer] if isinstance(self.window, list) else self.window

    def rotary_at(self, layer: int) -> RotaryConfig | None:
        """Rotary settings of one layer, None for a layer without rotation or without attention."""
        if self.position != "rotary" or self.mixer_at(layer) != "attention":
            return None
        return self.rotary[layer] if isinstance(self.rotary, list) else self.rotary

    def rerotates(self, before: int, after: int) -> bool:
        """Whether a text that grows from `before` to `after` tokens needs other rotations of those it had."""
        return any(r.rerotates(before, after) for r in map(self.rotary_at, range(self.depth)) if r is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> TransformerConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key, with the nearest known one."""
        values = dict(check_keys(cls, values, "transformer"))
        rotary = values.get("rotary")
        if isinstance(rotary, dict):
            values["rotary"] = RotaryConfig(**check_keys(RotaryConfig, rotary, "transformer.rotary"))
        elif isinstance(rotary, list):
            values["rotary"] = [r and RotaryConfig(**check_keys(RotaryConfig, r, "transformer.rotary")) for r in rotary]
        for name, kind in (("experts", ExpertsConfig), ("sparse", SparseConfig)):
            if isinstance(given := values.get(name), dict):
                values[name] = kind(**check_keys(kind, given, f"transformer.{name}"))
        return cls(**values)


def uniform(values: Sequence[Any]) -> Any:
    """One value for all layers if they have the same, else the list."""
    return values[0] if all(value == values[0] for value in values) else list(values)
