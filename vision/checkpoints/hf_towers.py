"""Hugging Face's image towers of CLIP and SigLIP, by themselves, with a head for classes, or in a model of two towers.

Of two towers that of the images is read, and written as one by itself. CLIP's features are normalised class tokens
before the projection; its classifiers, and SigLIP's, read the mean of the patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.checkpoints.weights import reshaped
from ...core.errors import UserError
from ..model import VisionTransformerConfig, pair
from ..preprocessing import Preprocessing
from .family import within
from .hf_preprocessing import CLIP as COLOURS
from .hf_preprocessing import choose
from .hf_shared import ACTIVATIONS, Naming, config_of, core_of, family_of, is_classifier, their_classes, their_core

_TOWER = {
    "positions": "embeddings.position_embedding.weight",
    "patch": "embeddings.patch_embedding",
    "head": "classifier",
} | within(
    "encoder.layers.{}.", norm1="layer_norm1", norm2="layer_norm2", q="self_attn.q_proj", k="self_attn.k_proj",
    v="self_attn.v_proj", out="self_attn.out_proj", up="mlp.fc1", down="mlp.fc2",
)  # fmt: skip
CLIP_NAMES = _TOWER | {
    "class_token": "embeddings.class_embedding",
    "input_norm": "pre_layrnorm",
    "pooled_norm": "post_layernorm",
}
SIGLIP_NAMES = _TOWER | {"final_norm": "post_layernorm"} | within(
    "head.", pool_latent="probe", pool_qkv_weight="attention.in_proj_weight", pool_qkv_bias="attention.in_proj_bias",
    pool_out="attention.out_proj", pool_norm="layernorm", pool_up="mlp.fc1", pool_down="mlp.fc2",
)  # fmt: skip
_OTHER = (r"(.*\.)?text_model\..*", r"(text|visual)_projection\..*", r"logit_(scale|bias)", r".*position_ids")
"""The other tower, what joins the two, and numbers that version 4 kept in files."""
_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP = _SIZES | {
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_SIGLIP = _SIZES | {
    "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}  # fmt: skip
"""Their defaults, which a config need not say."""


def _tower(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the image tower, with those of its head."""
    own = given.get("vision_config", given)
    if not isinstance(own, Mapping):
        raise UserError(f"vision_config is {own!r}, but must be the settings of the image tower.")
    more = {key: given[key] for key in ("architectures", "id2label", "num_labels") if key in given}
    found = {**defaults, **own, **more}
    if len({*pair(found["image_size"], "image_size"), *pair(found["patch_size"], "patch_size")}) > 2:
        raise UserError(f"image_size is {found['image_size']}, but must be one number, as transformers reads it.")
    return found


def read_clip(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `CLIPVisionConfig`, or the one inside of a `CLIPConfig`."""
    c, classifier = _tower(given, _CLIP), is_classifier(given)
    core = core_of(
        c, True, ffn=choose(c, "hidden_act", ACTIVATIONS), ffn_dim=c["intermediate_size"], input_norm=True,
        final_norm=False,
    )  # fmt: skip
    return config_of(c, core, pool="mean" if classifier else "class", pooled_norm=not classifier, patch_bias=False)


def write_clip(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_clip`."""
    core, head = config.transformer.resolved(), _mean(config)
    tower = their_core(config, core) | {"model_type": "clip_vision_model", "intermediate_size": core.ffn_dim}
    classes = their_classes(config, "CLIP", head, "CLIPVisionModel")
    return {"model_type": "clip", "vision_config": tower, **classes} if head else tower | classes


def read_siglip(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `SiglipVisionConfig`, or the one inside of a `SiglipConfig`."""
    c, classifier = _tower(given, _SIGLIP), is_classifier(given)
    core = core_of(c, True, ffn=choose(c, "hidden_act", ACTIVATIONS), ffn_dim=c["intermediate_size"])
    pool = "attention" if c["vision_use_head"] and not classifier else "mean"
    return config_of(c, core, pool=pool, class_token=False)


def write_siglip(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_siglip`."""
    core, head = config.transformer.resolved(), bool(config.classes)
    tower = their_core(config, core) | {
        "model_type": "siglip_vision_model", "intermediate_size": core.ffn_dim,
        "vision_use_head": head or config.pool == "attention",
    }  # fmt: skip
    classes = their_classes(config, "Siglip", head, "SiglipVisionModel")
    return {"model_type": "siglip", "vision_config": tower, **classes} if head else tower | classes


def _mean(config: VisionTransformerConfig) -> bool:
    return bool(config.classes) or config.pool == "mean"


def _norm_beside_a_head(config: VisionTransformerConfig) -> dict[str, tuple[int, ...]]:
    dim = config.transformer.dim
    return {f"post_layernorm.{name}": (dim,) for name in ("weight", "bias")} if _mean(config) else {}


def _pool_beside_a_head(config: VisionTransformerConfig) -> dict[str, tuple[int, ...]]:
    core = config.transformer.resolved()
    dim, hidden = core.dim, core.ffn_dim or 0
    shapes: dict[str, tuple[int, ...]] = {
        "probe": (1, 1, dim), "attention.in_proj_weight": (3 * dim, dim), "attention.in_proj_bias": (3 * dim,),
        "attention.out_proj.weight": (dim, dim), "attention.out_proj.bias": (dim,), "layernorm.weight": (dim,),
        "layernorm.bias": (dim,), "mlp.fc1.weight": (hidden, dim), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden), "mlp.fc2.bias": (dim,),
    }  # fmt: skip
    return {f"head.{name}": shape for name, shape in shapes.items()} if config.classes else {}


CLIP = Naming(
    CLIP_NAMES, CLIP_NAMES, "vision_model.", "in memory as in files", always_base=True, heads=_mean, ignored=_OTHER,
    layouts=lambda dim: {"positions": reshaped(-1, dim), "class_token": reshaped(dim)}, unused=_norm_beside_a_head,
)  # fmt: skip
SIGLIP = Naming(
    SIGLIP_NAMES, SIGLIP_NAMES, "vision_model.", "in memory as in files", always_base=True, ignored=_OTHER,
    layouts=lambda dim: {"positions": reshaped(-1, dim)}, unused=_pool_beside_a_head,
)  # fmt: skip
HF_CLIP = family_of(
    "Hugging Face CLIP", ("clip_vision_model", "clip"), read_clip, write_clip,
    Preprocessing(list(COLOURS[0]), list(COLOURS[1])), CLIP,
)  # fmt: skip
HF_SIGLIP = family_of(
    "Hugging Face SigLIP", ("siglip_vision_model", "siglip"), read_siglip, write_siglip,
    Preprocessing(resize="squash"), SIGLIP,
)  # fmt: skip
