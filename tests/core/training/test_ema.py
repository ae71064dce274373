import pytest
import torch
from torch import nn

from triune.core.errors import UserError
from triune.core.training.ema import EMA


def attached(decay: float = 0.9, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, EMA]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).to(dtype)
    ema = EMA(decay)
    ema.attach(model)
    return model, ema


def drift(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))


def test_update_follows_the_definition() -> None:
    model, ema = attached(decay=0.3)
    expected = model[0].weight.detach().clone()
    for t in range(20):
        drift(model)
        ema.update()
        d = min(0.3, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * model[0].weight.detach()
    torch.testing.assert_close(ema.averaged()["0.weight"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_twice_changes_nothing(dtype: torch.dtype) -> None:
    model, ema = attached(dtype=dtype)
    drift(model)
    ema.update()
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    averages = {name: a.clone() for name, a in ema.averaged().items()}
    ema.swap()
    assert ema.swapped
    for name, p in model.named_parameters():
        assert not torch.equal(p, raw[name])
        assert torch.equal(p, averages[name].to(dtype))
        assert ema.averaged()[name] is p
    ema.swap()
    for name, p in model.named_parameters():
        assert torch.equal(p, raw[name])


def test_float32_averages_come_back_exactly() -> None:
    model, ema = attached()
    drift(model)
    ema.update()
    averages = [a.clone() for a in ema.averaged().values()]
    ema.swap()
    ema.swap()
    assert all(torch.equal(a, b) for a, b in zip(averages, ema.averaged().values()))


def test_bfloat16_weights_have_float32_averages() -> None:
    model, ema = attached(0.999, torch.bfloat16)
    ema.steps = 100_000
    nn.init.constant_(model[0].weight, 1.0)
    ema.attach(model)
    start = ema.averaged()["0.weight"].clone().fill_(1.0)
    ema.averaged()["0.weight"].fill_(1.0)
    nn.init.constant_(model[0].weight, 1.5)
    ema.update()
    torch.testing.assert_close(ema.averaged()["0.weight"], start + 0.0005)


def test_state_survives_a_file(tmp_path) -> None:
    model, ema = attached()
    for _ in range(3):
        drift(model)
        ema.update()
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    other = EMA(0.9)
    other.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert not other.attached
    other.attach(model)
    drift(model)
    ema.update()
    other.update()
    assert other.steps == ema.steps == 4
    for name, average in ema.averaged().items():
        assert torch.equal(average, other.averaged()[name])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_bad_decay(decay: float) -> None:
    with pytest.raises(UserError, match=f"ema is {decay}"):
        EMA(decay)
