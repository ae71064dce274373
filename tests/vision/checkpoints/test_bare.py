"""Files of weights without a config: what is not in them is said beside them, that of a published model, or refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from triune.core.checkpoints.source import Source
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.vision.checkpoints import timm
from triune.vision.checkpoints.bare import Shape, heads_of
from triune.vision.checkpoints.pretrained import export, load
from triune.vision.checkpoints.torchvision_files import (
    _DINO2_PUBLISHED,
    _PREPROCESSING,
    _PUBLISHED,
    _SWAG,
    DINO2_FILE,
    _torchvision_arguments,
)
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.preprocessing import Preprocessing

from .test_pretrained import assert_near, images, shaken

ARGUMENTS = {
    "image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 256,
    "num_classes": 5,
}  # fmt: skip


class Held(Source):
    """A file with tensors that are not on disk."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(name, Path(name))
        object.__setattr__(self, "held", tensors)

    @property
    def file(self) -> Path:
        return self.path

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.__dict__["held"])


@pytest.mark.parametrize("variant", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
def test_published_models_of_torchvision_have_their_heads(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    with torch.device("meta"):
        theirs = getattr(models, variant)()
    found = _torchvision_arguments(Held(f"{variant}.pth", theirs.state_dict()))
    heads = theirs.encoder.layers[0].self_attention.num_heads
    expected = (theirs.image_size, theirs.patch_size, heads, theirs.hidden_dim, theirs.mlp_dim, theirs.num_classes)
    names = ("image_size", "patch_size", "num_heads", "hidden_dim", "mlp_dim", "num_classes")
    assert tuple(found[name] for name in names) == expected
    assert f"was read with {heads} heads, as {variant[:5]} has" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["small", "base", "large", "giant"])
def test_published_models_of_dinov2_have_their_heads(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    timm: Any = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(f"vit_{variant}_patch14_dinov2")
    shape = (theirs.embed_dim, len(theirs.blocks), theirs.blocks[0].mlp.fc2.in_features)
    found = heads_of(Source("x.pth", Path("x.pth")), "DINOv2", shape, _DINO2_PUBLISHED)
    assert found == theirs.blocks[0].attn.num_heads
    assert f"{found} heads, as dinov2_vit{variant[0]} has" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["ViT_B_16", "ViT_B_32", "ViT_L_16", "ViT_L_32", "ViT_H_14"])
def test_images_are_prepared_as_the_published_weights_want_them(variant: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    width = {"B": 768, "L": 1024, "H": 1280}[variant[4]]
    for weights in getattr(models, f"{variant}_Weights"):
        wanted = weights.transforms()
        size, patch = wanted.crop_size[0], int(variant[-2:])
        ours = _SWAG if "swag" in weights.url else _PREPROCESSING[width, patch, size]
        assert _PREPROCESSING[width, patch, size] == ours or "lc_swag" in weights.url
        assert (ours.interpolation, ours.mean, ours.std) == (wanted.interpolation.value, wanted.mean, wanted.std)
        assert int(size / ours.crop_pct) == wanted.resize_size[0]


@pytest.mark.parametrize("shape", [(768, 6, 3072), (768, 12, 2048), (384, 12, 1536), (192, 12, 768), (64, 2, 256)])
def test_shapes_that_nobody_published_are_refused(shape: Shape, tmp_path: Path) -> None:
    # Of the width 384 there are models with 6 heads (DeiT) and with 12 (MoCo v3), and torchvision has none.
    source = Source("vit.pth", tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"does not say how many heads.*'vit.pth.json' beside it, such as \{\"num_h"):
        heads_of(source, "torchvision ViT", shape, _PUBLISHED)
    if shape[0] != 384:
        with pytest.raises(UserError, match="does not say how many heads"):
            heads_of(source, "DINOv2", shape, _DINO2_PUBLISHED)


@pytest.fixture
def bare(tmp_path: Path) -> tuple[Any, Path]:
    """A model of torchvision's with heads that no rule guesses, and its file."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    original = shaken(models.VisionTransformer(**ARGUMENTS))
    torch.save(original.state_dict(), tmp_path / "mine.pth")
    return original, tmp_path / "mine.pth"


def test_heads_are_said_beside_the_file(bare: tuple[Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    original, path = bare
    with pytest.raises(UserError, match="64 wide with 2 layers and 256 hidden units"):
        load(str(path))
    prepared = {"mean": [0.1], "std": [0.2]}
    says = {"num_heads": 4, "labels": list("abcde"), "preprocessing": prepared}
    (path.parent / "mine.pth.json").write_text(json.dumps(says))
    found: Any = load(str(path)).model
    assert "4 heads, as 'mine.pth.json' says" in capsys.readouterr().err
    assert (found.config.labels, found.config.preprocessing.std) == (list("abcde"), [0.2])
    with torch.inference_mode():
        assert_near(found(images(32, 32)), original(images(32, 32)))
    (path.parent / "mine.pth.json").write_text(json.dumps({"num_heads": 2}))
    assert float((load(str(path)).model(images(32, 32)) - original(images(32, 32))).detach().abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"num_heads": 5}, "must divide the width 64"),
        ({"num_heads": "4"}, "num_heads in .* is '4', but must be a positive integer"),
        ({"num_heads": True}, "is True, but must be a positive integer"),
        ({"heads": 4}, "says heads, but beside a file of weights it may say only num_heads, labels, preprocessing"),
        ({"num_heads": 4, "labels": ["a"]}, "labels names 1 classes, but classes is 5"),
    ],
)
def test_settings_beside_a_file_that_are_wrong(bare: tuple[Any, Path], content: dict[str, Any], reason: str) -> None:
    Path(f"{bare[1]}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason):
        load(str(bare[1]))


def test_a_head_in_the_place_of_heads_and_none_at_all(bare: tuple[Any, Path]) -> None:
    original, path = bare
    Path(f"{path}.json").write_text(json.dumps({"num_heads": 4}))
    state, x = original.state_dict(), images(32, 32)
    head = {name: tensor for name, tensor in state.items() if name.startswith("heads.")}
    rest = {name: tensor for name, tensor in state.items() if name not in head}
    torch.save(rest | {name.replace("heads.head", "heads"): tensor for name, tensor in head.items()}, path)
    with torch.inference_mode():
        assert_near(load(str(path)).model(x), original(x))
        torch.save(rest, path)
        original.heads = torch.nn.Identity()
        assert_near(load(str(path)).model(x), original(x))


def test_tables_that_are_no_square_are_refused(bare: tuple[Any, Path]) -> None:
    original, path = bare
    Path(f"{path}.json").write_text(json.dumps({"num_heads": 4}))
    torch.save(original.state_dict() | {"encoder.pos_embedding": torch.zeros(1, 11, 64)}, path)
    with pytest.raises(UserError, match="a table of 10 positions of patches, which are no square grid"):
        load(str(path))
    core = TransformerConfig(dim=64, depth=1, heads=1, position="none", layer_scale=1.0)
    model = shaken(
        VisionTransformer(VisionTransformerConfig(image_size=56, patch_size=14, classes=0, transformer=core))
    )
    theirs = DINO2_FILE.weights(model.config).to_theirs(model)
    torch.save(theirs | {"mask_token": torch.zeros(1, 64), "pos_embed": torch.zeros(1, 13, 64)}, path)
    with pytest.raises(UserError, match="a table of 12 positions of patches"):
        load(str(path))


def test_torchvision_folders_keep_preprocessing_and_refuse_what_they_do_not_have(tmp_path: Path) -> None:
    prepared = Preprocessing([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], "lanczos", 0.9, "squash")
    core = TransformerConfig(dim=48, depth=1, heads=3, position="none", norm_eps=1e-6)
    config = VisionTransformerConfig(
        image_size=32, patch_size=8, classes=2, transformer=core, labels=["a", "b"], preprocessing=prepared
    )
    export(VisionTransformer(config), tmp_path / "theirs", "torchvision")
    again: Any = load(str(tmp_path / "theirs")).model
    assert again.config.preprocessing == prepared
    path = tmp_path / "theirs" / "config.json"
    says = json.loads(path.read_text())
    path.write_text(json.dumps(says | {"model_args": says["model_args"] | {"norm_layer": "rms"}}))
    with pytest.raises(UserError, match="norm_layer in its model_args is a setting that our model does not have"):
        load(str(tmp_path / "theirs"))


@pytest.mark.parametrize(("theirs", "ours"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("relu", "relu")])
@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_says_its_activation(theirs: str, ours: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 56, "patch_size": 14}
    model = shaken(transformers.Dinov2Model(transformers.Dinov2Config(**sizes, hidden_act=theirs)))
    x = images(56, 56)
    torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17)
    found: Any = load(str(tmp_path / "m.onnx")).model
    assert found.config.transformer.ffn == ours
    with torch.inference_mode():
        assert_near(found.tokens(x), model(x).last_hidden_state)


def test_usual_preprocessing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path)
    load(str(tmp_path))
    assert "images resized by bilinear (squash), mean 0.5 and deviation 0.5, as is usual" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m.onnx", "vit_b_16-c867db91.safetensors", "anything.safetensors"])
def test_files_of_others_are_told_apart_without_timm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing timm takes seconds, longer than a probe whose features are known."""
    save_file({"conv_proj.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / name)
    for module in ("timm", "timm.models"):
        monkeypatch.setitem(sys.modules, module, None)  # an import would raise
    source = Source(name, tmp_path / name)
    assert not any(family.fits(source) for family in (timm.TIMM_VIT, timm.TIMM_EVA, timm.TIMM_BEIT))
    save_file(
        {"patch_embed.proj.weight": torch.zeros(1), "blocks.0.norm1.weight": torch.zeros(1)},
        tmp_path / "vit.safetensors",
    )
    with pytest.raises(ImportError):
        timm.TIMM_VIT.fits(Source("vit", tmp_path / "vit.safetensors"))
