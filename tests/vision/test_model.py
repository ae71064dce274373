"""The Vision Transformer: shapes, positions on other grids, equality with timm, checkpoints, messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.patches import ConvolutionStem, PatchEmbed
from triune.vision.positions import LearnedGrid, grid_coordinates, resample_grid, sincos2d_table
from triune.vision.preprocessing import IMAGENET, Preprocessing


def core(position: str = "none", **changes: object) -> TransformerConfig:
    rotary = RotaryConfig(axes=2, interleaved=bool(changes.pop("interleaved", False)), base=changes.pop("base", 100.0))  # type: ignore[arg-type]
    values = {"dim": 32, "depth": 2, "heads": 2, "norm_eps": 1e-6, "position": position, "rotary": rotary}
    return TransformerConfig(**values | changes)  # type: ignore[arg-type]


def build(seed: int = 0, **changes: object) -> VisionTransformer:
    """A small model whose every parameter is random, so that nothing hides behind a zero or a one."""
    torch.manual_seed(seed)
    values = {"image_size": [16, 24], "patch_size": [4, 8], "channels": 1, "classes": 5, "transformer": core()}
    model = VisionTransformer(VisionTransformerConfig(**values | changes)).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("pool", ["class", "mean", "attention"])
@pytest.mark.parametrize("position", ["learned", "sincos2d", "none"])
@pytest.mark.parametrize("rotary", ["none", "rotary"])
def test_every_kind_runs_on_its_own_and_on_another_size(pool: str, position: str, rotary: str) -> None:
    model = build(
        pool=pool, position=position, transformer=core(rotary), registers=2, pre_logits=True, pooled_norm=True
    )
    for size in ((16, 24), (8, 40)):
        images = torch.randn(3, 1, *size)
        assert model(images).shape == (3, 5)
        assert model.features(images).shape == (3, 32)
        assert model.tokens(images).shape == (3, 3 + size[0] // 4 * (size[1] // 8), 32)
    model(torch.randn(2, 1, 16, 24)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == [], f"no gradient reaches {without}"


def test_patches_are_a_convolution() -> None:
    model = build()
    images = torch.randn(2, 1, 16, 24)
    embed = model.patch_embed
    assert isinstance(embed, PatchEmbed)
    expected = F.conv2d(images, embed.weight, embed.bias, stride=(4, 8)).flatten(2).mT
    torch.testing.assert_close(embed(images), expected, rtol=1e-5, atol=1e-5)


def test_convolutions_give_one_token_a_patch_and_see_its_neighbours() -> None:
    model = build(patch_size=4, stem="convolutions", position="learned")
    assert isinstance(model.patch_embed, ConvolutionStem)
    images = torch.randn(2, 1, 16, 24, requires_grad=True)
    tokens = model.patch_embed(images)
    assert tokens.shape == (2, 24, 32)
    assert model.tokens(torch.randn(1, 1, 8, 40)).shape == (1, 21, 32)
    torch.testing.assert_close(model.patch_embed(images[1:])[0], tokens[1])  # the other image of the batch has no part
    convolutions = torch.nn.Sequential(*(layer for layer in model.patch_embed if isinstance(layer, torch.nn.Conv2d)))
    (seen,) = torch.autograd.grad(convolutions(images)[0, :, 1, 2].sum(), images)  # row 1, column 2 of the patches
    rows, columns = seen[0, 0].any(1).nonzero()[:, 0].tolist(), seen[0, 0].any(0).nonzero()[:, 0].tolist()
    assert (rows, columns) == (list(range(9)), list(range(4, 13)))


@pytest.mark.parametrize(
    ("patch", "steps"), [(1, [(32, 1)]), (4, [(10, 1), (21, 2), (32, 2)]), (8, [(8, 2), (16, 2), (32, 2)])]
)
def test_small_patches_begin_with_a_convolution_of_every_pixel(patch: int, steps: list[tuple[int, int]]) -> None:
    *layers, _ = (layer for layer in ConvolutionStem(3, (patch, patch), 32) if isinstance(layer, torch.nn.Conv2d))
    assert [(layer.out_channels, layer.stride[0]) for layer in layers] == steps


def test_convolutions_need_a_power_of_two() -> None:
    with pytest.raises(UserError, match=r"patch_size is .*power of two"):
        build(patch_size=[4, 8], stem="convolutions")
    with pytest.raises(UserError, match=r"patch_size is .*power of two"):
        build(image_size=[12, 24], patch_size=6, stem="convolutions")


def test_token_order_is_class_registers_patches() -> None:
    model = build(registers=2, position="learned")
    x = model.embed(torch.zeros(1, 1, 16, 24))
    assert model.class_token is not None
    assert model.registers is not None
    assert isinstance(model.positions, LearnedGrid)
    torch.testing.assert_close(x[:, :1], model.class_token + model.positions.table[0])
    torch.testing.assert_close(x[:, 1:3], model.registers)
    torch.testing.assert_close(x[0, 3:], model.positions.table[1:] + model.patch_embed.bias)
    bare = build(position="learned", position_covers_class=False)
    assert isinstance(bare.positions, LearnedGrid)
    assert len(bare.positions.table) == 12


def test_mean_pool_leaves_out_class_and_registers() -> None:
    model = build(pool="mean", registers=2)
    tokens = torch.randn(2, 3 + 12, 32)
    torch.testing.assert_close(model.pooled(tokens), tokens[:, 3:].mean(1))


def test_rotary_prefix_is_not_turned_and_scores_depend_on_distance_only() -> None:
    model = build(transformer=core("rotary"), position="none", registers=1)
    positions = model.rotary_positions((4, 3), torch.device("cpu"))
    assert positions is not None
    assert positions.shape == (14, 2)
    assert not positions[:2].any()
    assert positions[2:].tolist() == [[float(i), float(j)] for i in range(4) for j in range(3)]
    shifted = build(transformer=core("rotary"), position="none", class_token=False, pool="mean")
    x = torch.randn(1, 12, 32)
    at = positions[2:]
    torch.testing.assert_close(
        shifted.transformer(x, positions=at), shifted.transformer(x, positions=at + torch.tensor([5.0, -3.0])),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_unit_coordinates_are_dinov3s() -> None:
    found = grid_coordinates((2, 4), (7, 7), "unit") / (2 * torch.pi)
    torch.testing.assert_close(found[:, 0], torch.tensor([-0.5] * 4 + [0.5] * 4))
    torch.testing.assert_close(found[:4, 1], torch.tensor([-0.75, -0.25, 0.25, 0.75]))


def test_index_coordinates_stretch_to_the_reference_grid() -> None:
    assert grid_coordinates((2, 4), (4, 4)).tolist() == [[float(2 * i), float(j)] for i in range(2) for j in range(4)]


def test_sincos_is_big_visions() -> None:
    dim, (rows, columns) = 16, (2, 3)
    table = sincos2d_table(grid_coordinates((rows, columns), (rows, columns)), dim)
    omega = 1 / 10_000 ** (torch.arange(4) / 3)
    for token, (y, x) in enumerate((y, x) for y in range(rows) for x in range(columns)):
        expected = torch.cat([(x * omega).sin(), (x * omega).cos(), (y * omega).sin(), (y * omega).cos()])
        torch.testing.assert_close(table[token], expected)


def test_resampling_methods_differ_and_keep_an_equal_grid() -> None:
    table = torch.randn(37 * 37, 8, generator=torch.Generator().manual_seed(0))
    methods = ("reference", "dinov2-hub", "timm", "torchvision", "big_vision")
    results = {method: resample_grid(table, (37, 37), (16, 20), method) for method in methods}  # type: ignore[arg-type]
    for method, result in results.items():
        assert result.shape == (320, 8)
        assert resample_grid(table, (37, 37), (37, 37), method) is table  # type: ignore[arg-type]
    for a in methods:
        for b in methods:
            assert a == b or (results[a] - results[b]).abs().max() > 1e-3, (a, b)


def test_resampling_equals_timm_and_keeps_a_constant() -> None:
    timm = pytest.importorskip("timm.layers.pos_embed")
    table = torch.randn(14 * 14, 8)
    expected = timm.resample_abs_pos_embed(table[None], [20, 9], [14, 14], num_prefix_tokens=0)[0]
    torch.testing.assert_close(resample_grid(table, (14, 14), (20, 9), "timm"), expected)
    flat = torch.full((12, 2), 3.0)
    for method in ("reference", "dinov2-hub", "timm", "torchvision", "big_vision"):
        torch.testing.assert_close(resample_grid(flat, (3, 4), (5, 2), method), torch.full((10, 2), 3.0))


def test_resized_copy_gives_the_same_logits_and_leaves_the_original() -> None:
    for method in ("reference", "dinov2-hub"):
        model = build(position="learned", transformer=core("rotary"), resample=method)
        images = torch.randn(2, 1, 24, 48)
        copy = model.resized([24, 48])
        torch.testing.assert_close(copy(images), model(images))
        assert isinstance(copy.positions, LearnedGrid)
        assert isinstance(model.positions, LearnedGrid)
        assert copy.positions.table.shape == (1 + 36, 32)
        assert model.positions.table.shape == (1 + 12, 32)
        assert copy.config.rotary_grid == model.config.rotary_grid == [4, 3]


def _copy_block(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Weights of a timm block into one of ours."""
    q, k, v = theirs.attn.qkv.weight.chunk(3)  # type: ignore[union-attr]
    bq, bk, bv = theirs.attn.qkv.bias.chunk(3)  # type: ignore[union-attr]
    state = {
        "attn.q.weight": q, "attn.k.weight": k, "attn.v.weight": v, "attn.q.bias": bq, "attn.k.bias": bk,
        "attn.v.bias": bv,
    }  # fmt: skip
    names = {"attn.proj": "attn.out", "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "ffn.up", "mlp.fc2": "ffn.down"}
    for name, tensor in theirs.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        if stem in names:
            state[f"{names[stem]}.{kind}"] = tensor
    ours.load_state_dict(state)


@pytest.mark.parametrize("pool", ["class", "mean", "attention"])
def test_equals_timm(pool: str) -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    theirs = timm.VisionTransformer(
        img_size=(16, 24), patch_size=(4, 8), num_classes=5, embed_dim=32, depth=2, num_heads=2, reg_tokens=2,
        global_pool={"class": "token", "mean": "avg", "attention": "map"}[pool], no_embed_class=True,
    ).double().eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    mean = pool == "mean"
    ours = build(
        channels=3, registers=2, pool=pool, position="learned", position_covers_class=False, pooled_norm=mean,
        transformer=core(final_norm=not mean),
    ).double()  # fmt: skip
    with torch.no_grad():
        ours.patch_embed.load_state_dict(theirs.patch_embed.proj.state_dict())
        ours.class_token.copy_(theirs.cls_token)  # type: ignore[union-attr]
        ours.registers.copy_(theirs.reg_token)  # type: ignore[union-attr]
        ours.positions.table.copy_(theirs.pos_embed[0])  # type: ignore[union-attr]
    for mine, other in zip(ours.transformer.blocks, theirs.blocks, strict=True):
        _copy_block(mine, other)
    (ours.pooled_norm if mean else ours.transformer.final_norm).load_state_dict(
        (theirs.fc_norm if mean else theirs.norm).state_dict()
    )
    if pool == "attention":
        _copy_pool(ours.pool, theirs.attn_pool)
    ours.head.load_state_dict(theirs.head.state_dict())
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-10)


def _copy_pool(ours: torch.nn.Module | None, theirs: torch.nn.Module) -> None:
    assert ours is not None
    state = theirs.state_dict()
    (wk, wv), (bk, bv) = state["kv.weight"].chunk(2), state["kv.bias"].chunk(2)
    renamed = {"proj": "attn.out", "q": "attn.q", "norm": "norm", "mlp.fc1": "ffn.up", "mlp.fc2": "ffn.down"}
    target = {"attn.k.weight": wk, "attn.v.weight": wv, "attn.k.bias": bk, "attn.v.bias": bv, "latent": state["latent"]}
    for old, new in renamed.items():
        target |= {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias")}
    ours.load_state_dict(target)


@pytest.mark.parametrize("unit", [False, True])
def test_rotary_equals_timms_eva(unit: bool) -> None:
    """EVA-02's and DINOv3's rotation of queries, for a grid that is not the trained one."""
    sincos = pytest.importorskip("timm.layers.pos_embed_sincos")
    from triune.core.positions import Rotary, rotate

    head_dim, grid = 16, (3, 5)
    x = torch.randn(1, 2, 15, head_dim)
    base = 100.0 if unit else 10_000.0
    rotary = Rotary(RotaryConfig(axes=2, interleaved=not unit, base=base), head_dim)
    coordinates = grid_coordinates(grid, (4, 4), "unit" if unit else "index")
    ours = rotate(x, rotary(coordinates, x.dtype), interleaved=not unit)
    if unit:
        module = sincos.RotaryEmbeddingDinoV3(head_dim, temperature=100.0, feat_shape=None, rotate_half=True)
        sin, cos = module.get_embed(list(grid)).chunk(2, -1)
        half = torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1)
        theirs = x * cos + half * sin
    else:
        sin, cos = sincos.build_rotary_pos_embed(list(grid), dim=head_dim, in_pixels=False, ref_feat_shape=[4, 4])
        theirs = sincos.apply_rot_embed(x, sin, cos)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_checkpoint_carries_labels_and_preprocessing(tmp_path: Path) -> None:
    mean, std = IMAGENET
    model = build(
        channels=3, labels=["a", "b", "c", "d", "é"], transformer=core("rotary"), rotary_coordinates="unit",
        preprocessing=Preprocessing(mean, std, "bilinear", 0.9, "squash"), registers=1, pool="attention",
    )  # fmt: skip
    model.save_pretrained(tmp_path / "m")
    again = VisionTransformer.from_pretrained(tmp_path / "m").eval()
    assert again.config == model.config
    images = torch.randn(1, 3, 16, 24)
    assert torch.equal(again(images), model(images))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model"]["labels"][4] == "é"


def test_config_survives_json() -> None:
    config = VisionTransformerConfig(image_size=32, patch_size=4, classes=2, labels=["x", "y"])
    assert VisionTransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert dataclasses.replace(config, image_size=64).rotary_grid == [8, 8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": [30, 40]}, ["30×40", "4×8", "28×40 or 32×40"]),
        ({"image_size": -1}, ["image_size is -1"]),
        ({"pool": "clas"}, ["pool is 'clas'", "did you mean 'class'"]),
        ({"class_token": False}, ["pool is 'class'", "mean or attention"]),
        ({"labels": ["a"]}, ["labels names 1", "classes is 5"]),
        ({"classes": -1}, ["classes is -1"]),
        ({"transformer": TransformerConfig(dim=32, heads=2, position="learned")}, ["transformer.position", "position"]),
        ({"transformer": TransformerConfig(dim=32, heads=2, position="rotary")}, ["axes is 1", "must be 2"]),
        ({"transformer": core(causal=True)}, ["causal"]),
        ({"resample": "timmm"}, ["did you mean 'timm'"]),
        ({"preprocessing": Preprocessing([0.5, 0.5], [0.5, 0.5])}, ["preprocessing.mean has 2 entries"]),
    ],
)
def test_wrong_settings_are_explained(changes: dict[str, object], words: list[str]) -> None:
    values = {"image_size": [16, 24], "patch_size": [4, 8], "channels": 1, "classes": 5, "transformer": core()}
    with pytest.raises(UserError) as error:
        VisionTransformerConfig(**values | changes)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words), str(error.value)


def test_wrong_images_are_explained() -> None:
    model = build()
    with pytest.raises(UserError, match=r"14×24 pixels.*multiple of the patch 4×8.*12×24 or 16×24"):
        model(torch.zeros(1, 1, 14, 24))
    with pytest.raises(UserError, match=r"\[1, 3, 16, 24\].*1 channels"):
        model(torch.zeros(1, 3, 16, 24))


def test_untrained_model_predicts_all_classes_alike() -> None:
    model = VisionTransformer(
        VisionTransformerConfig(image_size=8, patch_size=4, classes=4, head_bias=-2.0, transformer=core())
    )
    assert torch.equal(model(torch.randn(3, 3, 8, 8)), torch.full((3, 4), -2.0))


def test_preprocessing_crops_squashes_and_normalises() -> None:
    from PIL import Image

    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 30, 20))
    cropped = Preprocessing(interpolation="nearest").pixels(image, (20, 20))
    assert cropped.shape == (3, 20, 20)
    assert (cropped[2] == 255).all()
    squashed = Preprocessing(interpolation="nearest", resize="squash").pixels(image, (10, 20))
    assert squashed[0, 0].tolist() == [255] * 5 + [0] * 10 + [255] * 5
    mean, std = IMAGENET
    normal = Preprocessing(mean, std).normalise(cropped)
    expected = (cropped.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(normal, expected)
    grey = Preprocessing([0.25], [0.5]).normalise(torch.full((2, 1, 3, 3), 255, dtype=torch.uint8))
    torch.testing.assert_close(grey, torch.full((2, 1, 3, 3), 1.5))
