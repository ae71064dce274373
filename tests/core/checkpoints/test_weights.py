"""Reversible weight maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from triune.core.checkpoints.weights import (
    STACKED,
    TRANSPOSED,
    Rule,
    Target,
    WeightMap,
    heads_interleaved,
    pairs_interleaved,
    reshaped,
    unique_state,
)
from triune.core.errors import UserError


class Toy(nn.Module):
    """Two layers with q, k, v of different widths, a table and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 8))
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 4), "v": nn.Linear(8, 4), "norm": nn.LayerNorm(8)})
            for _ in range(2)
        )
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight


def toy_map(layout: object = STACKED) -> WeightMap:
    return WeightMap(
        rules=(
            Rule("table", "pos", reshaped(1, -1, 8)),
            Rule("embedding", "wte"),
            Rule(("layers.{}.q", "layers.{}.k", "layers.{}.v"), "h.{}.qkv", layout),  # type: ignore[arg-type]
            Rule("layers.{}.norm", "h.{}.ln"),
        ),
        ignored=(r"h\.\d+\.mask", r"lm_head\.weight"),
        constants={"extra": torch.zeros(3)},
    )


@pytest.mark.parametrize("layout", [STACKED, TRANSPOSED])
def test_round_trip_is_bit_identical(layout: object) -> None:
    model, other, table = Toy(), Toy(), toy_map(layout)
    theirs = table.to_theirs(model)
    assert set(theirs) == {
        "pos", "wte.weight", "extra",
        *(f"h.{i}.{name}.{kind}" for i in (0, 1) for name in ("qkv", "ln") for kind in ("weight", "bias")),
    }  # fmt: skip
    assert theirs["pos"].shape == (1, 5, 8)
    assert theirs["h.0.qkv.weight"].shape == ((16, 8) if layout is STACKED else (8, 16))
    table.load(other, theirs | {"h.0.mask": torch.ones(1), "lm_head.weight": theirs["wte.weight"]}, "toy")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_one_of_ours_may_be_several_of_theirs() -> None:
    class Gains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(6))

    model, other = Gains(), Gains()
    table = WeightMap((Rule("gain", ("norms.0.weight", "norms.1.weight")),))
    theirs = table.to_theirs(model)
    assert [theirs[f"norms.{i}.weight"].tolist() for i in (0, 1)] == [part.tolist() for part in model.gain.split(3)]
    table.load(other, theirs, "toy")
    assert torch.equal(model.gain, other.gain)
    with pytest.raises(UserError, match=r"1 missing: norms\.1\.weight"):
        table.load(other, {"norms.0.weight": theirs["norms.0.weight"]}, "toy")


def test_missing_and_unexpected_names_are_listed() -> None:
    model, table = Toy(), toy_map()
    theirs = table.to_theirs(model)
    del theirs["h.1.ln.bias"]
    theirs["h.2.ln.bias"] = torch.zeros(8)
    with pytest.raises(UserError, match=r"1 missing: h\.1\.ln\.bias; 1 unexpected: h\.2\.ln\.bias"):
        table.load(model, theirs, "toy")


def test_a_wrong_shape_names_the_tensor() -> None:
    model, table = Toy(), toy_map()
    theirs = table.to_theirs(model)
    theirs["h.0.qkv.weight"] = torch.zeros(15, 8)
    with pytest.raises(UserError, match=r"'h\.0\.qkv\.weight' of 'toy' is \(15, 8\)"):
        table.load(model, theirs, "toy")


def test_a_table_that_forgets_a_parameter_is_our_mistake() -> None:
    with pytest.raises(KeyError, match=r"no rule for table"):
        WeightMap(rules=()).to_theirs(Toy())


def test_interleaved_heads_follow_gpt_neox() -> None:
    q, k, v = (torch.arange(6.0).view(6, 1) + 10 * part for part in range(3))
    whole = heads_interleaved(2).join([q, k, v])
    assert whole.flatten().tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22, 3, 4, 5, 13, 14, 15, 23, 24, 25]
    back = heads_interleaved(2).split(whole, [q.shape, k.shape, v.shape])
    assert all(torch.equal(a, b) for a, b in zip(back, (q, k, v), strict=True))


def test_interleaved_pairs_turn_the_same_way() -> None:
    """A rotation of neighbouring rows there is one of rows half a head apart here."""
    ours = torch.arange(8.0).view(8, 1)  # two heads of four; pairs (0, 2), (1, 3)
    theirs = pairs_interleaved(2).join([ours])
    assert theirs.flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(pairs_interleaved(2).split(theirs, [ours.shape])[0], ours)


def test_targets_say_where_linear_layers_lie() -> None:
    targets = toy_map(TRANSPOSED).targets(nn.ModuleDict({}))
    assert targets == {}
    targets = toy_map(TRANSPOSED).targets(Toy())
    assert targets["layers.1.k"] == Target("h.1.qkv", transposed=True, part=(1, 3))


def test_tied_weights_are_listed_once() -> None:
    assert "head.weight" not in unique_state(Toy())


def test_grouped_heads_lie_with_their_key_and_value() -> None:
    """Falcon's rows: for each key the queries that share it, the key, the value."""
    rows = torch.arange(16.0)[:, None]
    q, k, v = heads_interleaved(2).split(rows, [torch.Size([8, 1]), torch.Size([4, 1]), torch.Size([4, 1])])
    assert q.flatten().tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert (k.flatten().tolist(), v.flatten().tolist()) == ([4, 5, 12, 13], [6, 7, 14, 15])
    assert torch.equal(heads_interleaved(2).join([q, k, v]), rows)
