"""Exported files agree with the model, carry what a user needs, and are not kept when they differ."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig
from triune.vision import export
from triune.vision.classify import Classifier
from triune.vision.evaluate.calibration import store_temperature
from triune.vision.model import VisionTransformer, VisionTransformerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with everything that could stop an export: rotary positions, QK-norm, registers, a learned
    table.
    """
    torch.manual_seed(0)
    core = TransformerConfig(
        dim=24,
        depth=2,
        heads=2,
        position="rotary",
        rotary=RotaryConfig(axes=2),
        qk_norm="head",
        norm="rmsnorm",
        ffn="swiglu",
    )
    config = VisionTransformerConfig(
        image_size=[16, 24], patch_size=4, channels=1, classes=3, registers=2, labels=["a", "b", "c"], transformer=core,
        resample="timm",
    )  # fmt: skip
    model = VisionTransformer(config)
    torch.nn.init.normal_(model.head.weight)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    store_temperature(path, 2.5)
    return path


def expected(folder, images, probabilities=False):
    classifier = Classifier.load(folder, "cpu")
    with torch.no_grad():
        logits = classifier.model(images)
    return (logits / 2.5).softmax(1) if probabilities else logits


def test_torch_export(folder, tmp_path, capsys):
    target = tmp_path / "new" / "model.pt2"
    assert export.main([str(folder), "--torch-export", str(target), "--dynamic-batch", "--probabilities"]) == 0
    extra = {"triune.json": ""}
    module = torch.export.load(target, extra_files=extra).module()
    for batch in (1, 5):
        images = torch.randn(batch, 1, 16, 24)
        torch.testing.assert_close(module(images), expected(folder, images, probabilities=True))
    metadata = json.loads(extra["triune.json"])
    assert metadata["labels"] == ["a", "b", "c"]
    assert metadata["temperature"] == 2.5
    assert metadata["preprocessing"]["image_size"] == [16, 24]
    assert "agrees" in capsys.readouterr().out
    assert [p.name for p in target.parent.iterdir()] == ["model.pt2"]


def test_onnx(folder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    target = tmp_path / "model.onnx"
    assert export.main([str(folder), "--onnx", str(target), "--dynamic-batch", "--image-size", "32", "16"]) == 0
    session = onnxruntime.InferenceSession(target)
    for batch in (1, 4):
        images = torch.randn(batch, 1, 32, 16)
        found = session.run(["logits"], {"images": images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected(folder, images), atol=1e-4, rtol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == ["a", "b", "c"]
    assert json.loads(metadata["preprocessing"])["image_size"] == [32, 16]
    # The learned table is baked in at the new size: no resize is left in the graph.
    import onnx

    assert "Resize" not in {node.op_type for node in onnx.load(target).graph.node}


def test_a_file_that_differs_is_not_kept(folder, tmp_path, capsys, monkeypatch):
    target = tmp_path / "model.pt2"
    target.write_text("what was here before")
    monkeypatch.setattr(export, "read_torch", lambda path: lambda images: torch.zeros(len(images), 3))
    assert export.main([str(folder), "--torch-export", str(target), "--overwrite"]) == 1
    assert "was not kept" in capsys.readouterr().err
    assert target.read_text() == "what was here before"
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["model.pt2"]  # claimed by this process


def test_differences_cannot_hide():
    wanted = {"x": torch.tensor([[1.0, 50.0]])}
    inputs = {"x": torch.zeros(1)}
    assert export.compare(lambda x: wanted["x"], inputs, wanted) == 0
    assert export.compare(lambda x: wanted["x"] + 5, inputs, wanted) == pytest.approx(0.1)
    assert export.compare(lambda x: wanted["x"] * torch.nan, inputs, wanted) == float("inf")
    assert export.compare(lambda x: wanted["x"][0], inputs, wanted) == float("inf")


def test_a_missing_package_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript: pip install 'triune\[onnx\]'"):
        export.main([str(folder), "--onnx", str(tmp_path / "m.onnx")])


def test_mistakes_are_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        export.main([str(folder), "--torch-export", str(tmp_path)])
    with pytest.raises(UserError, match="one number or two"):
        export.main([str(folder), "--torch-export", str(tmp_path / "m.pt2"), "--image-size", "8", "8", "8"])
    with pytest.raises(UserError, match="multiple of the patch"):
        export.main([str(folder), "--torch-export", str(tmp_path / "m.pt2"), "--image-size", "9"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        export.main([str(folder), "--torch-export", str(tmp_path / "file" / "m.pt2")])
    assert not (tmp_path / "m.pt2").exists()
