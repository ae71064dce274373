"""SavedModel: what is written is read back, under the name of the class that declares it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from triune.core.checkpoints.saved import SavedModel
from triune.core.errors import UserError


@dataclass(frozen=True)
class SumConfig:
    width: int = 3

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> SumConfig:
        return cls(**values)


class Sum(SavedModel, config=SumConfig, entry="sum"):
    def __init__(self, config: SumConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.arange(float(config.width)))


class LoudSum(Sum):
    """A user's own subclass: its files are those of a Sum."""


def test_round_trip_with_further_settings(tmp_path: Path) -> None:
    model = LoudSum(SumConfig(4))
    model.save_pretrained(tmp_path, temperature=2.0)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["architecture"], written["sum"], written["temperature"]) == ("Sum", {"width": 4}, 2.0)
    again = Sum.from_pretrained(tmp_path)
    assert type(again) is Sum and again.config == SumConfig(4) and torch.equal(again.weight, model.weight)
    assert Sum.read_settings(tmp_path)["temperature"] == 2.0


def test_other_weights_are_written_in_place_of_its_own(tmp_path: Path) -> None:
    Sum(SumConfig()).save_pretrained(tmp_path, {"weight": torch.ones(3)})
    assert torch.equal(Sum.from_pretrained(tmp_path).weight, torch.ones(3))


def test_another_class_is_refused(tmp_path: Path) -> None:
    class Product(SavedModel, config=SumConfig):
        pass

    Sum(SumConfig()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="describes Sum, but Product was expected here"):
        Product.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    Sum(SumConfig()).save_pretrained(tmp_path, {"weight": torch.tensor([1.0, value, 2.0])})
    with pytest.raises(UserError, match=r"1 weights of '.*' hold values that are not finite \(weight\)"):
        Sum.from_pretrained(tmp_path)
