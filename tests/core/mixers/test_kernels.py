"""Every kernel equals the readable reference, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.masks import AttentionMask
from triune.core.mixers import kernels
from triune.core.mixers.kernels import Plan, attend, force_kernel, plan, reference_attention
from triune.core.sparse import SparseConfig
from triune.core.transformer import Transformer

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def documents_of(lengths: list[int], tokens: int) -> Tensor:
    """Ids 0, 1, 2, … of consecutive documents, the last one filling the row."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[:tokens]
    return torch.cat([ids, ids.new_full((tokens - len(ids),), len(lengths))])


def padding_of(side: str, real: list[int], tokens: int) -> Tensor:
    """True for real tokens: `real` of each row, the padding on its left or right."""
    index = torch.arange(tokens)
    rows = [index < n if side == "right" else index >= tokens - n for n in real]
    return torch.stack(rows)


@st.composite
def problems(draw: st.DrawFn, kernel: str) -> dict[str, Any]:
    """Shapes and a mask that `kernel` can express."""
    tokens = draw(st.integers(1, 33), "tokens")
    batch, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    mask: dict[str, Any] = {"causal": draw(st.booleans())}
    dense, square = kernel in ("masked", "reference"), kernel == "banded"
    if kernel == "sdpa":
        mask["window"] = draw(st.none() | st.integers(tokens, tokens + 5))
        square = mask["causal"]
    elif dense:
        mask["window"] = draw(st.none() | st.integers(1, tokens + 5))
    else:
        tokens = max(tokens, 2)
        mask["window"] = draw(st.integers(1, tokens - 1))
    if kernel != "sdpa" and draw(st.booleans()):
        lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)
        mask["documents"] = torch.stack([documents_of(draw(lengths), tokens) for _ in range(batch)])
    if kernel != "sdpa" and draw(st.booleans()):
        real = draw(st.lists(st.integers(1, tokens), min_size=batch, max_size=batch))
        mask["valid"] = padding_of(draw(st.sampled_from(["left", "right"])), real, tokens)
    queries = tokens if square else draw(st.integers(1, tokens), "queries")
    bias = draw(st.none() | st.tuples(st.booleans(), st.booleans())) if dense else None
    if bias is not None:
        bias = (batch if bias[0] else 1, kv_heads * groups if bias[1] else 1, queries, tokens)
    return {
        "batch": batch, "heads": kv_heads * groups, "kv_heads": kv_heads, "queries": queries, "keys": tokens,
        "mask": mask,
        "bias": bias, "seed": draw(st.integers(0, 99)), "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }  # fmt: skip


def inputs(problem: dict[str, Any], device: torch.device = CPU) -> tuple[list[Tensor], AttentionMask]:
    """q, k, v and, where the problem has one, bias; and the mask that holds the bias."""
    torch.manual_seed(problem["seed"])
    queries, keys, head_dim = problem["queries"], problem["keys"], problem.get("head_dim", 4)
    shapes = [(problem["batch"], problem["heads"], queries, head_dim)]
    shapes += [(problem["batch"], problem["kv_heads"], keys, head_dim)] * 2
    shapes += [problem["bias"]] if problem["bias"] else []
    tensors = [torch.randn(s, dtype=problem["dtype"], device=device).requires_grad_() for s in shapes]
    mask = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in problem["mask"].items()}
    return tensors, AttentionMask(**mask, bias=tensors[3] if problem["bias"] else None)


def value_and_gradients(run: Callable[[], Tensor], leaves: list[Tensor], real: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The rows of real tokens, and the gradients that a random cotangent on them sends back."""
    out = run()
    assert out.isfinite().all()
    torch.manual_seed(1)
    out = out * real[:, None, :, None]
    grads = torch.autograd.grad(out, leaves, torch.randn(out.shape, dtype=out.dtype, device=out.device))
    assert all(g.isfinite().all() for g in grads)
    return out, list(grads)


def check_against_reference(problem: dict[str, Any], choose: Callable[[AttentionMask], Plan], **where: Any) -> None:
    leaves, mask = inputs(problem, **where)
    q, k, v = leaves[:3]
    queries, keys = problem["queries"], problem["keys"]
    ones = torch.ones(problem["batch"], keys, dtype=torch.bool, device=q.device)
    real = (ones if mask.valid is None else mask.valid)[:, keys - queries :]
    scale, softcap = 0.4, problem.get("softcap")
    allowed = mask.allowed(queries, keys, q.device)
    expected = value_and_gradients(
        lambda: reference_attention(q, k, v, allowed, mask.bias, scale, softcap), leaves, real
    )
    found = value_and_gradients(lambda: attend(q, k, v, choose(mask), scale), leaves, real)
    tolerance = problem.get("tolerance") or TOLERANCE[problem["dtype"]]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


BANDED_CORNERS = {
    "batch": 2, "heads": 2, "kv_heads": 1, "queries": 13, "keys": 13, "bias": None, "seed": 0, "dtype": torch.float64,
}  # fmt: skip


@pytest.mark.parametrize("kernel", ["sdpa", "masked", "reference"])
def test_kernel_equals_reference(kernel: str) -> None:
    @settings(max_examples=60)
    @given(problems(kernel))
    def check(problem: dict[str, Any]) -> None:
        def choose(mask: AttentionMask) -> Plan:
            with force_kernel(kernel):
                chosen = plan(mask, problem["queries"], problem["keys"], CPU)
            assert chosen.kernel == kernel
            return chosen

        check_against_reference(problem, choose)

    check()


@st.composite
def patterns(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and a mask of blocks, or of a window with global tokens; padding on the right."""
    tokens, batch, kv_heads = draw(st.integers(1, 40)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    causal, groups = draw(st.booleans()), draw(st.integers(1, 2))
    small = st.integers(0, 2)
    mask: dict[str, Any] = {"causal": causal}
    if windowed := draw(st.booleans()):
        mask["window"] = draw(st.integers(1, max(1, tokens - 1)))
    else:
        mask["sparse"] = SparseConfig(
            draw(st.integers(1, 9)), draw(small), draw(small), 0 if causal else draw(small), draw(small), draw(small)
        )
    if windowed or draw(st.booleans()):
        flags = draw(st.lists(st.booleans(), min_size=tokens * batch, max_size=tokens * batch))
        mask["global_tokens"] = torch.tensor(flags).view(batch, tokens)
    if draw(st.booleans()):
        real = draw(st.lists(st.integers(1, tokens), min_size=batch, max_size=batch))
        mask["valid"] = padding_of("right", real, tokens)
    return {
        "batch": batch, "heads": kv_heads * groups, "kv_heads": kv_heads, "queries": tokens, "keys": tokens,
        "mask": mask, "bias": None, "seed": draw(st.integers(0, 99)), "dtype": torch.float64,
    }  # fmt: skip


@settings(max_examples=150)
@given(patterns())
def test_blocked_equals_reference(problem: dict[str, Any]) -> None:
    def choose(mask: AttentionMask) -> Plan:
        with force_kernel("blocked"):
            chosen = plan(mask, problem["queries"], problem["keys"], CPU)
        assert chosen.kernel == "blocked" or (mask.window or 0) >= problem["keys"]
        return chosen

    check_against_reference(problem, choose)


@pytest.mark.parametrize("kind", ["masked", "reference"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prefix_and_blocks_with_padding_documents_and_a_bias(kind: str, side: str) -> None:
    prefix = torch.arange(12) < torch.tensor([[3], [9]])
    documents = torch.tensor([[0] * 7 + [1] * 5, [0] * 12])
    hubs = torch.zeros(2, 12, dtype=torch.bool)
    hubs[0, 8] = hubs[1, 5] = True
    for mask in (
        {"causal": True, "prefix": prefix},
        {"causal": True, "prefix": prefix, "window": 4},
        {"causal": True, "prefix": prefix, "documents": documents},
        {"sparse": SparseConfig(2, 1, 1, 1, 1), "documents": documents},
        {"causal": True, "sparse": SparseConfig(3, 0, 1, 0, 1)},
        {"window": 3, "global_tokens": hubs, "documents": documents},
    ):
        for bias in (None, (2, 2, 12, 12)):
            valid = padding_of(side, [12, 9], 12)
            problem = BANDED_CORNERS | {"mask": mask | {"valid": valid}, "queries": 12, "keys": 12, "bias": bias}

            def choose(mask: AttentionMask) -> Plan:
                with force_kernel(kind):
                    return plan(mask, 12, 12, CPU)

            check_against_reference(problem, choose)


def test_blocked_is_chosen_where_it_saves() -> None:
    big, small = SparseConfig(64, 1, 1, 1, 2), SparseConfig(64, 4)
    assert str(plan(AttentionMask(sparse=big), 1024, 1024, CPU)) == "blocked (blocks and global tokens)"
    assert plan(AttentionMask(sparse=small), 1024, 1024, CPU).kernel == "masked"
    hubs = torch.arange(1024)[None] < 3
    assert plan(AttentionMask(window=64, global_tokens=hubs), 1024, 1024, CPU).kernel == "blocked"
    left = padding_of("left", [1000], 1024)  # whose blocks begin where the row does
    assert plan(AttentionMask(sparse=big, valid=left), 1024, 1024, CPU).kernel == "masked"
    assert plan(AttentionMask(sparse=big, causal=True), 1, 1024, CPU).kernel == "masked"
    assert plan(AttentionMask(global_tokens=hubs), 1024, 1024, CPU).kernel == "sdpa"  # nothing is limited


@settings(max_examples=100)
@given(problems("banded"))
@example(BANDED_CORNERS | {"mask": {"causal": True, "window": 1}})
@example(BANDED_CORNERS | {"mask": {"causal": False, "window": 12}})
@example(BANDED_CORNERS | {"mask": {"causal": True, "window": 5, "valid": padding_of("left", [1, 13], 13)}})
def test_banded_equals_reference(problem: dict[str, Any]) -> None:
    def choose(mask: AttentionMask) -> Plan:
        with force_kernel("banded"):
            chosen = plan(mask, problem["queries"], problem["keys"], CPU)
        assert chosen.kernel == "banded"
        return chosen

    check_against_reference(problem, choose)


@settings(max_examples=40)
@given(problems("masked"), st.floats(0.5, 50.0))
def test_soft_capped_scores_equal_reference(problem: dict[str, Any], softcap: float) -> None:
    def choose(mask: AttentionMask) -> Plan:
        return plan(mask, problem["queries"], problem["keys"], CPU, softcap)

    check_against_reference(problem | {"softcap": softcap}, choose)


@settings(max_examples=60)
@given(problems("masked"))
def test_the_kernel_chosen_by_itself_equals_reference(problem: dict[str, Any]) -> None:
    check_against_reference(problem, lambda mask: plan(mask, problem["queries"], problem["keys"], CPU))


@pytest.mark.parametrize("tokens", [1, 6])
def test_cross_attention_equals_reference(tokens: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 4, requires_grad=True) for n in (tokens, 5, 5))
    padding = padding_of("right", [2, 5], 5)
    for mask in (AttentionMask(cross=True), AttentionMask(cross=True, valid=padding)):
        out = attend(q, k, v, plan(mask, tokens, 5, CPU), 0.5)
        expected = reference_attention(q, k, v, mask.allowed(tokens, 5), scale=0.5)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    assert torch.autograd.grad(out.sum(), k)[0][0, :, 2:].abs().max() == 0


def test_reference_is_the_equation() -> None:
    """One query by hand: softmax over the visible keys only, then the weighted mean of their values."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 3, 2, dtype=torch.float64) for _ in range(3))
    allowed = torch.tensor([[[[True, False, True]] * 3]])
    out = reference_attention(q, k, v, allowed, scale=0.7)
    weights = [(0.7 * (q[0, 0, 1] @ k[0, 0, j])).exp() for j in (0, 2)]
    expected = (weights[0] * v[0, 0, 0] + weights[1] * v[0, 0, 2]) / (weights[0] + weights[1])
    torch.testing.assert_close(out[0, 0, 1], expected)


SEGMENTS = torch.zeros(2, 64, dtype=torch.long)
CHOICES = [
    ("sdpa", "causal", AttentionMask(causal=True), 64, 64),
    ("sdpa", "every token", AttentionMask(), 64, 64),
    ("sdpa", "causal", AttentionMask(causal=True), 1, 64),
    ("sdpa", "causal", AttentionMask(causal=True, window=64), 64, 64),
    ("sdpa", "every token", AttentionMask(cross=True), 7, 64),
    ("masked", "dense", AttentionMask(causal=True), 8, 64),
    ("masked", "dense", AttentionMask(valid=SEGMENTS.bool()), 64, 64),
    ("masked", "dense", AttentionMask(causal=True, documents=SEGMENTS), 64, 64),
    ("masked", "bias", AttentionMask(bias=torch.zeros(1, 1, 64, 64)), 64, 64),
    ("masked", "dense", AttentionMask(causal=True, window=40), 64, 64),
    ("banded", "window 8 of 64", AttentionMask(causal=True, window=8), 64, 64),
    ("banded", "window 8 of 64", AttentionMask(window=8, documents=SEGMENTS), 64, 64),
]


@pytest.mark.parametrize(("kernel", "why", "mask", "queries", "keys"), CHOICES)
def test_plan_chooses_and_says_why(kernel: str, why: str, mask: AttentionMask, queries: int, keys: int) -> None:
    chosen = plan(mask, queries, keys, CPU)
    assert chosen.kernel == kernel
    assert str(chosen).startswith(f"{kernel} (")
    assert why in str(chosen)


def test_soft_cap_needs_the_reference_on_a_cpu() -> None:
    chosen = plan(AttentionMask(causal=True), 8, 8, CPU, softcap=30.0)
    assert str(chosen) == "reference (soft-capped scores)"


def test_causal_sdpa_holds_no_mask_and_is_never_used_behind_a_cache() -> None:
    whole = plan(AttentionMask(causal=True), 8, 8, CPU)
    assert whole.allowed is None
    assert whole.causal
    assert not plan(AttentionMask(causal=True), 1, 8, CPU).causal
    assert plan(AttentionMask(causal=True), 2, 8, CPU).kernel == "masked"


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_does_not_cost_the_square(causal: bool) -> None:
    tokens, window = 4096, 16
    span = 2 if causal else 3
    q, k, v = (torch.randn(1, 1, tokens, 4) for _ in range(3))
    with LargestTensor() as largest:
        chosen = plan(AttentionMask(causal=causal, window=window), tokens, tokens, CPU)
        attend(q, k, v, chosen, 0.5)
    assert chosen.kernel == "banded"
    assert chosen.allowed is not None
    assert chosen.allowed.numel() == span * tokens * window
    assert largest.elements <= span * tokens * window
    with LargestTensor() as square, force_kernel("masked"):
        plan(AttentionMask(causal=causal, window=window), tokens, tokens, CPU)
    assert square.elements == tokens * tokens  # so the check above can fail


def test_force_kernel() -> None:
    with pytest.raises(
        UserError, match="kernel is 'flash', but must be one of reference, sdpa, masked, banded, blocked, flex"
    ):
        force_kernel("flash").__enter__()
    with force_kernel("banded"):
        chosen = plan(AttentionMask(causal=True), 8, 8, CPU)
        assert str(chosen) == "masked (banded cannot express this mask)"
        with force_kernel("reference"):
            assert plan(AttentionMask(causal=True), 8, 8, CPU).kernel == "reference"
    assert plan(AttentionMask(causal=True), 8, 8, CPU).kernel == "sdpa"


def test_attention_dropout_keeps_the_mean_in_every_kernel() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 8, 4), torch.randn(1, 1, 8, 4), torch.ones(4000, 1, 8, 4)
    q, k = q.expand(4000, -1, -1, -1), k.expand(4000, -1, -1, -1)
    for kernel in ("reference", "sdpa", "masked", "banded"):
        with force_kernel(kernel):
            chosen = plan(AttentionMask(causal=True, window=3 if kernel == "banded" else None), 8, 8, CPU)
        assert chosen.kernel == kernel
        out = attend(q, k, v, chosen, 0.5, dropout=0.25)
        assert out.std() > 0.1
        assert abs(out.mean() - 1) < 0.02


# --- block-sparse attention -------------------------------------------------------------------------------------------

FLEX = [
    {"mask": {"causal": True, "window": 20}},
    {"mask": {"causal": False, "window": 20}},
    {"mask": {"causal": True, "documents": torch.stack([documents_of([100, 3, 80], 260), documents_of([1], 260)])}},
    {"mask": {"causal": False, "valid": padding_of("left", [200, 1], 260)}},
    {"mask": {"causal": True, "window": 30, "valid": padding_of("right", [200, 260], 260)}, "softcap": 5.0},
    {"mask": {"causal": True, "prefix": torch.arange(260) < torch.tensor([[30], [120]])}},
    {"mask": {"window": 20, "global_tokens": torch.arange(260) % 97 == torch.tensor([[0], [5]])}},
    {"mask": {"sparse": SparseConfig(16, 1, 1, 1, 2), "valid": padding_of("left", [200, 260], 260)}},
    {"mask": {"causal": True, "sparse": SparseConfig(16, 1, 1, 0, 2)}},
]
FLEX_SHAPE = {
    "batch": 2,
    "heads": 4,
    "kv_heads": 2,
    "queries": 260,
    "keys": 260,
    "bias": None,
    "seed": 0,
    "head_dim": 16,
}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("case", FLEX, ids=lambda case: str(sorted(case["mask"])))
def test_flex_mask_and_score_functions_equal_reference(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions handed to FlexAttention, run without its compiler; forward only, on a CPU it has no backward."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    monkeypatch.setattr(kernels, "_compiled_block_mask", lambda: create_block_mask)
    monkeypatch.setattr(kernels, "_flex", lambda: flex_attention)
    problem = FLEX_SHAPE | case | {"dtype": torch.float32}
    leaves, mask = inputs(problem)
    q, k, v = (leaf.detach() for leaf in leaves)
    block_mask = kernels._block_mask(mask, 260, 260, CPU)
    softcap = case.get("softcap")
    out = attend(q, k, v, Plan("flex", "test", softcap=softcap, block_mask=block_mask), 0.4)
    expected = reference_attention(q, k, v, mask.allowed(260, 260), None, 0.4, softcap)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", FLEX, ids=lambda case: str(sorted(case["mask"])))
def test_flex_equals_reference_on_cuda(case: dict[str, Any]) -> None:
    device = torch.device("cuda")

    def choose(mask: AttentionMask) -> Plan:
        chosen = plan(mask, 260, 260, device, case.get("softcap"))
        assert chosen.kernel == "flex"
        return chosen

    # FlexAttention multiplies in tf32 or splits the sum differently; 2e-3 still tells one wrong key apart.
    problem = FLEX_SHAPE | case | {"dtype": torch.float32, "tolerance": 2e-3}
    check_against_reference(problem, choose, device=device)


def test_a_forced_kernel_is_forced_in_its_own_thread_only() -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    together = Barrier(2, timeout=30)

    def chosen(forced: str | None) -> list[str]:
        found = []
        with force_kernel(forced) if forced else nullcontext():
            for _ in range(3):
                together.wait()
                found.append(plan(AttentionMask(causal=True), 8, 8, CPU).kernel)
        together.wait()
        return [*found, plan(AttentionMask(causal=True), 8, 8, CPU).kernel]

    with ThreadPoolExecutor(2) as pool:
        forced, free = pool.map(chosen, ["reference", None])
    assert forced == ["reference"] * 3 + ["sdpa"]
    assert free == ["sdpa"] * 4


@pytest.mark.parametrize("kernel", ["masked", "reference"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_bias_of_another_type_counts_as_it_is(kernel: str, softcap: float | None, dtype: torch.dtype) -> None:
    """Value and gradients are those of the same numbers in the type of the queries."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 7, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 7, 7).to(dtype).requires_grad_()
    same = bias.detach().float().requires_grad_()
    found = []
    for one in (bias, same):
        with force_kernel(kernel):
            chosen = plan(AttentionMask(causal=True, bias=one), 7, 7, CPU, softcap)
        out = attend(q, k, v, chosen, 0.5).float()
        grads = torch.autograd.grad(out.square().sum(), [q, k, v, one])
        assert grads[3].dtype == one.dtype
        found.append([out, *grads])
    rounding = 2e-3 if dtype == torch.float16 else 2e-2 if dtype == torch.bfloat16 else 1e-5
    for one, two, allowed in zip(*found, (*[1e-5] * 4, rounding), strict=True):
        torch.testing.assert_close(one.float(), two, atol=allowed, rtol=allowed)


@pytest.mark.parametrize("window", [4, [4, None]])
def test_a_window_is_one_graph_for_all_lengths(window: int | list[int | None]) -> None:
    """Lengths of a compiled model that take the same kernel share their graph; each other kernel adds one."""
    from torch._dynamo.testing import CompileCounter

    torch.manual_seed(0)
    config = TransformerConfig(dim=16, depth=2, heads=2, causal=True, window=window, context=128)
    model = Transformer(config).eval()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=True)
    with torch.no_grad():
        for tokens in (40, 41, 57, 64, 90):
            x = torch.randn(1, tokens, 16)
            torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
