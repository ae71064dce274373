"""timm's `VisionTransformer` and `Eva`: weight maps, and exports that timm builds again.

For an export, arguments are chosen for an entry of timm's registry; what timm builds from them must read the same as
the model that is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import Layout, Rule, WeightMap
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.rotary import RotaryConfig
from ..model import VisionTransformerConfig
from ..preprocessing import Preprocessing
from .bare import described, note
from .family import TWO_HEADS, VisionFamily, different, rules, with_preprocessing
from .timm_settings import architecture, build, read, skeleton

VIT_MODULES = ("timm.models.vision_transformer", "timm.models.deit")
EVA_MODULES = ("timm.models.eva",)
BEIT_MODULES = ("timm.models.beit",)


# --- reading ----------------------------------------------------------------------------------------------------------


def _entry_in(modules: tuple[str, ...]) -> Callable[[Source], bool]:
    def fits(source: Source) -> bool:
        if (name := architecture(source)) is None:
            return False  # before timm is imported, which takes seconds
        from timm.models import model_entrypoint

        return model_entrypoint(name.split(".")[0]).__module__ in modules

    return fits


def _config(source: Source) -> VisionTransformerConfig:
    model: Any = skeleton(source)
    try:
        found = read(model)
    except UserError as error:
        raise UserError(f"'{source.name}' ({architecture(source)}) cannot be loaded: {error}") from None
    cfg = model.pretrained_cfg
    # The name of a file without a tag says nothing about what the weights were trained on.
    tag = "" if source.file and "." not in str(architecture(source)) else str(cfg.get("tag") or "")
    if source.file:
        note(
            source,
            f"all settings of timm's {architecture(source)}, after which it is named: {found.transformer.heads} heads, "
            f"norms with {found.transformer.norm_eps:g}, {described(_preprocessing(source.name, cfg))}",
        )
    labels = list(cfg.get("label_names") or ()) or _imagenet_labels(tag, found.classes)
    found = replace(found, labels=labels if len(labels) == found.classes else [])
    return with_preprocessing(found, _preprocessing(source.name, cfg))


def _preprocessing(name: str, cfg: Mapping[str, Any]) -> Preprocessing:
    modes = {"center": "crop", "squash": "squash"}
    if cfg.get("crop_mode", "center") not in modes:
        raise UserError(
            f"'{name}' crops images by '{cfg['crop_mode']}' (crop_mode), but only center and squash exist here."
        )
    interpolation = cfg.get("interpolation", "bicubic")
    return Preprocessing(
        list(cfg["mean"]), list(cfg["std"]), "bicubic" if interpolation == "random" else interpolation,
        float(cfg.get("crop_pct") or 1.0), modes[cfg.get("crop_mode", "center")],  # type: ignore[arg-type]
        list(cfg["input_size"][1:]),
    )  # fmt: skip


def _imagenet_labels(tag: str, classes: int) -> list[str]:
    """The class names of ImageNet, which timm keeps apart from its weights, for weights that say they were trained on
    it.
    """
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_descriptions()) if classes == 1000 and "in1k" in tag else []


# --- weights ----------------------------------------------------------------------------------------------------------


def table(config: VisionTransformerConfig, names: Collection[str]) -> WeightMap:
    """The weight map for their names, which differ with the options a model was made with."""
    core, block, has = config.transformer, "blocks.{}.", {re.sub(r"\.\d+\.", ".{}.", name) for name in names}
    found = {
        "class_token": "cls_token",
        "registers": "dist_token" if config.pool == "prefix" else "reg_token",
        "positions": "pos_embed",
        "patch": "patch_embed.proj",
    }
    after = core.placement == "branch"
    found |= {"input_norm": "norm_pre", "patch_norm": "patch_embed.norm"}
    found |= {"after1" if after else "norm1": block + "norm1", "after2" if after else "norm2": block + "norm2"}
    if config.relative_bias == "shared":
        found["shared_relative"] = "rel_pos_bias.relative_position_bias_table"
    else:
        found["relative"] = block + "attn.relative_position_bias_table"
    if block + "attn.q_bias" in has:
        found |= {"q_bias": block + "attn.q_bias", "v_bias": block + "attn.v_bias"}
    if block + "attn.q_proj.weight" in has:
        found |= {name: f"{block}attn.{name}_proj" for name in "qkv"}
    else:
        found |= {"qkv": block + "attn.qkv"}
    found |= {"q_norm": block + "attn.q_norm", "k_norm": block + "attn.k_norm", "attention_norm": block + "attn.norm"}
    for number in "12":
        eva = f"{block}gamma_{number}"
        found[f"scale{number}"] = eva if eva in has else f"{block}ls{number}.gamma"
    if block + "mlp.fc1_g.weight" in has:
        found |= {"gate": block + "mlp.fc1_g", "up": block + "mlp.fc1_x"}
    else:
        found |= {"gate_up" if core.gated else "up": block + "mlp.fc1"}
    found |= {"out": block + "attn.proj", "ffn_norm": block + "mlp.norm", "down": block + "mlp.fc2"}
    found |= {"pool_latent": "attn_pool.latent", "pool_q": "attn_pool.q", "pool_kv": "attn_pool.kv"}
    found |= {"pool_out": "attn_pool.proj", "pool_norm": "attn_pool.norm"}
    found |= {"pool_up": "attn_pool.mlp.fc1", "pool_down": "attn_pool.mlp.fc2"}
    found |= {"final_norm": "norm", "pooled_norm": "fc_norm", "head": "head"}
    heads = (Rule("head", ("head", "head_dist"), TWO_HEADS),) if config.pool == "prefix" else ()
    return WeightMap((*heads, *rules(found, core.dim), _frequencies(core.depth)), (r"rope\..*",))


def _frequencies(depth: int) -> Rule:
    """Trained rotary frequencies, theirs one tensor `[2, depth, heads, pairs]`."""
    ours = tuple(f"transformer.blocks.{layer}.attn.rotary.rate" for layer in range(depth))
    stacked = Layout(
        lambda parts: torch.stack(parts, dim=1), lambda whole, shapes: list(whole.unbind(1)), stacked=False
    )
    return Rule(ours, "rope.freqs", stacked)


# --- writing ----------------------------------------------------------------------------------------------------------

Recipe = tuple[str, dict[str, Any]]
"""An architecture of timm's registry and arguments for it."""


def _vit_recipe(config: VisionTransformerConfig) -> Recipe:
    """Any entry takes all arguments; what cannot be said in JSON (the norm's epsilon, a gated feed-forward) decides
    which.
    """
    core = config.transformer.resolved()
    name = "vit_base_patch16_clip_224" if core.norm_eps == 1e-5 else "vit_base_patch16_224"
    hidden = core.ffn_dim or 0
    distilled = config.pool == "prefix"
    if distilled:
        name = "deit_base_distilled_patch16_224"
    elif core.placement == "branch":
        name = "vit_base_patch16_rpn_224"
    elif core.gated and config.patch_norm and core.norm == "rmsnorm" and core.norm_eps == 1e-5:
        name = "aimv2_large_patch14_224"  # a gate apart from what it multiplies
    elif core.gated:
        name, hidden = "vit_giant_patch14_dinov2", 2 * hidden
    acts = {
        "swiglu": "silu",
        "geglu": "gelu",
        "geglu_tanh": "gelu_tanh",
        "reglu": "relu",
        "gelu": "gelu",
        "gelu_tanh": "gelu_tanh",
        "quick_gelu": "quick_gelu",
        "relu": "relu",
    }
    norm = {"norm_layer": "rmsnorm"} if core.norm == "rmsnorm" and core.norm_eps == 1e-6 else {}
    return name, _shared(config, core, hidden) | norm | {
        # timm takes None for "not given", and the entry with the gated feed-forward has a layer scale.
        "init_values": core.layer_scale or 0.0,
        "act_layer": acts.get(str(core.ffn), "silu"), "proj_bias": core.has_bias("out"),
        "scale_attn_norm": "attention" in core.inner_norm, "scale_mlp_norm": "ffn" in core.inner_norm,
        "pos_embed": "learn" if config.position == "learned" else "none",
        "reg_tokens": 0 if distilled else config.registers,
        "pre_norm": core.input_norm, "final_norm": bool(core.final_norm) or config.pooled_norm,
        "fc_norm": config.pooled_norm, "pool_include_prefix": config.pool_prefix,
        "embed_norm_layer": core.norm if config.patch_norm and core.norm_eps == 1e-6 else None,
    }  # fmt: skip


def _eva_recipe(config: VisionTransformerConfig) -> Recipe:
    core = config.transformer.resolved()
    rotary = core.rotary if isinstance(core.rotary, RotaryConfig) else RotaryConfig()
    unit = config.rotary_coordinates == "unit"
    kind = "mixed" if rotary.learned else "dinov3" if unit else "cat"
    # None is "not given" to timm: what must not be given decides the entry, too.
    if core.norm_eps == 1e-5:
        name = "vit_base_patch16_dinov3" if core.layer_scale is not None else "vit_pe_core_base_patch16_224"
    else:
        counted = config.rotary_coordinates == "count" and core.layer_scale is not None
        name = "vit_base_patch16_rope_224" if counted else "eva02_base_patch14_224"
    return name, _shared(config, core, core.ffn_dim or 0) | {
        "swiglu_mlp": core.gated, "swiglu_align_to": 0, "qkv_fused": True, "num_reg_tokens": config.registers,
        "scale_attn_inner": "attention" in core.inner_norm, "scale_mlp": "ffn" in core.inner_norm,
        "attn_type": "rope" if core.has_bias("k") else "eva", "use_abs_pos_emb": config.position == "learned",
        "use_rot_pos_emb": core.position == "rotary", "rope_type": kind,
        "rope_grid_offset": config.rotary_offset, "rope_grid_indexing": "xy" if config.rotary_columns_first else "ij",
        "rope_temperature": rotary.base, "rope_rotate_half": not rotary.interleaved,
        "ref_feat_shape": config.rotary_grid if config.rotary_coordinates == "index" else None,
        "use_post_norm": core.placement == "branch",
        "attn_pool_num_heads": config.pool_heads or core.heads,
        "attn_pool_mlp_ratio": _ratio(config.pool_ffn_dim or core.ffn_dim, core.dim),
        "use_pre_transformer_norm": core.input_norm,
        "use_post_transformer_norm": core.final_norm, "use_fc_norm": config.pooled_norm,
    }  # fmt: skip


def _beit_recipe(config: VisionTransformerConfig) -> Recipe:
    core = config.transformer.resolved()
    shared = _shared(config, core, core.ffn_dim or 0)
    for name in ("qk_norm", "class_token", "no_embed_class", "dynamic_img_size"):
        del shared[name]
    return "beit_base_patch16_224", shared | {
        "swiglu_mlp": core.gated, "scale_mlp": "ffn" in core.inner_norm,
        "use_abs_pos_emb": config.position == "learned", "use_rel_pos_bias": config.relative_bias == "layers",
        "use_shared_rel_pos_bias": config.relative_bias == "shared", "use_fc_norm": config.pooled_norm,
        "init_values": core.layer_scale or 0.0,
    }  # fmt: skip


def _ratio(hidden: int | None, dim: int) -> float | None:
    """What timm multiplies the width by; it rounds the product down, which must not lose a unit to the division."""
    if hidden is None:
        return None
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def _shared(config: VisionTransformerConfig, core: TransformerConfig, hidden: int) -> dict[str, Any]:
    return {
        "img_size": list(config.size), "patch_size": list(config.patch), "in_chans": config.channels,
        "num_classes": config.classes,
        "global_pool": {"class": "token", "mean": "avg", "attention": "map"}.get(config.pool, "token"),
        "embed_dim": core.dim, "depth": core.depth, "num_heads": core.heads,
        "mlp_ratio": _ratio(hidden, core.dim),
        "qkv_bias": core.has_bias("v"), "qk_norm": core.qk_norm == "head", "init_values": core.layer_scale,
        "class_token": config.class_token, "no_embed_class": config.prefix > 0 and not config.covered,
        "dynamic_img_size": False,
    }  # fmt: skip


def recipe_of(source: Source, config: VisionTransformerConfig) -> Recipe | None:
    """The architecture a checkpoint came as, with our numbers of classes and pixels; None when it is no other's than
    timm's.
    """
    name = architecture(source)
    if name is None:
        return None
    arguments = {} if source.file else dict(source.config.get("model_args") or {})
    return name.split(".")[0], arguments | {
        "num_classes": config.classes, "img_size": list(config.size), "in_chans": config.channels,
    }  # fmt: skip


def built(recipe: Recipe) -> nn.Module:
    """The model, on the meta device, that timm builds from a recipe; an export asks for it several times."""
    name, arguments = recipe
    return _built(name, json.dumps(arguments, sort_keys=True))


@lru_cache(maxsize=4)
def _built(name: str, arguments: str) -> nn.Module:
    return build(name, **json.loads(arguments))


def differs(recipe: Recipe, config: VisionTransformerConfig) -> list[str]:
    """Names of the settings in which the model that timm builds is another than ours."""
    try:
        return different(config, read(built(recipe)))
    except UserError as error:
        return [str(error).removeprefix("it has ").split(", which")[0]]
    except (TypeError, AssertionError, ValueError, ZeroDivisionError) as error:
        return [f"its shapes ({error})" if str(error) else "its shapes"]


def write(recipe: Recipe, config: VisionTransformerConfig) -> dict[str, Any]:
    """timm's `config.json`."""
    name, arguments = recipe
    p, (height, width) = config.preprocessing, config.input_size
    each = config.channels if len(p.mean) == 1 else 1
    # `num_classes` has a place of its own; the size of the table stays an argument, because inputs may have another.
    fixed = (height, width) == config.size and not arguments.get("dynamic_img_size")
    return {
        "architecture": name, "num_classes": config.classes, "num_features": config.transformer.dim,
        "global_pool": arguments.get("global_pool", ""),
        **({"label_names": config.labels} if config.labels else {}),
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes" and value is not None},
        "pretrained_cfg": {
            "tag": "triune", "custom_load": False, "input_size": [config.channels, height, width],
            "fixed_input_size": fixed, "interpolation": p.interpolation, "crop_pct": p.crop_pct,
            "crop_mode": "squash" if p.resize == "squash" else "center", "mean": list(p.mean) * each,
            "std": list(p.std) * each, "num_classes": config.classes, "pool_size": None,
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip


def names_of(recipe: Recipe) -> list[str]:
    """Names of the weights of the model that timm builds."""
    return list(built(recipe).state_dict())


def _family(name: str, modules: tuple[str, ...], recipe: Callable[[VisionTransformerConfig], Recipe]) -> VisionFamily:
    def weights(config: VisionTransformerConfig, names: Collection[str] = ()) -> WeightMap:
        return table(config, names or names_of(recipe(config)))

    def why_not(config: VisionTransformerConfig) -> list[str]:
        return differs(recipe(config), config)

    return VisionFamily(
        name, "timm", _entry_in(modules), _config, weights, lambda config: write(recipe(config), config),
        lambda config: not why_not(config), table=weights, why_not=why_not, resample="timm",
    )  # fmt: skip


TIMM_VIT = _family("timm VisionTransformer", VIT_MODULES, _vit_recipe)
TIMM_EVA = _family("timm Eva", EVA_MODULES, _eva_recipe)
TIMM_BEIT = _family("timm Beit", BEIT_MODULES, _beit_recipe)
