"""Hugging Face's CLIP, SigLIP, DeiT, BEiT and Data2Vec: outputs as the originals', the same weights on the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.core.errors import UserError
from triune.vision.checkpoints.pretrained import export, load, parity

from .test_pretrained import SIZES, TOLERANCE, assert_near, assert_same_weights, images, shaken, vit

SMALL = SIZES | {"intermediate_size": 100}
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 50,
    "max_position_embeddings": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> Iterator[Any]:
    found = pytest.importorskip("transformers", reason="transformers is not installed")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    yield found
    found.logging.set_verbosity_warning()


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "DeiT": ("DeiTModel", {}),
    "DeiT classifier": ("DeiTForImageClassification", {"num_labels": 5, "qkv_bias": False, "hidden_act": "gelu_new"}),
    "DeiT of rectangles": ("DeiTForImageClassification", {"image_size": [16, 40], "patch_size": [8, 4]}),
    "DeiT with a teacher": ("DeiTForImageClassificationWithTeacher", {"num_labels": 5}),
    "BEiT": ("BeitModel", {"use_relative_position_bias": True}),
    "BEiT of the class token": ("BeitModel", {"use_mean_pooling": False, "layer_scale_init_value": 0.0}),
    "BEiT classifier": (
        "BeitForImageClassification", {"use_relative_position_bias": True, "num_labels": 5, "hidden_act": "relu"},
    ),
    "BEiT with a shared bias and a table": (
        "BeitForImageClassification",
        {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True, "num_channels": 1},
    ),
    "BEiT without positions, rectangles": ("BeitModel", {"image_size": [16, 40]}),
    "Data2Vec": ("Data2VecVisionModel", {"use_relative_position_bias": True}),
    "Data2Vec classifier": ("Data2VecVisionForImageClassification", {"use_absolute_position_embeddings": True}),
    "CLIP": ("CLIPVisionModel", {}),
    "CLIP classifier": ("CLIPForImageClassification", {"num_labels": 5}),
    "CLIP classifier without classes": ("CLIPForImageClassification", {"num_labels": 0, "hidden_act": "gelu"}),
    "SigLIP": ("SiglipVisionModel", {}),
    "SigLIP without a head": ("SiglipVisionModel", {"vision_use_head": False}),
    "SigLIP classifier": ("SiglipForImageClassification", {"num_labels": 5}),
    "ViT of wide heads": ("ViTForImageClassification", {"head_dim": 24, "num_labels": 3}),
    "DINOv2 of wide heads": ("Dinov2Model", {"head_dim": 8}),
    "DINOv3 with a gated ReLU": ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "relu"}),
}  # fmt: skip


def relative(transformers: Any, name: str) -> Any:
    """A model of the original library with random weights."""
    kind, options = CASES[name]
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    if kind in ("CLIPForImageClassification", "SiglipForImageClassification"):
        options = dict(options)
        labels = {"num_labels": options.pop("num_labels")}
        return shaken(cls(cls.config_class(vision_config=SMALL | options, text_config=TEXT, **labels)))
    return shaken(cls(cls.config_class(**SMALL | options)))


def outputs(model: Any, x: torch.Tensor, **more: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens, and logits or what the backbone pools, where it does."""
    found = model(x, **more)
    if not hasattr(found, "logits"):
        return found.last_hidden_state, found.pooler_output
    backbone = getattr(model, "vision_model", None) or getattr(model, model.base_model_prefix)
    return backbone(x, **more).last_hidden_state, found.logits


@pytest.mark.parametrize("name", CASES)
def test_relatives(transformers: Any, tmp_path: Path, name: str) -> None:
    original = relative(transformers, name)
    original.save_pretrained(tmp_path / "theirs")
    found = load(str(tmp_path / "theirs"))
    ours, size = vit(found), vit(found).config.size
    x = images(*size, channels=ours.config.channels)
    with torch.inference_mode():
        tokens, pooled = outputs(original, x)
        mine = ours.tokens(x)
        scale = float(tokens.square().mean().sqrt().clamp(min=1))  # without a final norm they are of any size
        assert float((mine - tokens).abs().max()) <= TOLERANCE * scale
        if pooled is not None:
            assert_near(ours(x), pooled)
    assert parity(found, tmp_path / "theirs", "hf") <= TOLERANCE
    for what, target in ((found, "again"), (ours, "plain")):
        export(what, tmp_path / target, "hf")
        assert parity(found, tmp_path / target, "hf") <= TOLERANCE
    again, said = type(original).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    # Of two biases only the mean matters, which both become.
    biases = ("cls_classifier.bias", "distillation_classifier.bias") if "teacher" in name else ()
    assert_same_weights(original.state_dict(), again.state_dict(), but=biases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_heads_of_16_bits_are_averaged_without_rounding(
    transformers: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    original = relative(transformers, "DeiT with a teacher").to(dtype)
    with torch.no_grad():
        original.cls_classifier.bias.fill_(1.0)
        original.distillation_classifier.bias.fill_(2.0**-12)
    original.save_pretrained(tmp_path)
    found = load(str(tmp_path))
    assert torch.equal(vit(found).head.bias.double(), torch.full((5,), 0.5 + 2.0**-13, dtype=torch.float64))
    assert parity(found, tmp_path, "hf") <= TOLERANCE


def test_the_start_of_gains_that_are_read_does_not_matter(transformers: Any, tmp_path: Path) -> None:
    cls = transformers.Dinov2Model
    shaken(cls(cls.config_class(**SIZES, layerscale_value=0.0))).save_pretrained(tmp_path)
    assert parity(load(str(tmp_path)), tmp_path, "hf") <= TOLERANCE


@pytest.mark.parametrize("name", ["DeiT classifier", "CLIP", "SigLIP"])
def test_other_sizes(transformers: Any, tmp_path: Path, name: str) -> None:
    original = relative(transformers, name)
    original.save_pretrained(tmp_path)
    ours, x = vit(load(str(tmp_path))), images(40, 64)
    with torch.inference_mode():
        tokens, pooled = outputs(original, x, interpolate_pos_encoding=True)
        assert pooled is not None
        torch.testing.assert_close(ours.tokens(x), tokens, atol=TOLERANCE, rtol=1e-5)
        assert_near(ours(x), pooled)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_of_two_towers_that_of_images_is_read(
    transformers: Any, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = getattr(transformers, f"{kind}Model")
    torch.manual_seed(0)
    original = shaken(cls(cls.config_class(vision_config=SMALL, text_config=TEXT)))
    original.save_pretrained(tmp_path / "both")
    found, x = load(str(tmp_path / "both")), images(32, 32)
    assert "with its image tower alone, without its text_model" in capsys.readouterr().err
    with torch.inference_mode():
        assert_near(vit(found)(x), original.vision_model(x).pooler_output)
    assert parity(found, tmp_path / "both", "hf") <= TOLERANCE
    export(found, tmp_path / "alone", "hf")
    alone = getattr(transformers, f"{kind}VisionModel").from_pretrained(tmp_path / "alone")
    with torch.inference_mode():
        assert_near(alone.eval()(x).pooler_output, original.vision_model(x).pooler_output)


def test_a_projection_is_left_out_and_said(
    transformers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = transformers.CLIPVisionModelWithProjection
    original = shaken(cls(cls.config_class(**SMALL, projection_dim=6)))
    original.save_pretrained(tmp_path)
    ours = vit(load(str(tmp_path)))
    assert "without its visual_projection" in capsys.readouterr().err
    with torch.inference_mode():
        assert_near(ours(images(32, 32)), original.vision_model(images(32, 32)).pooler_output)


@pytest.mark.parametrize("processor", ["preprocessor_config.json", "processor_config.json"])
def test_images_of_a_model_of_two_towers(transformers: Any, tmp_path: Path, processor: str) -> None:
    relative(transformers, "CLIP").save_pretrained(tmp_path)
    says = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 40}, "resample": 3}
    says |= {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    whole = says if processor.startswith("pre") else {"image_processor": says, "processor_class": "CLIPProcessor"}
    (tmp_path / processor).write_text(json.dumps(whole))
    found = vit(load(str(tmp_path))).config.preprocessing
    assert (found.mean, found.crop_pct, found.interpolation) == ([0.1] * 3, 0.8, "bicubic")


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("BeitModel", {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}, "both shared"),
        ("BeitModel", {"use_relative_position_bias": True, "image_size": [16, 32]}, "must be square"),
        ("DeiTForImageClassificationWithTeacher", {"num_labels": 0}, "two heads without classes"),
        ("DeiTModel", {"pooler_output_size": 9}, "pooler_output_size is 9, but must be hidden_size"),
        ("CLIPVisionModel", {"hidden_act": "tanh"}, "hidden_act is 'tanh', which the core does not have"),
    ],
)
def test_relatives_that_we_do_not_have(
    transformers: Any, tmp_path: Path, kind: str, options: dict[str, Any], reason: str
) -> None:
    cls = getattr(transformers, kind)
    cls(cls.config_class(**SMALL | options)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=reason):
        load(str(tmp_path))


def test_a_distilled_deit_goes_from_timm_to_hugging_face(transformers: Any, tmp_path: Path) -> None:
    timm: Any = pytest.importorskip("timm")
    from timm.models import save_for_hf

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    original = shaken(timm.create_model("deit_tiny_distilled_patch16_224", **options))
    save_for_hf(original, str(tmp_path / "theirs"), safe_serialization=True)
    found, x = load(str(tmp_path / "theirs")), images(32, 32)
    with torch.inference_mode():
        assert_near(vit(found).tokens(x), original.forward_features(x))
        assert_near(vit(found)(x), original(x))
    assert parity(found, tmp_path / "theirs", "timm") <= TOLERANCE
    export(found, tmp_path / "again", "timm")
    assert parity(found, tmp_path / "again", "timm") <= TOLERANCE
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
    assert_same_weights(original.state_dict(), again.state_dict(), but=("head.bias", "head_dist.bias"))
