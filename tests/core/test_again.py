"""Blocks that are computed again in the backward pass: the same losses and gradients, and less that is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triune import cli
from triune.core.again import computed_once, keep_inputs_only
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.expert_options import ExpertsConfig
from triune.core.experts import balance_loss, routers
from triune.core.rotary import RotaryConfig
from triune.core.training.run.flops import count_step
from triune.core.transformer import Transformer

CORE = TransformerConfig(dim=32, depth=3, heads=2, causal=True)
CONFIGS = {
    "attention with dropout": replace(CORE, dropout=0.2, stochastic_depth=0.2),
    "learned rotation": replace(CORE, rotary=RotaryConfig(learned=True, axes=2), causal=False),
    "windows": replace(CORE, window=[None, 4, None]),
    "experts": replace(CORE, experts=ExpertsConfig(count=4, active=2, loss_weight=0.1), dropout=0.1),
    "recurrent": replace(CORE, mixer=["mamba2", "gated_delta", "attention"]),
}


def gradients(model: nn.Module, run: Callable[[], Tensor], on: bool) -> tuple[Tensor, list[Tensor], int]:
    """The loss, all gradients, and the bytes that are kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    keep_inputs_only(model, on)
    model.zero_grad(set_to_none=True)
    for router in routers(model):
        router.load.zero_()
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
        extra = balance_loss(model)
        loss = loss if extra is None else loss + extra
    held = sum(kept.values())
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], held


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_blocks_that_keep_everything(name: str) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIGS[name]).train()
    x, weight = torch.randn(2, 24, 32, requires_grad=True), torch.randn(2, 24, 32)
    valid = torch.arange(24) < torch.tensor([[24], [17]])
    documents = torch.arange(24)[None].expand(2, -1) // 9 if name == "attention with dropout" else None
    places = torch.stack([torch.arange(24) // 6, torch.arange(24) % 6], -1) if name == "learned rotation" else None

    def run() -> Tensor:
        x.grad = None
        return (model(x, valid=valid, documents=documents, positions=places) * weight).sum()

    loss, plain, held = gradients(model, run, False)
    before, load = x.grad, [router.load.clone() for router in routers(model)]
    again, found, less = gradients(model, run, True)
    assert torch.equal(loss, again) and before is not None and x.grad is not None
    assert len(plain) == len(found) > 0
    assert torch.equal(before, x.grad)
    assert all(torch.equal(a, b) for a, b in zip(plain, found))
    assert all(torch.equal(a, router.load) for a, router in zip(load, routers(model))), "no token is counted twice"
    if name != "recurrent":
        assert less < held / 2


def models() -> dict[str, tuple[nn.Module, Callable[[Any], Tensor]]]:
    """A model of each task, and a loss of it."""
    from triune.protein.language.model import SequenceConfig, SequenceModel
    from triune.text.model import LanguageModel, LanguageModelConfig
    from triune.vision.model import VisionTransformer, VisionTransformerConfig

    small, both = replace(CORE, depth=2), replace(CORE, depth=2, causal=False)
    beit = VisionTransformerConfig(8, 2, classes=3, transformer=replace(both, position="none"), relative_bias="layers")
    return {
        "text": (LanguageModel(LanguageModelConfig(40, small)), lambda m: m(torch.arange(20)[None]).square().sum()),
        "images": (VisionTransformer(beit), lambda m: m(torch.ones(2, 3, 8, 8)).square().sum()),
        "proteins": (SequenceModel(SequenceConfig(both)), lambda m: m(torch.arange(4, 20)[None]).square().sum()),
    }


@pytest.mark.parametrize("name", ["text", "images", "proteins"])
def test_every_task_has_it(name: str) -> None:
    torch.manual_seed(0)
    model, call = models()[name]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    (loss, plain, held), (again, found, less) = (gradients(model, lambda: call(model), on) for on in (False, True))
    assert torch.equal(loss, again) and less < held
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_the_pair_stack_has_it() -> None:
    from triune.protein.pair.config import PairConfig
    from triune.protein.pair.model import PairModel

    torch.manual_seed(0)
    model = PairModel(replace(PairConfig.preset("tiny"), checkpoint="none"))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    tokens, profile = torch.randint(20, (1, 12)), torch.rand(1, 12, 20)

    def run() -> Tensor:
        return model(tokens, profile, None, torch.arange(12)[None]).distogram.square().mean()

    (loss, plain, held), (again, found, less) = (gradients(model, run, on) for on in (False, True))
    assert loss.item() == pytest.approx(again.item(), rel=1e-5) and less < held
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max())) for a, b in zip(plain, found, strict=True)
    )


class Step(nn.Module):
    """A module whose `loss` is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Transformer(CORE)

    def loss(self, batch: Tensor) -> Tensor:
        return self.model(batch).sum()


def test_work_is_counted_once() -> None:
    step, batch = Step(), torch.randn(2, 16, 32)
    expected = count_step(step, batch)
    keep_inputs_only(step, True)
    assert count_step(step, batch) == expected > 0
    assert step.model.checkpointing
    with computed_once(step):
        assert not step.model.checkpointing


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no stack of blocks"):
        keep_inputs_only(nn.Linear(2, 2), True)
    keep_inputs_only(nn.Linear(2, 2), False)


def test_the_option_changes_no_weight(tmp_path: Path) -> None:
    """Two steps of `triune text fit` with and without it."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 60)
    line = ["--data.files", str(tmp_path / "a.txt"), "--data.tokenizer", "bytes", "--data.context", "16"]
    line += ["--data.cache", str(tmp_path / "cache"), "--trainer.max_steps", "2", "--threads", "1"]
    small = ["--model.transformer.dim", "16", "--model.transformer.depth", "2", "--model.transformer.heads", "2"]
    for name, more in (("a", []), ("b", ["--model.checkpointing", "true"])):
        assert cli.main(["text", "fit", "--run", str(tmp_path / name), *line, *small, *more]) == 0
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("a", "b")
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())
