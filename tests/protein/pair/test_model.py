"""The pair model as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triune.core.errors import UserError
from triune.core.lens.record import record_attention
from triune.protein.pair import model as model_module
from triune.protein.pair.config import CHECKPOINTS, PRESETS, PairConfig
from triune.protein.pair.covariance import (
    average_product_correction,
    column_statistics,
    sequence_weights,
    standardise,
)
from triune.protein.pair.memory import CHUNKS, choose_chunk, estimate
from triune.protein.pair.model import PairModel, distance_classes
from triune.protein.pair.task import pair_loss
from triune.protein.read.alphabet import GAP, PAD


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def model(preset: str = "tiny", **changes) -> PairModel:
    """A model whose updates are not zero."""
    built = PairModel(PairConfig.preset(preset, **changes)).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def example(batch: int = 2, residues: int = 11, rows: int = 4) -> dict[str, torch.Tensor]:
    tokens = torch.randint(20, (batch, residues))
    msa = torch.randint(GAP + 1, (batch, rows, residues))
    msa[:, 0] = tokens
    profile = torch.rand(batch, residues, 20).softmax(-1)
    return {"tokens": tokens, "profile": profile, "msa": msa}


def pad(batch: dict[str, torch.Tensor], residues: int, rows: int) -> dict[str, torch.Tensor]:
    """Wider tensors around the same chains, with PAD tokens and other numbers in the padding."""
    count, length = batch["tokens"].shape
    tokens = torch.full((count, length + residues), PAD)
    msa = torch.full((count, batch["msa"].shape[1] + rows, length + residues), PAD)
    profile = torch.rand(count, length + residues, 20)
    tokens[:, :length], profile[:, :length] = batch["tokens"], batch["profile"]
    msa[:, : batch["msa"].shape[1], :length] = batch["msa"]
    return {"tokens": tokens, "profile": profile, "msa": msa, "mask": tokens != PAD}


@pytest.mark.parametrize("preset", PRESETS)
def test_outputs_are_symmetric_and_start_at_the_prior(preset: str) -> None:
    built = PairModel(PairConfig.preset(preset, depth=1, msa_depth=min(1, PairConfig.preset(preset).msa_depth))).eval()
    with torch.no_grad():
        output = built(**example(1, 9))
    assert output.contacts.shape == (1, 9, 9)
    assert output.distogram.shape == (1, 9, 9, 64)
    assert torch.allclose(output.contacts, torch.full((1, 9, 9), -3.5))
    with torch.no_grad():
        output = model(preset, depth=1, msa_depth=min(1, PairConfig.preset(preset).msa_depth))(**example(1, 9))
    assert torch.equal(output.contacts, output.contacts.mT)
    assert torch.equal(output.distogram, output.distogram.transpose(1, 2))
    assert output.contacts.std() > 0


@pytest.mark.parametrize("preset", ["tiny", "fast"])
def test_float64_throughout(preset: str) -> None:
    """A loss is the sum of those of its examples, and the same of a model whose weights are moved by next to nothing,
    to the digits of float64."""
    built, batch = model(preset).double(), example(4)
    distance = torch.rand(4, 11, 11).mul(20)
    resolved, index = torch.ones(4, 11, dtype=torch.bool), torch.arange(11).expand(4, 11)

    def loss(rows: slice) -> torch.Tensor:
        found = pair_loss(built(**{k: v[rows] for k, v in batch.items()}), distance[rows], resolved[rows], index[rows])
        return torch.stack((found.total, found.count))

    whole = loss(slice(0, 4))
    assert whole.dtype == torch.float64
    parts = loss(slice(0, 2)) + loss(slice(2, 4))
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=0)
    with torch.no_grad():
        built.head.logits.bias += 1e-10
        moved = loss(slice(0, 4))
        built.head.logits.bias -= 1e-10
        assert 1e-14 < (moved - whole)[0].abs() / whole[0] < 1e-7


@pytest.mark.parametrize("preset", ["tiny", "fast"])
def test_padded_equals_unpadded(preset: str) -> None:
    built, batch = model(preset).double(), example()
    with torch.no_grad():
        plain, padded = built(**batch), built(**pad(batch, 5, 2))
    length = batch["tokens"].shape[1]
    assert (padded.contacts[:, :length, :length] - plain.contacts).abs().max() < 1e-9
    assert (padded.distogram[:, :length, :length] - plain.distogram).abs().max() < 1e-9
    assert torch.isfinite(padded.contacts).all()


@pytest.mark.parametrize("preset", ["tiny", "fast"])
@pytest.mark.parametrize("chunk", [3, 4, 100])
def test_chunked_equals_unchunked(preset: str, chunk: int) -> None:
    built, batch = model(preset).double(), pad(example(), 2, 1)
    with torch.no_grad():
        whole, parts = built(**batch), built(**batch, chunk=chunk)
    assert (whole.contacts - parts.contacts).abs().max() < 1e-9
    assert (whole.distogram - parts.distogram).abs().max() < 1e-9


def test_checkpointing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in training mode: dropout masks are the same when a block is computed again."""
    monkeypatch.setattr(model_module, "_CPU_CHUNK", 3 * 2 * 11 * 12)  # three rows
    batch, grads, stored = example(), [], []
    for checkpoint in CHECKPOINTS:
        torch.manual_seed(1)
        built = model("tiny", checkpoint=checkpoint).double().train()
        torch.manual_seed(2)
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=numbers: n.append(t.numel()) or t, lambda t: t):
            output = built(**batch, recycles=0)
        output.contacts.square().sum().backward()
        grads.append([p.grad for p in built.parameters() if p.grad is not None])
        stored.append(sum(numbers))
    assert stored[0] > stored[1] > stored[2]
    assert len(grads[0]) > 0
    for other in grads[1:]:
        assert all(torch.allclose(a, b, rtol=1e-8) for a, b in zip(grads[0], other, strict=True))


def test_gradient_flows_through_the_last_pass_only() -> None:
    built, batch = model("tiny"), example(1)
    grads = []
    for recycles in (0, 1):
        built.zero_grad()
        built(**batch, recycles=recycles).contacts.sum().backward()
        assert built.recycling is not None
        grads.append(built.recycling.distogram.weight.grad)
    assert grads[0] is None  # not used in the first pass
    assert grads[1] is not None
    assert grads[1].abs().sum() > 0
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(1) or t, lambda t: t):
        built(**batch, recycles=0)
        one = len(saved)
        built(**batch, recycles=3)
    assert len(saved) - one < 1.2 * one  # three more passes store nothing but the recycling's own inputs


def test_number_of_passes_is_drawn_in_training() -> None:
    built = model("tiny", recycles=2).train()
    passes: list[int] = []
    built.head.register_forward_hook(lambda *_: passes.append(1))
    counts = set()
    for _ in range(20):
        passes.clear()
        built(**example(1, 5))
        counts.add(len(passes))
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("preset", ["tiny", "fast"])
def test_bfloat16_is_close(preset: str) -> None:
    built, batch = model(preset).train(False), example()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    expected = built(**batch).contacts
    with torch.autocast("cpu", torch.bfloat16):
        output = built(**batch)
        output.contacts.sum().backward()
    assert output.contacts.dtype == torch.float32
    assert (output.contacts - expected).norm() < 0.05 * expected.norm()
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_learns(autocast: bool) -> None:
    """Also after a pass without gradients under autocast, whose cache of cast weights must not be used again."""
    built = model("tiny")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = built(**example(), recycles=1)
    (output.contacts.sum() + output.distogram.square().sum()).backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_distance_classes_have_the_published_breaks() -> None:
    distance = torch.tensor([0.0, 2.3, 2.32, 7.93, 7.94, 21.68, 21.7, 500.0])
    assert distance_classes(distance).tolist() == [0, 0, 1, 18, 19, 62, 63, 63]


def test_sequence_weights_count_relatives() -> None:
    msa = torch.tensor([[[0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [9, 9, 9, 9, 9], [PAD] * 5]])
    assert sequence_weights(msa).tolist() == [[0.5, 0.5, 1.0, 0.0]]
    weights, columns = column_statistics(msa)
    assert torch.allclose(weights, torch.tensor([[0.25, 0.25, 0.5, 0.0]]))
    assert torch.allclose(columns[0, 0, [0, 9]], torch.tensor([0.5, 0.5]))
    assert torch.allclose(columns[..., -1], torch.tensor(2.0).log() / 5)


def test_average_product_correction_removes_products() -> None:
    """A map f_i f_j is all background; its diagonal is not part of the means, so only a remainder of order 1/L
    stays.
    """
    f = torch.rand(1, 200) + 0.5
    product = (f[:, :, None] * f[:, None, :])[..., None]
    corrected = average_product_correction(product)
    assert corrected.abs().max() < 0.03 * product.max()
    scaled = standardise(torch.randn(1, 30, 30, 2) * 7 + 3)
    off = ~torch.eye(30, dtype=torch.bool)
    assert abs(scaled[0, off].mean()) < 1e-5
    assert abs(scaled[0, off].std() - 1) < 1e-2


def test_save_and_load(tmp_path: Path) -> None:
    built, batch = model("tiny"), example()
    built.save_pretrained(tmp_path)
    loaded = PairModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).contacts, built(**batch).contacts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"dim": 0}, "dim is 0"), ({"checkpoint": "all"}, "one of none, update, block"),
     ({"dropout_pair": 1.5}, "in [0, 1)"), ({"msa_depth": 9, "depth": 2}, "at most depth"),
     ({"dpeth": 3}, "did you mean 'depth'")],
)  # fmt: skip
def test_wrong_settings_are_named(changes: dict, words: str) -> None:
    with pytest.raises(UserError) as error:
        PairConfig.preset("fast", **changes)
    assert words in str(error.value)
    with pytest.raises(UserError, match="did you mean 'fast'"):
        PairConfig.preset("fsat")


def peak_bytes(run) -> int:
    """Largest number of bytes alive above the start, from the allocations PyTorch's profiler sees."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    live = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("preset", ["fast", "evoformer"])
@pytest.mark.parametrize("chunk", [None, 8])
def test_memory_estimate(preset: str, chunk: int | None) -> None:
    built = PairModel(PairConfig.preset(preset, depth=1, recycles=0)).eval()
    batch = example(1, 96, 8)
    with torch.no_grad():
        built(**batch, chunk=chunk)
        used = peak_bytes(lambda: built(**batch, chunk=chunk))
    guess = estimate(built.config, 96, 8, chunk)
    assert 0.8 * used < guess < 1.7 * used, f"used {used / 1e6:.1f} MB, estimated {guess / 1e6:.1f} MB"


def test_chunk_is_chosen_by_memory() -> None:
    config = PairConfig.preset("evoformer")
    whole = estimate(config, 1000)
    assert choose_chunk(config, 1000, whole) is None
    chunk = choose_chunk(config, 1000, whole // 2)
    assert chunk in CHUNKS
    assert estimate(config, 1000, 1, chunk) <= whole // 2
    with pytest.raises(UserError, match="cut the chain to at most"):
        choose_chunk(config, 10_000, 8 << 30)


@pytest.mark.parametrize("gradients", [False, True])
def test_attention_weights_are_recorded(gradients: bool) -> None:
    """They and the values make what the gate is multiplied with, in all three kinds of attention."""
    built, batch = model(depth=2, msa_depth=1, recycles=0), example(1, 7, 3)
    batch = pad(batch, 2, 0)
    made, gate = {}, {}
    with torch.set_grad_enabled(gradients):
        expected = built(**batch).distogram
    with torch.set_grad_enabled(gradients), record_attention(built, lambda name, weights: weights) as seen:
        for name, module in built.named_modules():
            if name.endswith(".attention"):

                def mixed(*args, module=module, name=name, inner=module.mix):
                    x, norm = args[0], args[2] if len(args) > 2 else None
                    qkv = torch.nn.functional.linear(x, *module._projection(norm)).unflatten(
                        -1, (3, -1, module.head_dim)
                    )
                    made[name], gate[name] = qkv[..., 2, :, :], inner(*args)
                    return gate[name]

                vars(module)["mix"] = mixed
        assert torch.equal(built(**batch).distogram, expected)
    assert len(gate) == 6
    assert seen.keys() == gate.keys() | {"input.encoder.blocks.0.attn"}
    for name, value in gate.items():
        found = torch.einsum("brhqk,brkhd->brqhd", seen[name], made[name])
        assert torch.allclose(found, value, atol=1e-4), name
        assert seen[name].sum(-1).sub(1).abs().max() < 1e-5
