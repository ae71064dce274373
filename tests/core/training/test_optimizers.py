import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import _muon

from triune.core.errors import UserError
from triune.core.training import optimizers
from triune.core.training.groups import build_optimizer, describe_groups, parameter_groups
from triune.core.training.optimizers import MuonAdamW, OptimizerConfig
from triune.core.training.orthogonal import newton_schulz, newton_schulz_reference, orthogonalise


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim, bias=False)
        self.filter = nn.Conv1d(dim, dim, 3)
        self.bias_table = nn.Embedding(5, 2)


class Toy(nn.Module):
    """The shape of our models: what comes in, blocks, what goes out."""

    def __init__(self, dim: int = 8, depth: int = 2, tied: bool = False) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.embedding = nn.Embedding(16, dim)
        self.patches = nn.Conv2d(3, dim, 2)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 16, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def names(model: nn.Module, groups: list[dict]) -> dict[str, set[str]]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: {by_id[id(p)] for p in group["params"]} for group in groups}


def random_grads(params, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype)


def test_roles() -> None:
    model = Toy(depth=1)
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.3, head_lr=0.004, embedding_lr=0.005))
    found = names(model, groups)
    assert found["matrices"] == {"blocks.0.attention.weight", "blocks.0.up.weight", "blocks.0.down.weight"}
    assert found["matrices (adamw)"] == {"blocks.0.filter.weight"}
    assert found["embeddings"] == {"cls", "embedding.weight", "blocks.0.bias_table.weight"}
    assert found["inputs"] == {"patches.weight"}
    assert found["heads"] == {"head.weight"}
    assert {"norm.weight", "patches.bias", "blocks.0.up.bias", "blocks.0.norm.weight"} < found["vectors"]
    rows = {row.group: row for row in describe_groups(groups)}
    assert {name for name, row in rows.items() if row.algorithm == "muon"} == {"matrices"}
    assert {name for name, row in rows.items() if row.weight_decay == 0} == {"embeddings", "vectors"}
    assert (rows["matrices"].lr, rows["heads"].lr, rows["embeddings"].lr, rows["inputs"].lr) == (
        0.01,
        0.004,
        0.005,
        0.01,
    )
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["matrices"].tensors == 3


def test_adamw_has_no_muon_group_and_one_learning_rate() -> None:
    rows = describe_groups(parameter_groups(Toy(), OptimizerConfig(name="adamw", lr=3e-4)))
    assert {row.algorithm for row in rows} == {"adamw"}
    assert {row.lr for row in rows} == {3e-4}


def test_tied_head_counts_once_as_embedding_and_frozen_parameters_not_at_all() -> None:
    model = Toy(tied=True)
    model.patches.requires_grad_(False)
    found = names(model, parameter_groups(model, OptimizerConfig()))
    assert "heads" not in found
    assert "inputs" not in found
    assert sum(len(group) for group in found.values()) == len([p for p in model.parameters() if p.requires_grad])


def test_every_parameter_is_in_exactly_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from triune.core.training import groups

    places = groups.places
    monkeypatch.setattr(groups, "places", lambda *a: {k: v for k, v in places(*a).items() if k != "head.weight"})
    with pytest.raises(AssertionError, match=r"head\.weight is in 0"):
        parameter_groups(Toy(), OptimizerConfig())
    monkeypatch.undo()
    twice = parameter_groups(model := Toy(), OptimizerConfig())
    twice[0]["params"].append(model.head.weight)
    with pytest.raises(AssertionError, match=r"head\.weight is in 2"):
        groups._assert_partition(model, twice)


def test_layer_decay() -> None:
    model = Toy(depth=3)
    groups = parameter_groups(model, OptimizerConfig(name="adamw", lr=1.0, layer_decay=0.5))
    lr = {name: group["lr"] for group in groups for name in names(model, [group])[group["name"]]}
    assert lr["head.weight"] == lr["norm.weight"] == 1
    assert [lr[f"blocks.{i}.up.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert lr["embedding.weight"] == lr["patches.weight"] == lr["cls"] == 0.0625


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (8, 16), (8, 64)])
def test_batched_newton_schulz_equals_reference(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    batch = torch.randn(5, *shape)
    batch[0] *= 1e-4
    batch[1] = torch.randn(shape[0], 1) @ torch.randn(1, shape[1])  # rank one: the squared condition number is worst
    expected = torch.stack([newton_schulz_reference(x) for x in batch])
    torch.testing.assert_close(newton_schulz(batch), expected, atol=1e-4, rtol=1e-4)
    values = torch.linalg.svdvals(newton_schulz(batch[2:]))
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_mixed_shapes_are_orthogonalised_like_one_by_one() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(s) for s in [(8, 8), (8, 32), (32, 8), (8, 8), (4, 6)]]
    for result, matrix in zip(orthogonalise(matrices), matrices):
        assert result.shape == matrix.shape
        torch.testing.assert_close(result, newton_schulz_reference(matrix), atol=1e-5, rtol=1e-4)


def test_sharded_matrices_are_orthogonalised_whole(tmp_path) -> None:
    """The path of FSDP2, on the only rank of a process group: DTensors go in and come out."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        matrices = [torch.randn(8, 8), torch.randn(32, 8)]
        sharded = [distribute_tensor(matrix, mesh, [Shard(0)]) for matrix in matrices]
        for result, matrix in zip(orthogonalise(sharded), matrices):
            assert result.placements == (Shard(0),)
            torch.testing.assert_close(result.full_tensor(), newton_schulz_reference(matrix), atol=1e-5, rtol=1e-4)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("scale", "nesterov"), [("match_rms_adamw", True), ("original", False)])
def test_equals_torch_muon(monkeypatch: pytest.MonkeyPatch, scale: str, nesterov: bool) -> None:
    # torch iterates in bfloat16; its other arithmetic is compared exactly by giving it our float32 iteration.
    monkeypatch.setattr(
        _muon, "_zeropower_via_newtonschulz", lambda g, c, steps, eps: newton_schulz_reference(g, steps)
    )
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(s)) for s in [(8, 8), (8, 32), (32, 8)]]
    theirs = copy.deepcopy(ours)
    group = {"params": ours, "algorithm": "muon", "lr": 0.02, "weight_decay": 0.1, "scale": scale, "nesterov": nesterov}
    a = MuonAdamW([group])
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn=scale, nesterov=nesterov)
    for step in range(10):
        random_grads(ours, step)
        random_grads(theirs, step)
        a.step()
        b.step()
        for x, y in zip(ours, theirs):
            torch.testing.assert_close(x, y, atol=2e-6, rtol=1e-5)


def test_our_iteration_is_torchs_but_for_bfloat16() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(16, 32)
    theirs = _muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(newton_schulz_reference(matrix), theirs.float(), atol=0.03, rtol=0.05)


def test_equals_torch_adamw() -> None:
    torch.manual_seed(0)
    ours = Toy()
    theirs = copy.deepcopy(ours)
    a = build_optimizer(ours, OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, embedding_decay=0.1))
    for group in a.param_groups:
        group["weight_decay"] = 0.1
    b = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(10):
        random_grads(ours.parameters(), step)
        random_grads(theirs.parameters(), step)
        a.step()
        b.step()
        for x, y in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(dtype: torch.dtype, tmp_path) -> None:
    torch.manual_seed(0)
    model = Toy().to(dtype)
    optimizer = build_optimizer(model, OptimizerConfig())
    for step in range(3):
        random_grads(model.parameters(), step)
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    other = Toy().to(dtype)
    other_optimizer = build_optimizer(other, OptimizerConfig())
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        for m, o in ((model, optimizer), (other, other_optimizer)):
            random_grads(m.parameters(), step)
            o.step()
    for x, y in zip(model.parameters(), other.parameters()):
        assert torch.equal(x, y)


def test_parameters_without_gradient_stay() -> None:
    model = Toy()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, OptimizerConfig())
    model.head.weight.grad = torch.ones_like(model.head.weight)
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight"}


def test_closure() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)])})
    optimizer = build_optimizer(model, OptimizerConfig())

    def closure() -> torch.Tensor:
        loss = model["blocks"][0](torch.ones(4)).sum()
        loss.backward()
        return loss

    before = model["blocks"][0].weight.detach().clone()
    loss = optimizer.step(closure)
    assert math.isfinite(float(loss.detach()))
    assert not torch.equal(model["blocks"][0].weight, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "sgd"),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("adamw_lr", -1.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("momentum", 1.0),
        ("ns_steps", 0),
        ("scale", "spectral"),
        ("layer_decay", 0.0),
    ],
)
def test_bad_values_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.{field} is .* but must be"):
        OptimizerConfig(**{field: value})


def test_default_learning_rate_depends_on_the_optimizer() -> None:
    assert OptimizerConfig().main_lr == 0.01
    assert OptimizerConfig(name="adamw").main_lr == 1e-3


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        build_optimizer(Toy().requires_grad_(False), OptimizerConfig())


def test_muon_refuses_vectors() -> None:
    with pytest.raises(AssertionError, match="matrices only"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(3))], "algorithm": "muon"}])


@pytest.mark.parametrize("most", [1, 50, 10_000])
def test_portions_of_matrices_are_updated_as_all_at_once(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Only the memory of a step differs; a stack of matrices larger than a portion is one of its own."""
    shapes = [(4, 6), (6, 4), (3, 5, 5), (4, 6), (2, 9)]
    torch.manual_seed(0)
    start = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    gradients = [[torch.randn_like(p) for p in start] for _ in range(3)]

    def trained() -> list[torch.Tensor]:
        params = [p.clone().requires_grad_() for p in start]
        optimizer = optimizers.MuonAdamW([{"params": params, "algorithm": "muon", "lr": 0.1}])
        for step in gradients:
            for p, g in zip(params, step, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return [p.detach() for p in params]

    whole, calls = trained(), []
    monkeypatch.setattr(optimizers, "AT_ONCE", most)
    once = optimizers.orthogonalise
    monkeypatch.setattr(
        optimizers, "orthogonalise", lambda updates, steps: calls.append(len(updates)) or once(updates, steps)
    )
    for one, other in zip(whole, trained(), strict=True):
        assert (one - other).abs().max() < 1e-12
    assert calls == {1: [1] * 5, 50: [2, 1, 2], 10_000: [5]}[most] * 3
