"""timm's models: found by name, built without weights, and their settings read into our config.

Two hundred architectures and their options are known to timm's code alone, so it is asked: what it builds on the meta
device has every setting.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import nn

from ...core.checkpoints.source import Source
from ...core.config import Linears, TransformerConfig
from ...core.errors import UserError, nearest
from ...core.rotary import RotaryConfig
from ..model import VisionTransformerConfig

# --- finding an architecture ------------------------------------------------------------------------------------------


def known(name: str) -> bool:
    """Whether timm has an architecture of that name, with or without a tag of weights behind a dot."""
    from timm.models import is_model

    return is_model(name.split(".")[0])


def hub_name(name: str) -> str:
    """The hub repository of timm's weights `name`, such as `vit_small_patch14_dinov2.lvd142m`.

    Raises:
        UserError: timm does not know the name, or has no weights for it on the hub.
    """
    import timm
    from timm.models import get_pretrained_cfg

    if not known(name):
        hint = nearest(name, timm.list_models(pretrained=True))
        raise UserError(f"There is no file or folder '{name}', and timm has no model of that name{hint}.")
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:
        found = None
    if found is None or not found.hf_hub_id:
        tags = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
        choice = f"choose one of {', '.join(tags)}" if tags else "give a folder or file with weights"
        raise UserError(f"timm has no weights named '{name}' on the hub; {choice}.")
    return found.hf_hub_id


def architecture(source: Source) -> str | None:
    """The timm architecture of a folder by its config, of a file by its name; None when it is none."""
    if source.file is None:
        found = source.config.get("architecture")
        return found if isinstance(found, str) and source.config.get("library") is None and known(found) else None
    stem = re.sub(r"-[0-9a-f]{8}$", "", source.file.stem)  # timm's and DeiT's own files carry a part of their hash
    if (
        source.file.suffix == ".onnx"
        or not {"patch_embed.proj.weight", "blocks.0.norm1.weight"} <= source.tensors().keys()
    ):
        return None
    return stem if known(stem) else None


def skeleton(source: Source) -> nn.Module:
    """The model of a timm folder or file as timm builds it, without weights. Raises UserError when timm refuses."""
    name = architecture(source) if source.file else f"local-dir:{source.path}"
    assert name is not None
    try:
        return build(name)
    except (RuntimeError, TypeError, ValueError, AssertionError, KeyError) as error:
        raise UserError(
            f"timm cannot build '{source.name}' from its config.json ({type(error).__name__}: {error}); "
            "use the version of timm that wrote it."
        ) from None


def build(name: str, **arguments: Any) -> nn.Module:
    """`timm.create_model` without weights and without memory for them."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **arguments)


# --- reading a model of timm's ----------------------------------------------------------------------------------------


class Unsupported(list[str]):
    """Settings of a model that the core does not have."""

    def need(self, condition: bool, what: str) -> None:
        if not condition and what not in self:
            self.append(what)


def read(model: Any) -> VisionTransformerConfig:
    """Our config of a model of timm's, without class names and preprocessing.

    Raises:
        UserError: it has settings that the core does not have; lists them all.
    """
    odd = Unsupported()
    kind, block = type(model).__name__, model.blocks[0]
    distilled = kind == "VisionTransformerDistilled"
    if distilled:  # its heads read a token each, and their logits are averaged
        plain = model.num_classes and model.reg_token is None and not model.no_embed_class
        odd.need(bool(plain) and not _present(model.fc_norm), "two heads with other settings than those of DeiT")
    odd.need(type(block).__name__ in _BLOCKS, f"blocks of the kind {type(block).__name__}")
    if odd:
        raise _refused(odd)
    embed, eva, pooling = model.patch_embed, kind == "Eva", getattr(model, "attn_pool", None)
    odd.need(type(embed).__name__ == "PatchEmbed", f"patches by {type(embed).__name__}")
    token = model.dist_token if distilled else getattr(model, "reg_token", None)
    registers = 0 if token is None else token.shape[1]
    learned, covers = model.pos_embed is not None, not getattr(model, "no_embed_class", False)
    pool = {"token": "class", "avg": "mean", "map": "attention", "": "class" if model.cls_token is not None else "mean"}
    odd.need(model.global_pool in pool, f"global_pool '{model.global_pool}'")
    prefix = model.num_prefix_tokens
    with_prefix = getattr(model, "pool_include_prefix", False) or (eva and pooling is not None)
    core = _read_core(model, eva or kind == "Beit", odd)
    pools = {} if pooling is None else _read_pool(pooling, core, odd)
    relative = _read_relative(model, odd)
    coordinates = _read_coordinates(getattr(model, "rope", None), odd)
    if odd:
        raise _refused(odd)
    return VisionTransformerConfig(
        image_size=list(embed.img_size), patch_size=list(embed.proj.kernel_size), channels=embed.proj.in_channels,
        classes=model.num_classes, transformer=TransformerConfig(**core), class_token=model.cls_token is not None,
        registers=registers, pool="prefix" if distilled else pool[model.global_pool],  # type: ignore[arg-type]
        position="learned" if learned else "none", position_covers_class=covers,
        position_covers_registers=covers and learned and registers > 0, resample="timm",
        patch_bias=embed.proj.bias is not None, patch_norm=_present(embed.norm), pooled_norm=_present(model.fc_norm),
        pool_prefix=prefix > 0 and with_prefix and model.global_pool in ("avg", "map"),
        relative_bias=relative, **pools, **coordinates,
    )  # fmt: skip


_BLOCKS = {"Block": "pre", "EvaBlock": "pre", "ResPostBlock": "branch", "EvaBlockPostNorm": "branch"}
"""Where theirs have their norms, in our words."""


def _refused(odd: Unsupported) -> UserError:
    return UserError(f"it has {', '.join(odd)}, which our model does not have.")


def _present(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


def _read_core(model: Any, eva: bool, odd: Unsupported) -> dict[str, Any]:
    block = model.blocks[0]
    attn, mlp = block.attn, block.mlp
    odd.need(type(attn).__name__ in ("Attention", "EvaAttention", "AttentionRope"), f"attention {type(attn).__name__}")
    odd.need(getattr(attn, "gate", None) is None, "gated attention")
    scales = (
        tuple(getattr(block, f"gamma_{number}", None) for number in "12")
        if eva
        else tuple(s if _present(s) else None for s in (getattr(block, f"ls{number}", None) for number in "12"))
    )
    odd.need((scales[0] is None) == (scales[1] is None), "layer scale in only one of the branches")
    layer_scale = None
    if scales[0] is not None:
        # Where trained gains started does not matter, and ours cannot start at zero.
        layer_scale = float(block.init_values if eva else scales[0].init_values) or 1.0
    inner = {"attention": getattr(attn, "norm", None), "ffn": mlp.norm}
    kind, ffn_dim = _read_ffn(mlp, odd)
    heads = attn.num_heads
    shared = [getattr(b.attn, "num_kv_heads", heads) for b in model.blocks]
    odd.need(len(set(shared)) == 1, "another number of keys in each layer")
    rope = getattr(model, "rope", None)
    return {
        "dim": model.embed_dim, "depth": len(model.blocks), "heads": heads,
        "head_dim": attn.proj.in_features // heads, "kv_heads": shared[0], "position": "none",
        **_read_norms(model, odd), **_read_rotary(rope, getattr(attn, "rotate_half", False), odd),
        "placement": _BLOCKS[type(block).__name__],
        "input_norm": _present(getattr(model, "norm_pre", None)), "final_norm": _present(model.norm),
        "qk_norm": "head" if _present(getattr(attn, "q_norm", None)) else "none",
        "inner_norm": [name for name, norm in inner.items() if _present(norm)],
        "ffn": kind, "ffn_dim": ffn_dim, "bias": _read_bias(attn, mlp), "layer_scale": layer_scale,
    }  # fmt: skip


def _read_norms(model: Any, odd: Unsupported) -> dict[str, Any]:
    """The kind and epsilon that all norms have."""
    found: list[dict[str, Any]] = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            odd.need(module.elementwise_affine, "norms without weights")
            found.append({"norm": "layernorm", "norm_eps": module.eps, "norm_bias": module.bias is not None})
        elif type(module).__name__ in ("RmsNorm", "RmsNormFp32"):
            found.append({"norm": "rmsnorm", "norm_eps": module.eps})
        elif "norm" in type(module).__name__.lower() and type(module).__name__ not in _BLOCKS:
            odd.need(False, f"norms of the kind {type(module).__name__}")
    odd.need(all(norm == found[0] for norm in found), "norms of several kinds")
    return found[0] if found else {}


def _read_ffn(mlp: Any, odd: Unsupported) -> tuple[str, int]:
    kind, act = type(mlp).__name__, type(mlp.act).__name__
    names = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu", "SiLU": "silu"}
    name = "GELUTanh" if getattr(mlp.act, "approximate", "none") == "tanh" else act
    gated = kind == "SwiGLU" or (kind == "GluMlp" and not mlp.gate_last)
    if gated:
        names = {"SiLU": "swiglu", "GELU": "geglu", "GELUTanh": "geglu_tanh", "ReLU": "reglu"}
    odd.need((gated or kind == "Mlp") and name in names, f"a feed-forward {kind} with {act}")
    return names.get(name, "gelu"), mlp.fc2.in_features


def _read_bias(attn: Any, mlp: Any) -> list[str] | bool:
    """Which linear layers have a bias."""
    fused = getattr(attn, "qkv", None)
    if fused is None:
        present = {name: getattr(attn, f"{name}_proj").bias is not None for name in "qkv"}
    elif getattr(attn, "q_bias", None) is not None:
        present = {"q": True, "k": False, "v": True}
    else:
        present = dict.fromkeys("qkv", fused.bias is not None)
    first = getattr(mlp, "fc1", None) or mlp.fc1_g
    present |= {"out": attn.proj.bias is not None, "down": mlp.fc2.bias is not None}
    present |= dict.fromkeys(("gate", "up"), first.bias is not None)
    return all(present.values()) or [name for name in Linears if present[name]]


def _read_rotary(rope: Any, half: bool, odd: Unsupported) -> dict[str, Any]:
    if rope is None:
        return {}
    kind = type(rope).__name__
    if kind not in ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3", "RotaryEmbeddingMixed"):
        odd.need(False, f"rotary positions of the kind {kind}")
        return {}
    learned = kind == "RotaryEmbeddingMixed"
    odd.need(not (learned and half), "trained frequencies for neighbouring channels that turn the halves of a head")
    rotary = RotaryConfig(base=float(rope.temperature), axes=2, interleaved=not half, learned=learned)
    return {"position": "rotary", "rotary": rotary}


def _read_coordinates(rope: Any, odd: Unsupported) -> dict[str, Any]:
    if rope is None or odd:
        return {}
    order = {"rotary_columns_first": rope.grid_indexing == "xy"}
    if type(rope).__name__ == "RotaryEmbeddingMixed":
        return order | {"rotary_coordinates": "count"}
    order |= {"rotary_offset": float(rope.grid_offset)}
    if type(rope).__name__ == "RotaryEmbeddingDinoV3":
        odd.need(rope.normalize_coords == "separate" and rope.min_period is None, "rotary periods between bounds")
        return order | {"rotary_coordinates": "unit"}
    odd.need(not rope.in_pixels and rope.grid_type in ("index", None), "rotary positions in pixels")
    if rope.ref_feat_shape is None:
        return order | {"rotary_coordinates": "count"}
    return order | {"rotary_coordinates": "index", "rotary_grid": list(rope.ref_feat_shape)}


def _read_relative(model: Any, odd: Unsupported) -> Literal["none", "layers", "shared"]:
    tables = [getattr(block.attn, "relative_position_bias_table", None) is not None for block in model.blocks]
    shared = getattr(model, "rel_pos_bias", None) is not None
    odd.need(not (shared and any(tables)), "biases of positions both shared and of each layer")
    return "shared" if shared else "layers" if any(tables) else "none"


def _read_pool(pool: Any, core: dict[str, Any], odd: Unsupported) -> dict[str, Any]:
    """Our attention pool has the norm of the blocks, and all biases as they have."""
    odd.need(type(pool).__name__ == "AttentionPoolLatent", f"a pool of the kind {type(pool).__name__}")
    if odd:
        return {}
    like = pool.mlp is not None and not _present(pool.q_norm) and pool.latent_len == 1 and pool.pos_embed is None
    like = like and core["bias"] is True and getattr(pool.q, "bias", None) is not None
    odd.need(like, "an attention pool with other settings than the blocks")
    if not like:
        return {}
    kind, hidden = _read_ffn(pool.mlp, odd)
    return {"pool_heads": pool.num_heads, "pool_ffn": kind, "pool_ffn_dim": hidden}
