import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.training.schedules import ScheduleConfig, factor


def curve(total: int = 100, **kwargs) -> list[float]:
    config = ScheduleConfig(**kwargs)
    return [factor(config, step, total) for step in range(total + 1)]


def test_warmup_is_linear_and_does_not_waste_the_first_step() -> None:
    assert curve(warmup=4, kind="constant")[:6] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert curve(warmup=0.04, kind="constant") == curve(warmup=4, kind="constant")
    assert curve(warmup=0, kind="constant")[0] == 1


def test_cosine_and_linear() -> None:
    cosine, linear = (curve(kind=kind, warmup=20, final=0.1) for kind in ("cosine", "linear"))
    assert cosine[20] == linear[20] == 1
    assert cosine[60] == pytest.approx(0.55)
    assert linear[60] == pytest.approx(0.55)
    assert cosine[100] == pytest.approx(0.1)
    assert linear[100] == pytest.approx(0.1)
    assert cosine[40] > linear[40]


def test_wsd_is_flat_then_falls() -> None:
    flat = curve(kind="wsd", warmup=10, decay=0.2)
    assert flat[9:81] == [1] * 72
    assert flat[90] == pytest.approx(0.5)
    assert flat[100] == pytest.approx(0)
    root = curve(kind="wsd", warmup=10, decay=20, shape="1-sqrt")
    assert root[90] == pytest.approx(1 - math.sqrt(0.5))


def test_past_the_end_stays_at_final() -> None:
    assert factor(ScheduleConfig(final=0.1), 1000, 100) == pytest.approx(0.1)


def test_an_endless_run_needs_a_constant_schedule_with_warmup_in_steps() -> None:
    endless = ScheduleConfig(kind="constant", warmup=10)
    assert not endless.needs_length
    assert factor(endless, 10**9, math.inf) == 1
    assert ScheduleConfig(kind="constant", warmup=0.1).needs_length
    assert ScheduleConfig(kind="wsd", warmup=10).needs_length


@given(
    kind=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    warmup=st.one_of(st.floats(0, 0.999), st.integers(1, 300)),
    final=st.floats(0, 1),
    decay=st.one_of(st.floats(0.01, 1), st.integers(2, 300)),
    total=st.integers(1, 200),
)
def test_always_a_factor_that_rises_once_and_then_falls(kind, warmup, final, decay, total) -> None:
    values = curve(total, kind=kind, warmup=warmup, final=final, decay=decay)[:total]
    assert all(0 <= value <= 1 for value in values)
    assert values[0] > 0
    signs = [b > a for a, b in itertools.pairwise(values) if not math.isclose(a, b)]
    assert signs == sorted(signs, reverse=True)


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "step"), ("warmup", -1), ("final", 1.5), ("decay", 0.0), ("shape", "cubic")]
)
def test_bad_values_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"schedule\.{field} is .* but must be"):
        ScheduleConfig(**{field: value})
