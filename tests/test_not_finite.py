"""A checkpoint with a weight that is no number answers nothing with confidence, in any task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from triune.core.errors import UserError
from triune.protein.language.checkpoints import pretrained as protein
from triune.text.checkpoints import pretrained as text
from triune.vision.checkpoints import pretrained as vision

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2
}  # fmt: skip


@pytest.mark.parametrize(
    ("original", "config", "load"),
    [
        ("LlamaForCausalLM", lambda: transformers.LlamaConfig(vocab_size=17, **SIZES), text.load),
        ("ViTForImageClassification", lambda: transformers.ViTConfig(image_size=8, patch_size=4, **SIZES), vision.load),
        (
            "EsmForMaskedLM",
            lambda: transformers.EsmConfig(
                vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=True,
                emb_layer_norm_before=False, **SIZES,
            ),
            protein.load,
        ),
    ],
)  # fmt: skip
def test_one_weight_that_is_no_number(original: str, config: Any, load: Any, tmp_path: Path) -> None:
    getattr(transformers, original)(config()).save_pretrained(tmp_path)
    load(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="hold values that are not finite"):
        load(str(tmp_path))


def test_finite_looks_at_every_kind_of_tensor() -> None:
    from triune.core.checkpoints.native import finite

    assert finite(torch.zeros(0)) and finite(torch.tensor([3])) and finite(torch.tensor(True))
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert finite(torch.ones(5, dtype=kind)) and not finite(torch.tensor([1.0, float("nan")], dtype=kind))
