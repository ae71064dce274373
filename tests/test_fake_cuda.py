"""A GPU rehearsed without one: models on fake CUDA tensors, which have a device and a shape but no numbers.

PyTorch refuses an operation whose tensors lie on different devices, a type that an operation does not have, and every
question for a value (`.item()`, a mask as an index), at which a GPU would have to be waited for. Backward passes run on
the `meta` device, since the autograd engine asks for a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from triune.core.config import TransformerConfig
from triune.core.expert_options import ExpertsConfig
from triune.core.mixers.cache import KeyValueCache
from triune.core.mixers.kernels import force_kernel
from triune.core.mixers.options import KINDS
from triune.core.rotary import RotaryConfig
from triune.core.sparse import SparseConfig
from triune.protein.language.model import SequenceConfig, SequenceModel
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel
from triune.text.decode import Decoder
from triune.text.encoder import TextEncoder, TextEncoderConfig
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.vision.model import VisionTransformer, VisionTransformerConfig

VOCAB, BATCH, TOKENS = 64, 2, 24


def core(**more: Any) -> TransformerConfig:
    return TransformerConfig(**{"dim": 32, "depth": 2, "heads": 2, "context": 64} | more)


def language(**more: Any) -> LanguageModel:
    return LanguageModel(LanguageModelConfig(VOCAB, core(causal=True, **more)))


def tokens(device: str) -> Tensor:
    return torch.zeros(BATCH, TOKENS, dtype=torch.long, device=device)


def loss_of(model: nn.Module, device: str) -> Tensor:
    assert isinstance(model, LanguageModel)
    total, count = model.loss(tokens(device), tokens(device))
    return total / count


def packed(model: nn.Module, device: str) -> Tensor:
    assert isinstance(model, LanguageModel)
    total, count = model.loss(tokens(device), tokens(device), documents=tokens(device))
    return total / count


def padded(model: nn.Module, device: str) -> Tensor:
    valid = torch.ones(BATCH, TOKENS, dtype=torch.bool, device=device)
    return model(tokens(device), valid=valid).float().mean()


def chain(model: nn.Module, device: str) -> Tensor:
    return model(torch.full((BATCH, TOKENS), 5, dtype=torch.long, device=device)).float().mean()


def pairs(model: nn.Module, device: str) -> Tensor:
    assert isinstance(model, PairModel)
    letters = torch.zeros(BATCH, TOKENS, dtype=torch.long, device=device)
    msa = torch.zeros(BATCH, 3, TOKENS, dtype=torch.long, device=device)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool, device=device)
    profile = torch.zeros(BATCH, TOKENS, 20, device=device, dtype=torch.float32)
    found = model(letters, profile, msa, mask=mask, recycles=1)
    return found.contacts.float().mean() + found.distogram.float().mean()


def images(model: nn.Module, device: str) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(torch.zeros(BATCH, 3, 16, 16, device=device, dtype=dtype)).float().mean()


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module, str], Tensor]]
MIXERS = [name for name in KINDS if name != "attention"]
MODELS: dict[str, Case] = {
    "language": (language, loss_of),
    "language, grouped, norms": (lambda: language(kv_heads=1, qk_norm="head", norm="rmsnorm", ffn="swiglu"), loss_of),
    "language, learned positions": (lambda: language(position="learned"), loss_of),
    "language, documents": (language, packed),
    "language, window, documents": (lambda: language(window=4), packed),
    "language, window and none": (lambda: language(window=[4, None]), loss_of),
    "language, soft caps": (lambda: language(attention_softcap=9.0), loss_of),
    "language, padding": (language, padded),
    "language, yarn": (
        lambda: language(rotary=RotaryConfig(scaling="yarn", factor=2.0, original_context=32)), loss_of,
    ),
    "language, blocks": (lambda: language(sparse=SparseConfig(block=4, first=1)), loss_of),
    "language, convolutions": (lambda: language(short_convolution=3), packed),
    "language, experts": (lambda: language(experts=ExpertsConfig(count=4, active=2)), loss_of),
    "encoder": (lambda: TextEncoder(TextEncoderConfig(VOCAB, core())), padded),
    "images": (
        lambda: VisionTransformer(
            VisionTransformerConfig(image_size=16, patch_size=4, classes=3, transformer=core(position="none"))
        ),
        images,
    ),
    "images, two axes": (
        lambda: VisionTransformer(
            VisionTransformerConfig(
                image_size=16, patch_size=4, classes=3, transformer=core(rotary=RotaryConfig(axes=2))
            )
        ),
        images,
    ),
    "proteins": (lambda: SequenceModel(SequenceConfig(core())), chain),
    "pairs": (
        lambda: PairModel(
            PairConfig(dim=16, depth=2, sequence_dim=16, msa_depth=1, msa_dim=16, msa_heads=2, head_dim=8, recycles=1)
        ),
        pairs,
    ),
    **{
        f"language, {name}": (lambda name=name: language(mixer=name, position="none"), packed)
        for name in MIXERS
        if name != "titans"
    },
}  # fmt: skip


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are made in this type; they cannot be moved to it, as they are fake."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", MODELS)
def test_forward(name):
    make, run = MODELS[name]
    dtype = torch.float32 if name == "pairs" else torch.bfloat16  # which is trained in mixed precision only
    with FakeTensorMode(), torch.device("cuda"), force_kernel("masked"), default(dtype):
        model = make()
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        with torch.no_grad():
            assert run(model, "cuda").device.type == "cuda"


# Those left out switch autocast off, which `meta` does not have.
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("pairs", "language, experts")])
def test_backward(name):
    make, run = MODELS[name]
    with torch.device("meta"), force_kernel("masked"):
        model = make()
        run(model, "meta").backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize("fixed", [False, True], ids=["cache", "decoder"])
def test_generation(fixed):
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        model = language(kv_heads=1).eval()
        cache = KeyValueCache(model.transformer.config, 32)
        valid = torch.ones(BATCH, TOKENS, dtype=torch.bool)
        model.hidden(tokens("cuda"), valid=None if fixed else valid, cache=cache)
        if fixed:
            decoder = Decoder(model)
            decoder.begin(cache, 8)
            assert decoder.step(tokens("cuda")[:, :3]).shape == (BATCH, 3, VOCAB)
        else:
            assert model(tokens("cuda")[:, :1], cache=cache).device.type == "cuda"


ASKS: dict[str, Case] = {
    "titans, documents": (lambda: language(mixer="titans", position="none"), packed),
}
"""What asks the host in each layer, because its sizes depend on the data: a GPU waits there."""


@pytest.mark.parametrize("name", ASKS)
def test_what_is_known_to_wait(name):
    make, run = ASKS[name]
    with FakeTensorMode(), torch.device("cuda"), force_kernel("masked"), torch.no_grad():
        model = make()
        with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
            run(model, "cuda")


def test_what_the_rehearsal_finds():
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.zeros(4)
        with pytest.raises(Exception, match="device"):
            _ = x + torch.zeros(4, device="cpu")
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            _ = x[x > 0]
