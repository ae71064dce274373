"""One edit and one cut have one effect: compiled, with LoRA or packed weights, padded, in packed documents, in a batch.

All are compared with the same model alone, uncompiled, by plain hooks; and after the context with itself before, to the
bit.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triune.core.adapt.lora import LoRAConfig, add_lora, lora_layers, merge_lora
from triune.core.config import TransformerConfig
from triune.core.lens.edit import lens
from triune.core.lens.scores import head_scores, previous
from triune.core.packed import pack
from triune.text.model import LanguageModel, LanguageModelConfig

KEEP = torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None]
IDS = torch.tensor([[5, 3, 9, 3, 1, 7, 2, 3], [8, 8, 1, 0, 4, 6, 6, 2]])


def build() -> LanguageModel:
    torch.manual_seed(0)
    core = TransformerConfig(
        dim=64, depth=2, heads=4, kv_heads=2, causal=True, ffn="swiglu", norm="rmsnorm", qk_norm="head", context=32,
        init_std=0.2,
    )  # fmt: skip
    return LanguageModel(LanguageModelConfig(16, core, embedding_std=1.0)).eval()


def looked(model: nn.Module, run: Any, *args: Any, **call: Any) -> Tensor:
    """Logits without head 1 of layer 1, with half of layer 0's neurons, and without its view of the token before."""
    edit = {"1.z": lambda z: z * KEEP, "0.hidden": lambda x: 0.5 * x}
    with lens(model, edit=edit, cut={0: lambda query, key: query - key == 1}):
        return run(*args, **call)


def hooked(model: LanguageModel, ids: Tensor) -> Tensor:
    """The same with plain hooks; of the attention of layer 0 the equation."""
    first, second = model.transformer.blocks
    attn = first.attn
    mix = attn.mix

    def without(q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        scores = q @ k.mT * attn.scale
        rows = torch.arange(q.shape[2])
        scores = scores.masked_fill((rows[:, None] < rows) | (rows[:, None] - rows == 1), -torch.inf)
        return scores.softmax(-1) @ v

    attn.mix = without  # type: ignore[method-assign]
    handles = [
        second.attn.out.register_forward_pre_hook(lambda m, args: (args[0] * KEEP.expand(4, 16).flatten(), *args[1:])),
        first.ffn.down.register_forward_pre_hook(lambda m, args: (0.5 * args[0], *args[1:])),
    ]
    try:
        return model(ids)
    finally:
        attn.mix = mix  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("how", ["plain", "blocks", "whole", "LoRA", "int8", "int4"])
@torch.no_grad()
def test_the_effect_is_that_of_plain_hooks(how: str) -> None:
    model = build()
    if how == "LoRA":
        add_lora(model, LoRAConfig(rank=2))
        for _, layer in lora_layers(model):
            nn.init.normal_(layer.lora_b, std=0.2)
    if how in ("int8", "int4"):
        pack(model, how)  # type: ignore[arg-type]
    expected, run = hooked(deepcopy(model), IDS), model
    if how == "blocks":
        for block in model.transformer.blocks:
            block.compile(backend="aot_eager")
    if how == "whole":
        run = torch.compile(model, backend="aot_eager")  # type: ignore[assignment]
    before, names = run(IDS), list(model.state_dict())
    found = looked(model, run, IDS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)
    assert torch.equal(run(IDS), before) and list(model.state_dict()) == names
    if how == "LoRA":
        merge_lora(model)
        # The sum of weight and factors is rounded before the product and not behind it.
        torch.testing.assert_close(looked(model, model, IDS), expected, atol=1e-4, rtol=1e-5)
    else:  # scores of heads see the compiled model too
        score = head_scores(model, lambda: run(IDS), {"previous": previous})["previous"]
        torch.testing.assert_close(score, head_scores(model, lambda: model(IDS), {"previous": previous})["previous"])


@torch.no_grad()
def test_the_effect_is_that_of_each_text_alone() -> None:
    model = build()
    alone = [looked(model, model, ids[None])[0] for ids in (IDS[0], IDS[1, :5])]
    together = looked(model, model, IDS)
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1, :5], alone[1], atol=1e-5, rtol=1e-5)
    padded = torch.stack([IDS[0], torch.cat([torch.zeros(3, dtype=torch.long), IDS[1, :5]])])
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[1, :3] = False
    left = looked(model, model, padded, valid=valid)
    torch.testing.assert_close(left[0], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left[1, 3:], alone[1], atol=1e-5, rtol=1e-5)
    documents = torch.tensor([[0] * 8 + [1] * 5])
    packed = looked(model, model, torch.cat([IDS[:1], IDS[1:, :5]], dim=1), documents=documents)
    torch.testing.assert_close(packed[0, :8], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[0, 8:], alone[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_off_the_traced_graph_has_no_more_than_that_of_the_model() -> None:
    """No break, one graph, and the same operations before a look and after it."""
    model = build()

    def operations() -> list[str]:
        torch._dynamo.reset()
        told = torch._dynamo.explain(model)(IDS)
        assert told.graph_break_count == 0 and told.graph_count == 1
        return [str(node.target) for node in told.graphs[0].graph.nodes]

    before = operations()
    looked(model, model, IDS)
    assert operations() == before
