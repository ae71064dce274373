"""Precision of contacts against a slow loop that was written from the definition, and what the numbers must obey."""

import math

import numpy as np
import pytest
import torch

from triune.protein.predict.metrics import (
    RANGES,
    ContactMetrics,
    contact_targets,
    distances,
    precisions,
    targets_of,
)


def loop(scores: np.ndarray, targets: np.ndarray, length: int) -> dict[str, float]:
    """The definition, for one chain without ties, one pair at a time."""
    out = {}
    for name, (first, last) in RANGES.items():
        pairs = []
        for i in range(len(scores)):
            for j in range(i + 1, len(scores)):
                if first <= j - i <= last and targets[i, j] >= 0:
                    pairs.append((float(scores[i, j]), int(targets[i, j])))
        ranked = [hit for _, hit in sorted(pairs, key=lambda pair: -pair[0])]
        contacts = sum(ranked)

        def at(tenths: int, hits: list[int], length: int = length) -> float:
            asked = max(1, tenths * length // 10)
            return sum(hits[:asked]) / asked

        for score, tenths in (("p_at_l", 10), ("p_at_l2", 5), ("p_at_l5", 2)):
            asked = max(1, tenths * length // 10)
            out[f"{name}_{score}"] = at(tenths, ranked) if pairs else math.nan
            out[f"{name}_{score}_ceiling"] = min(contacts, asked) / asked if pairs else math.nan
            chance = contacts / len(pairs) * min(len(pairs), asked) / asked if pairs else math.nan
            out[f"{name}_{score}_chance"] = chance
        out[f"{name}_auc"] = float(np.mean([at(tenths, ranked) for tenths in range(1, 11)])) if pairs else math.nan
    return out


def chain(rng: np.random.Generator, residues: int, unresolved: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    cbeta = torch.from_numpy(rng.normal(size=(residues, 3)).cumsum(0).astype(np.float32) * 2)
    return cbeta, torch.from_numpy(rng.random(residues) >= unresolved)


@pytest.mark.parametrize("residues", [5, 11, 30, 47, 100])
def test_agrees_with_the_loop(residues):
    rng = np.random.default_rng(residues)
    cbeta, resolved = chain(rng, residues)
    targets = contact_targets(cbeta, resolved)
    scores = torch.from_numpy(rng.random((residues, residues)).astype(np.float32))
    length = int(resolved.sum())
    found = precisions(scores[None], targets[None], torch.tensor([length]))
    expected = loop(scores.numpy(), targets.numpy(), length)
    assert set(expected) <= set(found)
    for key, value in expected.items():
        assert float(found[key]) == pytest.approx(value, abs=1e-6, nan_ok=True), key


def test_a_batch_gives_what_each_chain_gives_whatever_the_padding_holds():
    rng = np.random.default_rng(1)
    sizes, width = [26, 40, 64, 13], 64
    scores = torch.from_numpy(rng.normal(size=(4, width, width)).astype(np.float32))
    targets = torch.full((4, width, width), -1, dtype=torch.int8)
    lengths = []
    for at, size in enumerate(sizes):
        cbeta, resolved = chain(rng, size)
        targets[at, :size, :size] = contact_targets(cbeta, resolved)
        scores[at, size:] = torch.nan
        lengths.append(int(resolved.sum()))
    batch = precisions(scores, targets, torch.tensor(lengths))
    for at, size in enumerate(sizes):
        alone = precisions(
            scores[at : at + 1, :size, :size], targets[at : at + 1, :size, :size], torch.tensor(lengths[at : at + 1])
        )
        for key, value in alone.items():
            torch.testing.assert_close(batch[key][at : at + 1], value, equal_nan=True)


def test_the_perfect_predictor_reaches_the_ceiling_and_a_constant_one_scores_chance():
    rng = np.random.default_rng(2)
    targets = contact_targets(*chain(rng, 120))[None]
    perfect = precisions((targets == 1).float(), targets)
    constant = precisions(torch.zeros(1, 120, 120), targets)
    for name in RANGES:
        for score in ("p_at_l", "p_at_l2", "p_at_l5", "auc"):
            key = f"{name}_{score}"
            torch.testing.assert_close(perfect[key], perfect[f"{key}_ceiling"])
            torch.testing.assert_close(constant[key], constant[f"{key}_chance"])
            assert 0 < float(perfect[f"{key}_chance"]) < float(perfect[key]) <= 1


def test_ties_are_credited_with_the_mean_over_their_orders():
    rng = np.random.default_rng(3)
    targets = contact_targets(*chain(rng, 50))[None]
    coarse = torch.from_numpy(rng.integers(0, 4, (1, 50, 50)).astype(np.float32))
    orders = [
        float(precisions(coarse + 1e-3 * torch.from_numpy(rng.random((1, 50, 50))), targets)["long_p_at_l"])
        for _ in range(400)
    ]
    expected = float(precisions(coarse, targets)["long_p_at_l"])
    assert expected == pytest.approx(np.mean(orders), abs=4 * np.std(orders) / 20)


def test_too_few_pairs_count_as_wrong():
    targets = torch.ones(1, 26, 26, dtype=torch.int8)  # 3 long pairs, all contacts, but L = 26
    found = precisions(torch.rand(1, 26, 26), targets)
    assert float(found["long_p_at_l"]) == pytest.approx(3 / 26)
    assert float(found["long_p_at_l_ceiling"]) == pytest.approx(3 / 26)
    assert float(found["long_p_at_l_chance"]) == pytest.approx(3 / 26)
    assert float(found["long_p_at_l5"]) == pytest.approx(3 / 5)


def test_a_prediction_of_minus_infinity_ranks_before_ignored_pairs():
    targets = torch.full((1, 30, 30), -1, dtype=torch.int8)
    targets[0, 0, 24:] = 1
    found = precisions(torch.full((1, 30, 30), -torch.inf), targets, torch.tensor([6]))
    assert float(found["long_p_at_l"]) == 1


def test_unresolved_residues_are_ignored_and_never_no_contact():
    points = torch.tensor([[0.0, 0, 0], [7.99, 0, 0], [8.0, 0, 0], [0, 0, 0]])
    targets = contact_targets(points, torch.tensor([True, True, True, False]))
    assert targets[0].tolist() == [1, 1, 0, -1]
    assert targets[3].tolist() == [-1, -1, -1, -1]
    points[1] = torch.nan
    assert contact_targets(points, torch.ones(4, dtype=torch.bool))[0].tolist() == [1, -1, 0, 1]


def test_distances_are_exact_at_the_cutoff():
    far = torch.tensor([[500.0, 500, 500], [507.999, 500, 500]])
    assert float(distances(far)[0, 1]) == pytest.approx(7.999, abs=1e-4)
    assert int(targets_of(distances(far), torch.ones(2, dtype=torch.bool))[0, 1]) == 1


def test_means_are_over_chains_and_by_depth():
    rng = np.random.default_rng(4)
    targets = torch.stack([contact_targets(*chain(rng, 60)) for _ in range(4)])
    scores = torch.from_numpy(rng.random((4, 60, 60)).astype(np.float32))
    lengths = torch.tensor([60, 60, 60, 60])
    metrics = ContactMetrics()
    metrics.update(scores[:3], targets[:3], lengths[:3], torch.tensor([5.0, 50.0, 2000.0]), ["a", "b", "c"])
    metrics.update(scores[3:], targets[3:], lengths[3:])
    # A chain of padding alone has no score.
    metrics.update(scores[:1], torch.full((1, 60, 60), -1, dtype=torch.int8), torch.tensor([0]))
    each = precisions(scores, targets, lengths)
    found = metrics.compute()
    for key in ("long_p_at_l", "long_p_at_l5", "medium_p_at_l", "long_p_at_l_chance", "medium_p_at_l_ceiling"):
        assert found[key] == pytest.approx(float(each[key].mean()))
    assert found["long_p_at_l_neff_50_100"] == pytest.approx(float(each["long_p_at_l"][1]))
    assert found["chains_neff_0_10"] == found["chains_neff_1000_up"] == 1
    assert "chains_neff_100_300" not in found
    # Rows of two processes, joined, give the same.
    half = [ContactMetrics(), ContactMetrics()]
    for part, rows in zip(half, (slice(0, 2), slice(2, 4))):
        part.update(scores[rows], targets[rows], lengths[rows])
    joined = ContactMetrics().compute(torch.cat([part.values for part in half]))
    assert joined["long_auc"] == pytest.approx(found["long_auc"])
    assert ContactMetrics().compute() == {}
