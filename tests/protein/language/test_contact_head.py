"""The contact head: streamed features equal stored ones, and the regression solves its problem."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triune.core.errors import UserError
from triune.core.mixers.kernels import reference_attention
from triune.core.positions import rotate
from triune.protein.language.contact_head import ContactHead, contact_features, l1_logistic_regression, stream_features
from triune.protein.language.model import EOS, PAD, SequenceConfig, SequenceModel, esm_tokens, esm_transformer
from triune.protein.read import alphabet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def model() -> SequenceModel:
    built = SequenceModel(SequenceConfig(transformer=esm_transformer("tiny"))).eval()
    for parameter in built.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def tokens(batch: int = 2, lengths: tuple[int, ...] = (9, 6)) -> torch.Tensor:
    inner = torch.randint(20, (batch, max(lengths)))
    for row, length in zip(inner, lengths):
        row[length:] = alphabet.PAD
    return esm_tokens(inner)


def stored_maps(built: SequenceModel, ids: torch.Tensor) -> torch.Tensor:
    """All attention maps at once, `[batch, layers, heads, tokens, tokens]`: the reference attention of the identity."""
    maps = []
    padding = (ids != PAD)[:, None, None, :]

    def record(attention, args) -> None:
        x, _, rotation = args[:3]
        q, k = (
            rotate(attention._heads(attention.q(x)), rotation, False),
            rotate(attention._heads(attention.k(x)), rotation, False),
        )
        identity = torch.eye(x.shape[1]).expand(len(x), q.shape[1], -1, -1)
        maps.append(reference_attention(q, k, identity, allowed=padding))

    hooks = [block.attn.register_forward_pre_hook(record) for block in built.transformer.blocks]
    with torch.no_grad():
        built(ids)
    for hook in hooks:
        hook.remove()
    return torch.stack(maps, dim=1)


def features_by_loops(maps: torch.Tensor, length: int) -> torch.Tensor:
    """Rao et al. 2020 for one map `[tokens, tokens]` of a chain of `length` residues."""
    a = maps[1 : length + 1, 1 : length + 1]
    s = a + a.T
    out = torch.empty_like(s)
    for i in range(length):
        for j in range(length):
            out[i, j] = s[i, j] - s[i].sum() * s[:, j].sum() / s.sum()
    return out


def test_streamed_head_equals_stored_maps() -> None:
    built, ids = model(), tokens()
    head = ContactHead(2, 2)
    head.weight.copy_(torch.randn(2, 2))
    head.weight[0, 1] = 0  # this head is never computed
    head.bias.fill_(-0.7)
    logits = head(built, ids)
    maps = stored_maps(built, ids)
    for row, length in enumerate((9, 6)):
        expected = torch.full((length, length), -0.7)
        for layer in range(2):
            for h in range(2):
                expected += head.weight[layer, h] * features_by_loops(maps[row, layer, h], length)
        assert (logits[row, :length, :length] - expected).abs().max() < 1e-5


def test_heads_without_weight_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from triune.core.lens import stream

    computed: list[int] = []
    original = stream.attention_weights

    def spy(q, *others):
        computed.append(q.shape[1])
        return original(q, *others)

    monkeypatch.setattr(stream, "attention_weights", spy)
    head = ContactHead(2, 2)
    head.weight[1, 1] = 1.0
    head(model(), tokens())
    assert computed == [1]


@pytest.mark.parametrize("size", [0, 4 * 2 * 11 * 11, 1 << 20])
def test_groups_of_heads_give_the_same_logits(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    from triune.protein.language import contact_head

    monkeypatch.setattr(contact_head, "MAPS_BYTES", size)
    built, ids = model(), tokens()
    head = ContactHead(2, 2)
    head.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    expected = torch.zeros(2, 9, 9)
    stream_features(built, ids, lambda layer, f: expected.add_(torch.einsum("bhij,h->bij", f, head.weight[layer])))
    assert (head(built, ids) - expected).abs().max() < 1e-5


def test_the_model_is_left_as_it_was() -> None:
    built = model().train()
    before = [set(vars(block.attn)) for block in built.transformer.blocks]
    stream_features(built, tokens(), lambda *_: None)
    assert built.training
    assert [set(vars(block.attn)) for block in built.transformer.blocks] == before


def test_padding_changes_no_map() -> None:
    built, ids = model(), tokens()
    alone = esm_tokens(torch.tensor([[alphabet.AMINO_ACIDS.index("A")] * 4]))
    padded = torch.cat([alone, torch.full((1, 3), PAD)], dim=1)
    found: list[torch.Tensor] = []
    for given in (alone, padded):
        stream_features(built, given, lambda _, maps: found.append(maps))
    assert (found[0] - found[2][..., :4, :4]).abs().max() < 1e-5
    assert not found[2][..., 4:, :].any()
    assert ids.shape == (2, 11)
    assert (ids == EOS).sum() == 2


def test_features_are_symmetric_and_centred() -> None:
    residues = torch.tensor([[False] + [True] * 5 + [False]])
    features = contact_features(torch.rand(1, 3, 7, 7), residues)
    assert torch.allclose(features, features.mT, atol=1e-6)
    assert features.sum(-1).abs().max() < 1e-5  # the correction takes each row's sum away


def test_regression_equals_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    x = torch.randn(400, 12) * torch.logspace(-2, 0, 12)
    y = (torch.rand(400) < torch.sigmoid(3 * x[:, 10] - 2 * x[:, 11] - 1)).float()
    for strength in (0.03, 0.3):
        weight, bias = l1_logistic_regression(x, y, strength)
        theirs = linear_model.LogisticRegression(l1_ratio=1, C=strength, solver="saga", max_iter=20_000, tol=1e-8)
        theirs.fit(x.numpy(), y.numpy())
        assert (weight - torch.tensor(theirs.coef_[0]).float()).abs().max() < 5e-3
        assert abs(bias - theirs.intercept_[0]) < 5e-3
    assert (weight == 0).any()
    assert (weight != 0).any()


def test_fit_finds_the_head_that_knows() -> None:
    """Contacts made from one head's map: the regression finds that head and ranks the contacts first."""
    built = model()
    structures = []
    for _ in range(4):
        chain = torch.randint(20, (40,))
        found: list[torch.Tensor] = []
        stream_features(built, esm_tokens(chain[None]), lambda _, maps, out=found: out.append(maps[0]))
        wanted = found[1][0]
        contacts = (wanted > wanted.flatten().quantile(0.9)).to(torch.int8)
        contacts[:3] = contacts[:, :3] = -1
        structures.append((chain, contacts))
    head = ContactHead.fit(built, structures, strength=1.0)
    assert head.weight.abs().argmax() == 2  # layer 1, head 0
    chain, contacts = structures[0]
    logits = head(built, esm_tokens(chain[None]))[0]
    i, j = torch.triu_indices(40, 40, 6)
    known = contacts[i, j] >= 0
    scores, truth = logits[i, j][known], contacts[i, j][known]
    best = scores.topk(int(truth.sum())).indices
    assert truth[best].float().mean() > 0.9


def test_unfitted_head_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fit one on a few structures"):
        ContactHead(2, 2)(model(), tokens())
    with pytest.raises(UserError, match="no pair in contact"):
        ContactHead.fit(model(), [(torch.randint(20, (20,)), torch.zeros(20, 20, dtype=torch.int8))])
    head = ContactHead(2, 2)
    head.weight.fill_(0.5)
    head.save_pretrained(tmp_path)
    assert torch.equal(ContactHead.from_pretrained(tmp_path).weight, head.weight)
