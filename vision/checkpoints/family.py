"""What a family of image models is, and the words that tables of names are written in.

A family is a function that reads its settings into our config, one that writes ours as theirs, and tables of names.
What a family can represent follows from the two functions: a config that is written and read again must come out the
same. The families are in `hf_families.py`, `timm_families.py` and `file_families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from ...core.checkpoints.family import Family
from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import STACKED, Rule, WeightMap, reshaped
from ...core.config import Linears
from ..model import VisionTransformerConfig
from ..positions import Resample
from ..preprocessing import Preprocessing

Names = Mapping[str, str]
"""Their names of what `OURS` calls by a word; `{}` stands for the number of a block."""
Table = Callable[[VisionTransformerConfig, Collection[str]], WeightMap]
PREPROCESSOR = "preprocessor_config.json"


def tensors(source: Source) -> dict[str, Tensor]:
    """The weights of a source; the last ones read are kept, because a file is recognised by their names."""
    return _kept(source)


@lru_cache(maxsize=1)
def _kept(source: Source) -> dict[str, Tensor]:
    return source.tensors()


forget = _kept.cache_clear
"""Let go of the weights that `tensors` keeps."""


@dataclass(frozen=True)
class VisionFamily(Family):
    """A family of image models.

    Args:
        table: the weight map for their names as a file holds them; for no names, as we write them. `weights` is the map
            to the names of the modules of their model.
        read: their weights.
        why_not: settings of a config of ours that this family does not have.
        resample: how its library stretches a table of positions.
    """

    table: Table = lambda config, names: WeightMap(())
    read: Callable[[Source], dict[str, Tensor]] = tensors
    why_not: Callable[[VisionTransformerConfig], list[str]] = lambda config: ["all of it"]
    resample: Resample = "reference"


# --- weight maps ------------------------------------------------------------------------------------------------------

_BLOCK = "transformer.blocks.{}."
_QKV = (_BLOCK + "attn.q", _BLOCK + "attn.k", _BLOCK + "attn.v")

OURS: dict[str, str | tuple[str, ...]] = {
    "class_token": "class_token",
    "registers": "registers",
    "positions": "positions.table",
    "patch": "patch_embed",
    "input_norm": "transformer.input_norm",
    "norm1": _BLOCK + "norm1",
    "q_bias": _BLOCK + "attn.q.bias",
    "v_bias": _BLOCK + "attn.v.bias",
    "q": _QKV[0],
    "k": _QKV[1],
    "v": _QKV[2],
    "qkv": _QKV,
    "qkv_weight": tuple(f"{name}.weight" for name in _QKV),
    "qkv_bias": tuple(f"{name}.bias" for name in _QKV),
    "q_norm": _BLOCK + "attn.q_norm",
    "k_norm": _BLOCK + "attn.k_norm",
    "attention_norm": _BLOCK + "attn.inner_norm",
    "out": _BLOCK + "attn.out",
    "scale1": _BLOCK + "branch1.scale",
    "norm2": _BLOCK + "norm2",
    "gate": _BLOCK + "ffn.gate",
    "up": _BLOCK + "ffn.up",
    "gate_up": (_BLOCK + "ffn.gate", _BLOCK + "ffn.up"),
    "ffn_norm": _BLOCK + "ffn.inner_norm",
    "down": _BLOCK + "ffn.down",
    "scale2": _BLOCK + "branch2.scale",
    "final_norm": "transformer.final_norm",
    "pool_latent": "pool.latent",
    "pool_q": "pool.attn.q",
    "pool_kv": ("pool.attn.k", "pool.attn.v"),
    "pool_out": "pool.attn.out",
    "pool_norm": "pool.norm",
    "pool_up": "pool.ffn.up",
    "pool_down": "pool.ffn.down",
    "pooled_norm": "pooled_norm",
    "pre_logits": "pre_logits.0",
    "head": "head",
}
"""Words for the parts of our model that have weights."""


def rules(names: Names, dim: int, prefix: str = "") -> tuple[Rule, ...]:
    """The lines of a weight map; `prefix` is before all of their names but that of the head."""
    return tuple(
        Rule(
            OURS[word],
            theirs if word == "head" else prefix + theirs,
            reshaped(1, -1, dim) if word == "positions" else STACKED,
        )
        for word, theirs in names.items()
    )


def within(block: str, **names: str) -> dict[str, str]:
    return {word: block + name for word, name in names.items()}


# --- what two configs have in common ----------------------------------------------------------------------------------

_FREE = ("dropout", "attention_dropout", "stochastic_depth", "init_std", "init_residual", "context")
"""Settings of the core that only matter in training."""


def settings(config: VisionTransformerConfig) -> dict[str, Any]:
    """What decides the outputs at the trained size, in one form: settings without effect are left out."""
    core = config.transformer.resolved()
    found = {f"transformer.{name}": value for name, value in core.to_dict().items() if name not in _FREE}
    outside = ("transformer", "labels", "preprocessing", "resample", "head_bias")
    found |= {name: value for name, value in config.to_dict().items() if name not in outside}
    found["transformer.bias"] = [n for n in Linears if core.has_bias(n) and (core.gated or n != "gate")]
    found["transformer.layer_scale"] = core.layer_scale is not None
    without: list[str] = []
    if core.position != "rotary":
        without += ["transformer.rotary", "rotary_coordinates", "rotary_grid"]
    elif config.rotary_coordinates == "unit":
        without += ["rotary_grid"]
    if config.position != "learned" or not config.class_token:
        without += ["position_covers_class"]
    if core.norm != "layernorm":
        without += ["transformer.norm_bias"]
    return {name: value for name, value in found.items() if name not in without}


def differences(one: VisionTransformerConfig, other: VisionTransformerConfig) -> list[str]:
    """Names of the settings in which two models differ."""
    a, b = settings(one), settings(other)
    return [name for name in {**a, **b} if a.get(name) != b.get(name)]


def with_preprocessing(config: VisionTransformerConfig, found: Preprocessing) -> VisionTransformerConfig:
    """A config with that preprocessing; a size that is the model's own is not stored twice."""
    return replace(config, preprocessing=replace(found, size=None) if found.size == list(config.size) else found)
