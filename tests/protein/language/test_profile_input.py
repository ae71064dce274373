"""The window of profile columns that a model of residues reads."""

from __future__ import annotations

import math

import pytest
import torch

from triune.core.errors import UserError
from triune.protein.language.labelled import ProteinPredictor
from triune.protein.language.labels import ProteinLabels
from triune.protein.language.model import VOCABULARY
from triune.protein.language.profile_input import FEATURES, FLOOR, ProfileInput
from triune.protein.read.alphabet import AMINO_ACIDS
from triune.protein.read.profile import BACKGROUND


def test_each_residue_sees_the_columns_around_it_and_nothing_beyond_the_ends() -> None:
    torch.manual_seed(0)
    layer = ProfileInput(4, 3).double()
    letters = "MKV"
    profile = torch.zeros(1, 7, 20, dtype=torch.float64)
    profile[0, 1:4] = torch.rand(3, 20, dtype=torch.float64).softmax(-1)
    tokens = torch.tensor([[0, *(VOCABULARY.index(letter) for letter in letters), 2, 1, 1]])
    found = layer(tokens, profile)[0]

    def features(at: int) -> list[float]:
        if not 1 <= at <= 3:
            return [0.0] * FEATURES
        p = profile[0, at].tolist()
        odds = [math.log((x + FLOOR) / (b + FLOOR)) / 2 for x, b in zip(p, BACKGROUND)]
        # ESM-2's order of the amino acids, not the alphabet's.
        there = [float(VOCABULARY[4 + i] == letters[at - 1]) for i in range(20)]
        return [*odds, -sum(x * math.log(x) for x in p) / 3, *there]

    weight = layer.conv.weight
    for at in range(1, 4):
        window = torch.tensor([features(at + shift) for shift in (-1, 0, 1)], dtype=torch.float64)
        expected = torch.einsum("dfw,wf->d", weight, window)
        torch.testing.assert_close(found[at], expected, atol=1e-6, rtol=0)
    assert len(AMINO_ACIDS) * 2 + 1 == FEATURES


def test_a_window_is_odd_and_of_a_profile() -> None:
    for wrong in (0, 4, 103):
        with pytest.raises(UserError, match=r"model\.window"):
            ProteinLabels(window=wrong)
    made = ProteinPredictor._profile_input
    assert made({"profile": False}, 8) is None
    assert isinstance(made({"profile": True}, 8), torch.nn.Linear)
    window = made({"profile": True, "window": 5}, 8)
    assert isinstance(window, ProfileInput) and window.conv.weight.shape == (8, FEATURES, 5)
