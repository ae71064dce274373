"""The lens sees in checkpoints of other libraries what plain hooks see there, under the same names in all tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triune.core.lens.decode import depth_lens
from triune.core.lens.edit import lens
from triune.core.lens.scores import head_scores, induction, previous

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
IMAGES = {**SIZES, "image_size": 16, "patch_size": 4}


def theirs(kind: str) -> tuple[Any, Tensor]:
    """A random model of Hugging Face, whose attention can be looked at, and an input."""
    t, ids = transformers, torch.randint(4, 24, (2, 9))
    eager = {"attn_implementation": "eager"}
    if kind == "gpt2":
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32, "vocab_size": 31}
        return t.GPT2LMHeadModel(t.GPT2Config(**sizes, **ends, **eager)), ids
    if kind == "llama":
        more = {"vocab_size": 31, "num_key_value_heads": 2, "max_position_embeddings": 32}
        return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **more, **eager)), ids
    if kind == "esm":
        more = {"vocab_size": 33, "position_embedding_type": "rotary", "mask_token_id": 32, "pad_token_id": 1}
        config = t.EsmConfig(**SIZES, **more, token_dropout=True, emb_layer_norm_before=False, **eager)
        return t.EsmForMaskedLM(config), ids
    if kind == "vit":
        return t.ViTForImageClassification(t.ViTConfig(**IMAGES, **eager)), torch.randn(2, 3, 16, 16)
    sizes = {name: value for name, value in IMAGES.items() if name != "intermediate_size"}
    return t.Dinov2Model(t.Dinov2Config(**sizes, **eager)), torch.randn(2, 3, 16, 16)


def ours(kind: str, model: Any, folder: Path) -> Any:
    from triune.protein.language.checkpoints import pretrained as protein
    from triune.text.checkpoints import pretrained as text
    from triune.vision.checkpoints import pretrained as vision

    model.save_pretrained(folder)
    load = {"esm": protein.load, "gpt2": text.load, "llama": text.load}.get(kind, vision.load)
    return load(str(folder)).model.eval()


INPUTS = {
    "z": r"attn\.c_proj|o_proj|attention\.output\.dense",
    "hidden": r"mlp\.c_proj|down_proj|fc2|\d\.output\.dense",
}
"""What our points are the inputs of, in the names of their modules."""


def hooked(model: Any, x: Tensor) -> tuple[dict[str, Tensor], Any]:
    """Values by point, caught by plain forward hooks, and the output with its attentions."""
    seen: dict[str, Tensor] = {}

    def catch(name: str) -> Any:
        return lambda module, args: seen.update({name: args[0]})

    handles = []
    for name, module in model.named_modules():
        layer = re.search(r"\.(\d+)\.", name)
        for point, pattern in INPUTS.items():
            if layer and re.search(rf"({pattern})$", name) and not isinstance(module, nn.ModuleList):
                handles.append(module.register_forward_pre_hook(catch(f"{layer[1]}.{point}")))
    output = model(x, output_hidden_states=True, output_attentions=True)
    for handle in handles:
        handle.remove()
    return seen, output


@pytest.mark.parametrize("kind", ["gpt2", "llama", "esm", "vit", "dinov2"])
@torch.no_grad()
def test_values_and_scores_are_those_of_the_original(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, x = theirs(kind)
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.2)
    values, output = hooked(original.eval(), x)
    model = ours(kind, original, tmp_path)
    with lens(model, keep=["*.resid_pre", "*.z", "*.hidden"]) as seen:
        model(x)
    assert len(values) == 6
    for name, value in values.items():
        torch.testing.assert_close(seen[name].reshape(value.shape), value, atol=1e-5, rtol=1e-5, msg=name)
    for layer in range(3):
        torch.testing.assert_close(seen[f"{layer}.resid_pre"], output.hidden_states[layer], atol=1e-5, rtol=1e-5)
    # The stripe protocol of TransformerLens: the mean of a diagonal of the patterns, here of the first two keys back.
    tokens = output.attentions[0].shape[-1]
    for back in (1, 4):
        at = torch.arange(tokens)
        keys = torch.where(at >= back, at - back, -1)[None, :, None]
        found = head_scores(model, lambda: model(x), {"stripe": lambda n, device, keys=keys: keys})["stripe"]
        stripe = torch.stack([pattern.diagonal(-back, -2, -1).mean((0, -1)) for pattern in output.attentions])
        torch.testing.assert_close(found, stripe, atol=1e-6, rtol=0)


@torch.no_grad()
def test_values_are_those_of_nnsight(tmp_path: Path) -> None:
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed; plain hooks are compared above")
    torch.manual_seed(0)
    original, x = theirs("llama")
    traced = nnsight.NNsight(original.eval())
    with traced.trace(x):
        z = traced.model.layers[1].self_attn.o_proj.input.save()
        post = traced.model.layers[1].output.save()
    post = post[0] if isinstance(post, tuple) else post
    model = ours("llama", original, tmp_path)
    with lens(model, keep=["1.z", "1.resid_post"]) as seen:
        model(x)
    torch.testing.assert_close(seen["1.z"].reshape(z.shape), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen["1.resid_post"], post, atol=1e-5, rtol=1e-5)


def test_depths_and_heads_of_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, ids = theirs("llama")
    model = ours("llama", original.eval(), tmp_path)
    depths = depth_lens(model, lambda: model(ids), model.logits)
    with torch.no_grad():
        torch.testing.assert_close(depths[-1], model(ids))
    ids = torch.cat([ids, ids], dim=1)
    found = head_scores(model, lambda: model(ids), {"previous": previous, "induction": induction(ids)})
    assert found["induction"].shape == (3, 4) and bool(((found["previous"] > 0) & (found["previous"] < 1)).all())
