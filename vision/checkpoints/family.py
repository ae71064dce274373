"""What a family of image models is, and the words that tables of names are written in.

A family is a function that reads its settings into our config, one that writes ours as theirs, and tables of names.
What a family can represent follows from the two functions: a config that is written and read again must come out the
same. The families are in `hf.py`, `timm.py` and `torchvision_files.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.checkpoints.family import Family, differences
from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import STACKED, Layout, Rule, WeightMap, reshaped
from ..model import VisionTransformerConfig
from ..positions import Resample
from ..preprocessing import Preprocessing

Names = Mapping[str, str]
"""Their names of what `OURS` calls by a word; `{}` stands for the number of a block."""
Table = Callable[[VisionTransformerConfig, Collection[str]], WeightMap]
PREPROCESSOR = "preprocessor_config.json"


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
    read: Callable[[Source], Mapping[str, Tensor]] = Source.tensors
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
    "patch_norm": "patch_norm",
    "norm1": _BLOCK + "norm1",
    "after1": _BLOCK + "branch1.norm",
    "after2": _BLOCK + "branch2.norm",
    "relative": "relative.tables.{}",
    "shared_relative": "relative.tables.0",
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
    "pool_qkv_weight": ("pool.attn.q.weight", "pool.attn.k.weight", "pool.attn.v.weight"),
    "pool_qkv_bias": ("pool.attn.q.bias", "pool.attn.k.bias", "pool.attn.v.bias"),
    "pool_out": "pool.attn.out",
    "pool_norm": "pool.norm",
    "pool_up": "pool.ffn.up",
    "pool_down": "pool.ffn.down",
    "pooled_norm": "pooled_norm",
    "pre_logits": "pre_logits.0",
    "head": "head",
}
"""Words for the parts of our model that have weights."""


def rules(names: Names, dim: int, prefix: str = "", layouts: Mapping[str, Layout] | None = None) -> tuple[Rule, ...]:
    """The lines of a weight map; `prefix` is before all of their names but that of the head.

    A table of positions is `[1, tokens, dim]`, unless `layouts` says another one for a word.
    """
    of_words = {"positions": reshaped(1, -1, dim)} | dict(layouts or {})
    return tuple(
        Rule(OURS[word], theirs if word == "head" else prefix + theirs, of_words.get(word, STACKED))
        for word, theirs in names.items()
    )


def within(block: str, **names: str) -> dict[str, str]:
    return {word: block + name for word, name in names.items()}


def _joined(parts: list[Tensor]) -> Tensor:
    whole = parts[0]
    return (
        torch.cat([whole, whole]) if whole.dim() == 1 else (2 * whole).unflatten(1, (2, -1)).movedim(1, 0).flatten(0, 1)
    )


def _parted(whole: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    # In at least float32: the mean of two numbers of 16 bits need not be one.
    both = whole.to(torch.promote_types(whole.dtype, torch.float32)).unflatten(0, (2, -1))
    return [both.mean(dim=0) if whole.dim() == 1 else both.movedim(0, 1).flatten(1) / 2]


TWO_HEADS = Layout(_joined, _parted, stacked=False)
"""Two heads whose logits are averaged are one that reads both tokens side by side, with half of each weight. Of two
biases only the mean matters; both become it on the way back.
"""


# --- what two configs have in common ----------------------------------------------------------------------------------

_NO_FUNCTION = ("labels", "preprocessing", "resample", "head_bias")
"""Fields that no output at the trained size depends on."""


def canonical(config: VisionTransformerConfig) -> VisionTransformerConfig:
    """The same function at the trained size in one spelling: settings without effect have their defaults."""
    core = config.transformer.canonical()
    turned, table = core.position == "rotary", config.position == "learned"
    attention, counted = config.pool == "attention", config.rotary_coordinates in ("index", "count")
    grid = list(config.grid(*config.size))
    coordinates = "index" if counted else "unit"
    return replace(
        config,
        transformer=core,
        rotary_coordinates=coordinates if turned else "index",
        rotary_grid=config.rotary_grid if turned and config.rotary_coordinates == "index" else grid,
        rotary_offset=config.rotary_offset if turned else 0.0,
        rotary_columns_first=turned and config.rotary_columns_first,
        position_covers_class=config.position_covers_class if table and config.class_token else True,
        position_covers_registers=table and bool(config.registers) and config.position_covers_registers,
        pool_prefix=config.pool_prefix and config.prefix > 0,
        pool_heads=(config.pool_heads or core.heads) if attention else None,
        pool_ffn=(config.pool_ffn or next((kind for kind in core.ffns if kind != "none"), "gelu"))
        if attention
        else None,
        pool_ffn_dim=(config.pool_ffn_dim or config.transformer.resolved().ffn_dim) if attention else None,
    )


def different(config: VisionTransformerConfig, other: VisionTransformerConfig) -> list[str]:
    """Names of the settings in which two models differ at the trained size."""
    return differences(canonical(config), canonical(other), _NO_FUNCTION)


def with_preprocessing(config: VisionTransformerConfig, found: Preprocessing) -> VisionTransformerConfig:
    """A config with that preprocessing; a size that is the model's own is not stored twice."""
    return replace(config, preprocessing=replace(found, size=None) if found.size == list(config.size) else found)
