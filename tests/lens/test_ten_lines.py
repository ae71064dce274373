"""The ten lines of docs/lens.md run as they stand, on a text, an image and a protein model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.core.config import TransformerConfig
from triune.protein.language.model import SequenceConfig, SequenceModel
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.vision.model import VisionTransformer, VisionTransformerConfig

DOCS = Path(__file__).parents[2] / "docs" / "lens.md"
CORE = {"dim": 16, "depth": 2, "heads": 2}


def models() -> dict[str, tuple[Any, torch.Tensor]]:
    torch.manual_seed(0)
    text = LanguageModel(LanguageModelConfig(20, TransformerConfig(causal=True, context=32, **CORE)))
    core = TransformerConfig(position="none", **CORE)
    image = VisionTransformer(
        VisionTransformerConfig(image_size=[8, 8], patch_size=4, channels=1, classes=3, transformer=core)
    )
    chain = SequenceModel(SequenceConfig(TransformerConfig(**CORE)))
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # its head starts at zero
    inputs = (torch.randint(0, 20, (1, 9)), torch.randn(1, 1, 8, 8), torch.randint(4, 24, (1, 9)))
    return {name: (model, x) for name, model, x in zip(("text", "image", "protein"), (text, image, chain), inputs)}


@pytest.mark.parametrize("kind", ["text", "image", "protein"])
def test_the_ten_lines_of_the_docs(kind: str) -> None:
    (block,) = re.findall(r"```python\n(# ten lines.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    model, x = models()[kind]
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("#", "from", "import"))]
    assert len(lines) <= 10
    names: dict[str, Any] = {"model": model, "x": x, "other": x.flip(1) if kind != "image" else -x}
    exec(compile(block, str(DOCS), "exec"), names)
    assert names["seen"]["1.z"].shape[-2:] == (2, 8)
    assert names["scores"]["previous"].shape == (2, 2)
    assert set(names["where"]) == {"0.resid_post", "1.resid_post"}
    assert len(names["lost"].controls) == 2
    total = sum(names["added"].parts.values()) + names["added"].rest
    assert total == pytest.approx(names["added"].score, abs=1e-5)
