"""Points of experts and of recurrent states: what they show is what the model uses."""

from __future__ import annotations

import pytest
import torch

from triune.core.config import TransformerConfig
from triune.core.expert_options import ExpertsConfig
from triune.core.lens.edit import lens
from triune.core.mixers.cache import KeyValueCache
from triune.core.transformer import Transformer


def test_an_expert_without_weight_is_left_out() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(dim=16, depth=1, heads=2, experts=ExpertsConfig(count=4, active=2))
    model, x = Transformer(config).eval(), torch.randn(2, 5, 16)
    with torch.no_grad():
        with lens(model, keep=["0.router"]) as seen:
            before = model(x)
        assert seen["0.router"].shape == (1, 10, 4)
        assert bool(((seen["0.router"] > 0).sum(-1) == 2).all())
        with lens(model, edit={"0.router": lambda w: w * torch.tensor([1.0, 1.0, 1.0, 0.0])}):
            found = model(x)
        assert torch.equal(model(x), before)
        ffn = model.blocks[0].ffn
        down = ffn.experts.down.weight  # type: ignore[union-attr]
        down[3] = 0
        torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("mixer", ["mamba2", "gated_delta", "lstm"])
def test_the_state_that_is_kept_is_the_state_that_goes_on(mixer: str) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(dim=16, depth=2, heads=2, causal=True, mixer=mixer)).eval()
    x, point = torch.randn(2, 7, 16), "0.state_h" if mixer == "lstm" else "0.state_memory"
    with torch.no_grad():
        cache = KeyValueCache(model.config)
        with lens(model, keep=[point]) as seen:
            model(x[:, :4], cache=cache)
        name = point.partition("_")[2]
        assert torch.equal(seen[point], cache.states[0][0].tensors[name])  # type: ignore[union-attr]
        whole = model(x[:, 4:], cache=cache)
        other = KeyValueCache(model.config)
        with lens(model, edit={point: torch.zeros_like}):
            model(x[:, :4], cache=other)
        assert not other.states[0][0].tensors[name].any()  # type: ignore[union-attr]
        assert not torch.allclose(model(x[:, 4:], cache=other), whole)
