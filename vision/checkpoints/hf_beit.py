"""Hugging Face's DeiT, BEiT and Data2Vec: relatives of its ViT with a distillation token, or biases by distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...core.errors import UserError
from ..model import VisionTransformerConfig
from ..preprocessing import Preprocessing
from .family import Names
from .hf import VIT_DEFAULTS, VIT_FILES, VIT_MODULES, read_vit, write_vit
from .hf_preprocessing import choose
from .hf_shared import (
    ACTIVATIONS,
    Naming,
    config_of,
    core_of,
    family_of,
    is_classifier,
    require_square,
    their_classes,
    their_core,
    without,
)

_TEACHER = "DeiTForImageClassificationWithTeacher"
_DISTILLATION = {"registers": "embeddings.distillation_token"}
DEIT = Naming(
    VIT_FILES | _DISTILLATION, VIT_MODULES | _DISTILLATION, "deit.", "attention.q_proj",
    two_heads=("cls_classifier", "distillation_classifier"),
)  # fmt: skip


def read_deit(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `DeiTConfig`: its distillation token is a register that the table of positions covers."""
    if given.get("pooler") and given.get("pooler_output_size") not in (None, given.get("hidden_size", 768)):
        raise UserError(f"pooler_output_size is {given['pooler_output_size']}, but must be hidden_size.")
    found, teacher = read_vit(given), _TEACHER in (given.get("architectures") or ())
    if teacher and not found.classes:
        raise UserError("it has two heads without classes, whose mean our model does not have.")
    return replace(
        found, registers=1, position_covers_registers=True, pool="prefix" if teacher else "class",
    )  # fmt: skip


def write_deit(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_deit`."""
    classes = their_classes(config, "DeiT")
    if config.pool == "prefix":
        classes["architectures"] = [_TEACHER]
    return write_vit(config) | {"model_type": "deit"} | classes


_TABLE = "relative_position_bias.relative_position_bias_table"


def _named(names: Names, block: str, table: str, shared: str) -> dict[str, str]:
    found = {word: name for word, name in names.items() if word != "pre_logits"}
    return found | {
        "pooled_norm": "pooler.layernorm", "scale1": f"{block}lambda_1", "scale2": f"{block}lambda_2",
        "relative": f"{block}{table}", "shared_relative": shared,
    }  # fmt: skip


BEIT_FILES = _named(VIT_FILES, "encoder.layer.{}.", f"attention.attention.{_TABLE}", f"encoder.{_TABLE}")
BEIT_MODULES = _named(VIT_MODULES, "layers.{}.", _TABLE, "shared_position_bias.relative_position_bias_table")
_INDEX = (r".*relative_position_index", r"lm_head\..*")
BEIT = Naming(BEIT_FILES, BEIT_MODULES, "beit.", "attention.q_proj", ignored=_INDEX)
DATA2VEC = Naming(BEIT_FILES, BEIT_FILES, "data2vec_vision.", "in memory as in files", ignored=(*_INDEX, r"pooler\..*"))
_BEIT = VIT_DEFAULTS | {
    "use_absolute_position_embeddings": False, "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False, "layer_scale_init_value": 0.1, "use_mean_pooling": True,
}  # fmt: skip


def read_beit(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `BeitConfig` or `Data2VecVisionConfig`."""
    c = _BEIT | dict(given)
    layers, shared = c["use_relative_position_bias"], c["use_shared_relative_position_bias"]
    table = c["use_absolute_position_embeddings"]
    if layers and shared:
        raise UserError("it has biases of positions both shared and of each layer, which our model does not have.")
    if layers or shared or table:
        require_square(c, "of a BEiT")
    scale, mean = c["layer_scale_init_value"], c["use_mean_pooling"]
    width = {} if c.get("model_type") == "data2vec-vision" else {"head_dim": c.get("head_dim")}
    core = core_of(
        c, without("k"), ffn=choose(c, "hidden_act", ACTIVATIONS), ffn_dim=c["intermediate_size"],
        layer_scale=scale if scale > 0 else None, final_norm=not mean, **width,
    )  # fmt: skip
    # A `Data2VecVisionModel` has no pooler unless it is asked for.
    pooler = mean and (c.get("model_type") != "data2vec-vision" or is_classifier(c))
    return config_of(
        c, core, pool="mean" if mean else "class", pooled_norm=pooler, position="learned" if table else "none",
        relative_bias="shared" if shared else "layers" if layers else "none",
    )  # fmt: skip


def _writer(model_type: str, name: str) -> Callable[[VisionTransformerConfig], dict[str, Any]]:
    def write(config: VisionTransformerConfig) -> dict[str, Any]:
        """The inverse of `read_beit`."""
        core = config.transformer.resolved()
        return {
            "model_type": model_type, **their_classes(config, name), **their_core(config, core),
            "intermediate_size": core.ffn_dim, "use_absolute_position_embeddings": config.position == "learned",
            "use_relative_position_bias": config.relative_bias == "layers",
            "use_shared_relative_position_bias": config.relative_bias == "shared",
            # Theirs has no gain for a value of 0.
            "layer_scale_init_value": 0.0 if core.layer_scale is None else core.layer_scale or 1.0,
            "use_mean_pooling": config.pool == "mean", "use_mask_token": False,
        }  # fmt: skip

    return write


HF_DEIT = family_of(
    "Hugging Face DeiT", "deit", read_deit, write_deit, Preprocessing(crop_pct=224 / 256, resize="squash"), DEIT
)
HF_BEIT = family_of(
    "Hugging Face BEiT", "beit", read_beit, _writer("beit", "Beit"), Preprocessing(resize="squash"), BEIT
)
HF_DATA2VEC = family_of(
    "Hugging Face Data2Vec", "data2vec-vision", read_beit, _writer("data2vec-vision", "Data2VecVision"),
    Preprocessing(resize="squash"), DATA2VEC,
)  # fmt: skip
