"""The lens sees in checkpoints of other libraries what these libraries report, under the same names in all tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from triune.core.lens.decode import depth_lens
from triune.core.lens.edit import lens
from triune.core.lens.scores import head_scores, induction, previous

transformers = pytest.importorskip("transformers")


def llama(folder: Path) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
    from triune.text.checkpoints.pretrained import load

    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    ids = torch.randint(0, 31, (2, 9))
    return load(str(folder)).model, theirs(ids, output_hidden_states=True).hidden_states, ids


def esm(folder: Path) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
    from triune.protein.language.checkpoints.pretrained import load

    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        position_embedding_type="rotary", mask_token_id=32, pad_token_id=1, token_dropout=True,
        emb_layer_norm_before=False,
    )  # fmt: skip
    theirs = transformers.EsmForMaskedLM(config).eval()
    theirs.save_pretrained(folder)
    ids = torch.randint(4, 24, (2, 9))
    return load(str(folder)).model, theirs(ids, output_hidden_states=True).hidden_states, ids


def vit(folder: Path) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
    from triune.vision.checkpoints.pretrained import load

    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(folder)
    images = torch.randn(2, 3, 16, 16)
    return load(str(folder)).model, theirs(images, output_hidden_states=True).hidden_states, images


@pytest.mark.parametrize("make", [llama, esm, vit])
def test_the_residual_stream_is_that_of_the_original(make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        model, theirs, inputs = make(tmp_path)
        with lens(model.eval(), keep=["*.resid_pre", "2.z"]) as seen:
            model(inputs)
    assert seen["2.z"].shape[-2:] == (4, 8)
    for layer in range(3):
        torch.testing.assert_close(seen[f"{layer}.resid_pre"], theirs[layer], atol=1e-5, rtol=1e-4)


def test_depths_and_heads_of_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _, ids = llama(tmp_path)
    depths = depth_lens(model.eval(), lambda: model(ids), model.logits)
    with torch.no_grad():
        torch.testing.assert_close(depths[-1], model(ids))
    ids = torch.cat([ids, ids], dim=1)
    found = head_scores(model, lambda: model(ids), {"previous": previous, "induction": induction(ids)})
    assert found["induction"].shape == (3, 4) and bool(((found["previous"] > 0) & (found["previous"] < 1)).all())
