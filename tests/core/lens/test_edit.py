"""The lens: the same names in every model, never without effect and silent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.lens.ablate import ablation, head_edits, mean_outputs, without_edges
from triune.core.lens.decode import depth_lens, direct
from triune.core.lens.edit import lens
from triune.core.lens.patch import attribute, patch, path
from triune.core.lens.points import points
from triune.core.mixers.cache import KeyValueCache
from triune.core.transformer import Transformer


class Model(nn.Module):
    """Token ids -> logits."""

    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = TransformerConfig(dim=16, depth=3, heads=4, **({"causal": True, "kv_heads": 2} | options))
        self.embedding = nn.Embedding(11, 16)
        self.transformer, self.head = Transformer(config), nn.Linear(16, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.transformer(self.embedding(ids)))


@pytest.fixture
def model() -> Model:
    return Model().eval()


IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [3, 3, 1, 0, 9, 2]])


def test_every_point_is_what_plain_hooks_see(model: Model) -> None:
    seen_by_hooks: dict[str, Tensor] = {}

    def hook(name: str, of_input: bool):
        return lambda _, args, out: seen_by_hooks.update({name: args[0] if of_input else out})

    block = model.transformer.blocks[1]
    handles = [
        module.register_forward_hook(hook(name, of_input))
        for name, module, of_input in [
            ("1.resid_pre", block, True), ("1.q", block.attn.q, False), ("1.z", block.attn.out, True),
            ("1.resid_mid", block.norm2, True), ("1.hidden", block.ffn.down, True), ("1.resid_post", block, False),
            ("1.attn_out", block.branch1, False), ("1.ffn_out", block.branch2, False), ("1.mixed", block.attn, False),
        ]
    ]  # fmt: skip
    with lens(model, keep=["1.*"]) as seen:
        model(IDS)
    for handle in handles:
        handle.remove()
    assert set(seen_by_hooks) | {"1.k", "1.v"} == set(seen)
    assert seen["1.z"].shape == (2, 6, 4, 4) and seen["1.k"].shape == (2, 6, 2, 4)
    for name, value in seen_by_hooks.items():
        assert torch.equal(seen[name].reshape(value.shape), value), name
    parts = seen["1.resid_pre"] + seen["1.attn_out"] + seen["1.ffn_out"]
    torch.testing.assert_close(parts, seen["1.resid_post"])  # what each part adds, together, is all


def test_nothing_stays_behind(model: Model) -> None:
    before, names = model(IDS), list(model.state_dict())
    with lens(model, edit={"*.z": torch.zeros_like}, cut={0: torch.ones(6, 6, dtype=torch.bool)}):
        assert not torch.equal(model(IDS), before)
    assert torch.equal(model(IDS), before) and list(model.state_dict()) == names
    with pytest.raises(ZeroDivisionError), lens(model, edit={"0.z": lambda z: z / (1 // 0)}):
        model(IDS)
    assert torch.equal(model(IDS), before)


def test_an_edit_of_heads_is_that_of_their_columns_in_the_output_projection(model: Model) -> None:
    with lens(model, edit=head_edits([(1, 2), (1, 0)], "zero")):
        found = model(IDS)
    out = model.transformer.blocks[1].attn.out
    with torch.no_grad():
        for head in (2, 0):
            out.weight[:, head * 4 : head * 4 + 4] = 0
    torch.testing.assert_close(found, model(IDS))


def test_a_cut_edge_carries_nothing(model: Model) -> None:
    """Without the edges from the last token to token 1, in all layers, changing token 1 changes what is there only
    through the tokens between; with those from all later tokens, nothing."""
    other = IDS.clone()
    other[:, 1] = 7

    def last(ids: Tensor, cut) -> Tensor:
        with lens(model, cut=dict.fromkeys(range(3), cut)):
            return model(ids)[:, -1]

    def from_all(query: Tensor, key: Tensor) -> Tensor:
        return (key == 1) & (query > 1)

    assert torch.equal(last(IDS, from_all), last(other, from_all))
    edges = torch.zeros(6, 6, dtype=torch.bool)
    edges[5, 1] = True
    assert not torch.equal(last(IDS, edges), last(other, edges))
    one_head = torch.zeros(4, 6, 6, dtype=torch.bool)
    one_head[3, 2:, 1] = True
    assert not torch.equal(last(IDS, one_head), last(other, one_head))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edit": {"1.zz": torch.relu}}, "There is no point '1.zz' \\(did you mean '1.z'\\?\\).*resid_pre"),
        ({"keep": ["7.z"]}, "names layer 7, but the model has layers 0 to 2"),
        ({"cut": {3: torch.ones(6, 6, dtype=torch.bool)}}, "Layer 3 is named"),
        ({"cut": {0: torch.ones(5, 6, dtype=torch.bool)}}, "must be bool \\[queries, keys\\]"),
        ({"cut": {0: torch.ones(6, 6)}}, "torch.float32"),
        ({"cut": {0: torch.ones(6, 6, dtype=torch.bool).triu(1)}}, "no edge that was cut was seen"),
        (
            {"edit": {"0.z": lambda z: z[:, :3]}},
            "returns \\[2, 3, 4, 4\\], but must return a tensor of \\[2, 6, 4, 4\\]",
        ),
    ],
)
def test_what_cannot_be_is_said(model: Model, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message), lens(model, **options):
        model(IDS)


def test_an_edit_that_touched_nothing_is_an_error(model: Model) -> None:
    with pytest.raises(UserError, match=r"Nothing came of the edit of 0\.z"), lens(model, edit={"0.z": torch.relu}):
        pass


def test_a_cut_behind_a_cache_is_refused(model: Model) -> None:
    x, cache = model.embedding(IDS), KeyValueCache(model.transformer.config)
    model.transformer(x[:, :4], cache=cache)
    with pytest.raises(UserError, match="cut behind a cache"), lens(model, cut={0: lambda query, key: query > key}):
        model.transformer(x[:, 4:], cache=cache)


def test_models_of_other_layers_have_the_points_that_they_have() -> None:
    parallel = points(Model(parallel=True, placement="pre"))
    assert "0.resid_mid" not in parallel and "0.z" in parallel
    hybrid = points(Model(mixer=["mamba2", "attention", "mamba2"]))
    assert "0.z" not in hybrid and {"0.mixed", "1.z", "2.resid_post"} <= set(hybrid)


def test_ablation_beside_random_heads(model: Model) -> None:
    def measure() -> float:
        return model(IDS)[:, -1, 0].mean().item()

    means = mean_outputs(model, measure)
    with lens(model, keep=["1.z"]) as seen:
        model(IDS)
    torch.testing.assert_close(means["1.z"].float(), seen["1.z"].mean((0, 1)))
    found = ablation(model, measure, [(1, 2), (2, 0)], controls=3)
    assert len(found.controls) == 3 and found.whole == pytest.approx(measure())
    with lens(model, edit=head_edits([(1, 2), (2, 0)], "mean", means)):
        assert found.without == pytest.approx(measure())
    assert found.effect == pytest.approx(found.whole - found.without)
    with pytest.raises(UserError, match="Head 4 is named, but each layer has heads 0 to 3"):
        ablation(model, measure, [(0, 4)])
    with pytest.raises(UserError, match="not as many others are left"):
        ablation(model, measure, [(layer, head) for layer in (0, 1) for head in range(4)])


def test_patching_all_of_a_depth_brings_the_clean_answer_back(model: Model) -> None:
    def answer(logits: Tensor) -> Tensor:
        return (logits[:, -1, 0] - logits[:, -1, 1]).mean()

    corrupted = IDS.clone()
    corrupted[:, 2] = 8
    found = patch(model, IDS, corrupted, answer, positions=range(6))
    assert set(found) == {f"{layer}.resid_post" for layer in range(3)} and found["0.resid_post"].shape == (6, 1)
    assert found["0.resid_post"][:2].abs().max() == 0  # the tokens before it are the same
    assert found["2.resid_post"][-1, 0] == pytest.approx(1, abs=1e-5)  # the answer is read there
    whole = patch(model, IDS, corrupted, answer, ["0.resid_pre"])
    assert whole["0.resid_pre"].item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="must have one shape"):
        patch(model, IDS, corrupted[:, :5], answer)
    with pytest.raises(UserError, match="for both inputs"):
        patch(model, IDS, IDS, answer)
    for positions in ([6], [-1]):
        with pytest.raises(UserError, match=r"is named, but 0\.resid_post has 6 positions"):
            patch(model, IDS, corrupted, answer, ["0.resid_post"], positions)
    with pytest.raises(UserError, match="Head 9 is named"):
        path(model, IDS, corrupted, answer, ("0.z", 9))
    with pytest.raises(UserError, match="has numbers 0 to 3"):
        path(model, IDS, corrupted, answer, ("0.z", 1), ("2.q", 4))


def test_the_mean_of_a_recurrent_model_leaves_padding_out() -> None:
    model = Model(mixer="mamba2").eval()
    valid = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])

    def run() -> Tensor:
        return model.transformer(model.embedding(IDS), valid=valid)

    found = mean_outputs(model, run, ["1.mixed"])["1.mixed"]
    with torch.no_grad(), lens(model, keep=["1.mixed"]) as seen:
        run()
    torch.testing.assert_close(found.float(), seen["1.mixed"][valid].mean(0))
    assert not torch.allclose(found.float(), seen["1.mixed"].mean((0, 1)))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"norm": "rmsnorm", "norm_weight": "offset"}, {"placement": "sandwich"}, {"layer_scale": 0.3},
        {"parallel": True}, {"mixer": ["mamba2", "attention", "mamba2"]},
    ],
    ids=str,
)  # fmt: skip
def test_direct_contributions_sum_to_the_answer(options: dict) -> None:
    model = Model(init_std=0.4, **options).eval()
    found = direct(model, lambda: model(IDS)[:, -1, 3].sum())
    assert found.rest == pytest.approx(2 * float(model.head.bias[3].detach()), abs=1e-5)  # two rows
    assert sum(found.parts.values()) + found.rest == pytest.approx(found.score)
    for name, heads in found.heads.items():  # the output projections have no bias at the start
        assert float(heads.sum()) == pytest.approx(found.parts[name.replace(".z", ".attn_out")], abs=1e-6)
    # What a head adds is what the stream loses without it, as the frozen final norm and the head read it.
    layer = "1" if "mixer" in options else "2"
    with torch.no_grad(), lens(model, keep=[f"{layer}.resid_post", "2.resid_post"]) as seen:
        model(IDS)
    with torch.no_grad(), lens(model, edit=head_edits([(int(layer), 1)], "zero"), keep=[f"{layer}.attn_out"]) as less:
        model(IDS)
    with torch.no_grad(), lens(model, keep=[f"{layer}.attn_out"]) as more:
        model(IDS)
    if "sandwich" in str(options):
        return  # the norm behind the branch has other statistics without the head
    lost = (more[f"{layer}.attn_out"] - less[f"{layer}.attn_out"])[:, -1].double()
    last, norm = seen["2.resid_post"][:, -1].double(), model.transformer.final_norm
    centred = norm.kind == "layernorm"
    last, lost = ((x - x.mean(-1, keepdim=True) if centred else x) for x in (last, lost))
    scale = (last.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    weight = norm.weight.double() + float(norm.offset)  # type: ignore[union-attr]
    expected = ((lost * scale * weight) @ model.head.weight[3].double()).sum()
    assert float(found.heads[f"{layer}.z"][1]) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_a_normalised_stream_is_no_sum() -> None:
    model = Model(placement="post").eval()
    with pytest.raises(UserError, match="is no sum"):
        direct(model, lambda: model(IDS).sum())


def test_edges_are_cut_beside_as_many_random_ones(model: Model) -> None:
    def measure() -> float:
        return model(IDS)[:, -1, 0].mean().item()

    edges = torch.zeros(1, 6, 6, dtype=torch.bool)
    edges[0, 5, 2] = edges[0, 4, 0] = True
    found = without_edges(model, measure, edges, [("1.z", 2), ("2.z", None)], controls=3)
    mask = torch.zeros(4, 6, 6, dtype=torch.bool)
    mask[2] = edges[0]
    with lens(model, cut={1: mask, 2: edges[0]}):
        assert found.without == pytest.approx(measure())
    assert len(found.controls) == 3 and len(set(found.controls)) > 1 and found.whole == pytest.approx(measure())
    with pytest.raises(UserError, match="Head 4 is named"):
        without_edges(model, measure, edges, [("1.z", 4)])


def test_attribution_is_the_slope_of_patching(model: Model) -> None:
    """For inputs that hardly differ the estimate and the patch are the same."""

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer, self.head = model.transformer, model.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.transformer(x))

    run = Embedded().double().eval()
    clean = torch.randn(2, 6, 16, dtype=torch.double)
    corrupted = clean + 1e-4 * torch.randn(2, 6, 16, dtype=torch.double)

    def answer(logits: Tensor) -> Tensor:
        return logits[:, -1, 0].sum()

    where = ["*.resid_post", "1.resid_pre"]
    expected = patch(run, clean, corrupted, answer, where, positions=range(6))
    found = attribute(run, clean, corrupted, answer, where, positions=range(6))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-2)
    by_head = patch(run, clean, corrupted, answer, ["*.z"], heads=True)
    estimate = attribute(run, clean, corrupted, answer, ["*.z"], heads=True)
    for name, value in by_head.items():
        assert value.shape == (1, 4)
        torch.testing.assert_close(estimate[name], value, rtol=1e-2, atol=1e-2)
    with pytest.raises(UserError, match="has no heads"):
        attribute(run, clean, corrupted, answer, ["0.resid_post"], heads=True)


def test_the_last_depth_is_what_the_model_answers(model: Model) -> None:
    depths = depth_lens(model, lambda: model(IDS), model.head)
    assert len(depths) == 4
    torch.testing.assert_close(depths[-1], model(IDS))
    assert not torch.allclose(depths[0], depths[-1])
