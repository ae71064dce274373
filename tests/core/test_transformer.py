"""The block and the stack against torch.nn, against short equations, and against themselves without packing or
padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.attention import Attention
from triune.core.mixers.kernels import force_kernel, reference_attention
from triune.core.rotary import RotaryConfig
from triune.core.transformer import Block, Transformer

F64 = torch.float64
TOLERANCE = {torch.float32: 1e-6, F64: 1e-12}
DIM, HEADS, DEPTH, BATCH, TOKENS, MEMORY = 16, 4, 2, 3, 7, 5

Pair = tuple[nn.Parameter, nn.Parameter, int | None]
"""One of our parameters, theirs, and which third of theirs it is."""


def build(**values: Any) -> Transformer:
    torch.manual_seed(0)
    config = {"dim": DIM, "heads": HEADS, "depth": DEPTH, "ffn_dim": 24, "init_std": 0.3}
    model = Transformer(TransformerConfig(**config | values)).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return model


# --- torch.nn ---------------------------------------------------------------------------------------------------------


def attention_pairs(mine: Attention, theirs: nn.MultiheadAttention) -> Iterator[Pair]:
    for part, layer in enumerate((mine.q, mine.k, mine.v)):
        yield layer.weight, theirs.in_proj_weight, part
        yield layer.bias, theirs.in_proj_bias, part
    yield from module_pairs(mine.out, theirs.out_proj)


def module_pairs(mine: nn.Module, theirs: nn.Module) -> Iterator[Pair]:
    for name, parameter in mine.named_parameters():
        yield parameter, theirs.get_parameter(name), None


def block_pairs(mine: Block, theirs: nn.Module) -> Iterator[Pair]:
    norms = "norm" if isinstance(mine.close1, nn.Identity) else "close"
    names = ["1", "2"] if mine.cross is None else ["1", "_cross", "2"]
    for number, name in enumerate(names, 1):
        yield from module_pairs(getattr(mine, norms + name), getattr(theirs, f"norm{number}"))
    yield from attention_pairs(mine.attn, theirs.self_attn)  # pyright: ignore[reportArgumentType]
    if mine.cross is not None:
        yield from attention_pairs(mine.cross, theirs.multihead_attn)  # pyright: ignore[reportArgumentType]
    yield from module_pairs(mine.ffn.up, theirs.linear1)  # pyright: ignore[reportArgumentType]
    yield from module_pairs(mine.ffn.down, theirs.linear2)  # pyright: ignore[reportArgumentType]


def stack_pairs(mine: Transformer, theirs: Any) -> list[Pair]:
    pairs = [p for a, b in zip(mine.blocks, theirs.layers, strict=True) for p in block_pairs(a, b)]
    if theirs.norm is not None:
        pairs += module_pairs(mine.final_norm, theirs.norm)
    assert len(pairs) == len(list(mine.parameters())), "each of our parameters has its counterpart"
    return pairs


def third(tensor: Tensor, part: int | None) -> Tensor:
    return tensor if part is None else tensor.chunk(3)[part]


def copy(pairs: list[Pair]) -> None:
    with torch.no_grad():
        for theirs in {id(t): t for _, t, _ in pairs}.values():
            nn.init.normal_(theirs, mean=float(theirs.dim() == 1), std=0.3)
        for mine, theirs, part in pairs:
            mine.copy_(third(theirs, part))


def check_equal(mine: Tensor, theirs: Tensor, pairs: list[Pair], inputs: list[Tensor], real: Tensor) -> None:
    """Outputs at real tokens, and the gradients of parameters and inputs, agree."""
    tolerance = TOLERANCE[mine.dtype]
    mine, theirs = mine * real[..., None], theirs * real[..., None]
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
    # A cotangent of unit length in all: gradients then have about the size of the values.
    torch.manual_seed(1)
    cotangent = torch.randn(mine.shape, dtype=mine.dtype) / mine.numel() ** 0.5
    ours = torch.autograd.grad(mine, [p for p, _, _ in pairs] + inputs, cotangent)
    unique = list({id(t): t for _, t, _ in pairs}.values())
    others = torch.autograd.grad(theirs, unique + inputs, cotangent)
    by_id = {id(t): g for t, g in zip(unique, others)}
    for (_, parameter, part), grad in zip(pairs, ours):
        expected = third(by_id[id(parameter)], part)
        torch.testing.assert_close(grad, expected, atol=tolerance, rtol=tolerance)
        assert expected.dim() == 1 or expected.abs().max() > 20 * tolerance
    torch.testing.assert_close(ours[len(pairs) :], others[len(unique) :], atol=tolerance, rtol=tolerance)


def vectors(tokens: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(BATCH, tokens, DIM, dtype=dtype).requires_grad_()


def lengths(real: list[int], tokens: int) -> Tensor:
    return torch.arange(tokens) < torch.tensor(real)[:, None]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "both"])
def test_blocks_equal_torch_encoder_layers(dtype: torch.dtype, norm_first: bool, act: str, masks: str) -> None:
    torch.manual_seed(0)
    causal, padded = masks in ("causal", "both"), masks in ("padding", "both")
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, 24, dropout=0.0, activation=act, batch_first=True, norm_first=norm_first, dtype=dtype
    )
    theirs = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
    mine = build(
        ffn=act, placement="pre" if norm_first else "post", position="none", final_norm=False, causal=causal
    ).to(dtype)  # fmt: skip
    pairs = stack_pairs(mine, theirs)
    copy(pairs)
    x = vectors(TOKENS, dtype)
    real = lengths([TOKENS, 4, 1], TOKENS) if padded else lengths([TOKENS] * BATCH, TOKENS)
    expected = theirs(
        x, mask=nn.Transformer.generate_square_subsequent_mask(TOKENS).isinf() if causal else None, is_causal=causal,
        src_key_padding_mask=~real if padded else None,
    )  # fmt: skip
    check_equal(mine(x, valid=real if padded else None), expected, pairs, [x], real)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_encoder_and_decoder_equal_torch_transformer(dtype: torch.dtype, norm_first: bool, padded: bool) -> None:
    """The model of 2017 from two stacks of the same block; torch adds a norm after each stack."""
    torch.manual_seed(0)
    theirs = nn.Transformer(
        DIM, HEADS, DEPTH, DEPTH, 24, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=dtype
    )
    common = {
        "ffn": "relu", "placement": "pre" if norm_first else "post", "position": "none", "final_norm": True,
    }  # fmt: skip
    encoder, decoder = build(**common).to(dtype), build(**common, causal=True, cross_attention=True).to(dtype)
    pairs = stack_pairs(encoder, theirs.encoder) + stack_pairs(decoder, theirs.decoder)
    copy(pairs)
    source, target = vectors(MEMORY, dtype), vectors(TOKENS, dtype)
    real_source = lengths([MEMORY, 3, 1], MEMORY) if padded else None
    real = lengths([TOKENS, 2, 5], TOKENS) if padded else lengths([TOKENS] * BATCH, TOKENS)
    expected = theirs(
        source, target, tgt_mask=nn.Transformer.generate_square_subsequent_mask(TOKENS).isinf(), tgt_is_causal=True,
        src_key_padding_mask=None if real_source is None else ~real_source,
        tgt_key_padding_mask=~real if padded else None,
        memory_key_padding_mask=None if real_source is None else ~real_source,
    )  # fmt: skip
    memory = encoder(source, valid=real_source)
    out = decoder(target, valid=real if padded else None, memory=memory, memory_valid=real_source)
    check_equal(out, expected, pairs, [source, target], real)


# --- equations --------------------------------------------------------------------------------------------------------


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, DIM // HEADS)).transpose(1, 2)


def attention(attn: Attention, x: Tensor, **norms: Any) -> Tensor:
    """softmax(q·k) v with the norms that `norms` names, without positions or masks."""
    q, k, v = attn.q(x), attn.k(x), attn.v(x)
    if norms.get("full"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    q, k, v = heads(q), heads(k), heads(v)
    if norms.get("head"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    z = reference_attention(q, k, v).transpose(1, 2).flatten(2)
    return attn.out(attn.inner_norm(z) if attn.inner_norm is not None else z)


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def one_block(**values: Any) -> tuple[Transformer, Any, Tensor]:
    model = build(depth=1, position="none", final_norm=False, **values)
    return model, model.blocks[0], torch.randn(2, TOKENS, DIM, dtype=F64)


def test_pre_and_post_norm() -> None:
    model, block, x = one_block()
    y = x + attention(block.attn, block.norm1(x))
    equal(model(x), y + block.ffn(block.norm2(y)))
    model, block, x = one_block(placement="post")
    y = block.close1(x + attention(block.attn, x))
    equal(model(x), block.close2(y + block.ffn(y)))


def test_parallel_residual() -> None:
    model, block, x = one_block(parallel=True)
    equal(model(x), x + attention(block.attn, block.norm1(x)) + block.ffn(block.norm2(x)))
    model, block, x = one_block(parallel=True, shared_norm=True, residual_scale=0.3)
    y = block.norm1(x)
    equal(model(x), x + 0.3 * attention(block.attn, y) + 0.3 * block.ffn(y))
    assert not list(block.norm2.parameters())


def test_norms_at_the_end_of_each_branch() -> None:
    model, block, x = one_block(placement="branch", residual_scale=0.3)
    y = x + 0.3 * block.branch1.norm(attention(block.attn, x))
    equal(model(x), y + 0.3 * block.branch2.norm(block.ffn(y)))


def test_a_first_block_without_its_first_norm() -> None:
    model, x = build(position="none", first_norm=False, final_norm=False), torch.randn(2, TOKENS, DIM, dtype=F64)
    first, second = (block for block in model.blocks)
    y = x + attention(first.attn, x)  # type: ignore[arg-type, union-attr]
    y = y + first.ffn(first.norm2(y))  # type: ignore[operator, union-attr]
    z = y + attention(second.attn, second.norm1(y))  # type: ignore[arg-type, operator, union-attr]
    equal(model(x), z + second.ffn(second.norm2(z)))  # type: ignore[operator, union-attr]


def test_rows_of_a_learned_table_before_position_0() -> None:
    model = build(position="learned", context=TOKENS, position_offset=2, depth=1)
    plain = build(position="none", depth=1)
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if name != "positions.weight"})
    x, table = torch.randn(2, TOKENS, DIM, dtype=F64), model.get_parameter("positions.weight")
    assert table.shape == (2 + TOKENS, DIM)
    equal(model(x), plain(x + table[2:]))
    with pytest.raises(UserError, match=f"context = {TOKENS} rows"):
        model(torch.randn(2, TOKENS + 1, DIM, dtype=F64))


def test_sandwich() -> None:
    model, block, x = one_block(placement="sandwich", norm="rmsnorm", norm_weight="offset")
    y = x + block.branch1.norm(attention(block.attn, block.norm1(x)))
    equal(model(x), y + block.branch2.norm(block.ffn(block.norm2(y))))


@pytest.mark.parametrize("qk_norm", ["head", "full"])
def test_qk_norm(qk_norm: str) -> None:
    model, block, x = one_block(qk_norm=qk_norm)
    assert block.attn.q_norm.weight.shape == ((DIM // HEADS,) if qk_norm == "head" else (DIM,))
    y = x + attention(block.attn, block.norm1(x), **{qk_norm: True})
    equal(model(x), y + block.ffn(block.norm2(y)))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_qk_norm_with_a_gain_for_each_head(norm: str, kv_heads: int) -> None:
    model, block, x = one_block(qk_norm="per_head", norm=norm, kv_heads=kv_heads)
    attn, size = block.attn, DIM // HEADS
    assert attn.q_norm.bias is attn.k_norm.bias is None and attn.k_norm.weight.shape == (kv_heads * size,)

    def normalised(x: Tensor, weight: Tensor) -> Tensor:
        parts = []
        for part, gain in zip(x.split(size, -1), weight.split(size)):
            part = part - part.mean(-1, keepdim=True) if norm == "layernorm" else part
            parts.append(part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain)
        return torch.cat(parts, -1)

    y = block.norm1(x)
    q, k = normalised(attn.q(y), attn.q_norm.weight), normalised(attn.k(y), attn.k_norm.weight)
    k, v = (heads(t).repeat_interleave(HEADS // kv_heads, dim=1) for t in (k, attn.v(y)))
    y = x + attn.out(reference_attention(heads(q), k, v).transpose(1, 2).flatten(2))
    equal(model(x), y + block.ffn(block.norm2(y)))


def test_inner_norms() -> None:
    model, block, x = one_block(inner_norm=["attention", "ffn"])
    y = x + attention(block.attn, block.norm1(x))
    hidden = block.ffn.inner_norm(F.gelu(block.ffn.up(block.norm2(y))))
    equal(model(x), y + block.ffn.down(hidden))


def test_input_norm_comes_after_the_positions_and_final_norm_last() -> None:
    model = build(depth=1, position="learned", context=TOKENS, input_norm=True)
    plain = build(depth=1, position="none", final_norm=False)
    plain.blocks.load_state_dict(model.blocks.state_dict())
    x = torch.randn(2, TOKENS, DIM, dtype=F64)
    table = model.get_parameter("positions.weight")
    equal(model(x), model.final_norm(plain(model.input_norm(x + table))))


def test_layer_scale_multiplies_each_branch() -> None:
    model, block, x = one_block(layer_scale=0.5)
    y = x + 0.5 * attention(block.attn, block.norm1(x))
    equal(model(x), y + 0.5 * block.ffn(block.norm2(y)))


def test_scale_and_softcap_of_the_scores() -> None:
    model, block, x = one_block(attention_scale=0.9, attention_softcap=1.5)
    q, k, v = (heads(f(block.norm1(x))) for f in (block.attn.q, block.attn.k, block.attn.v))
    weights = (1.5 * torch.tanh(0.9 * q @ k.mT / 1.5)).softmax(-1)
    y = x + block.attn.out((weights @ v).transpose(1, 2).flatten(2))
    equal(model(x), y + block.ffn(block.norm2(y)))


def test_bias_on_the_scores_reaches_every_layer_and_has_a_gradient() -> None:
    model, x = build(position="none"), torch.randn(2, TOKENS, DIM, dtype=F64)
    bias = torch.randn(1, HEADS, TOKENS, TOKENS, dtype=F64, requires_grad=True)
    with force_kernel("reference"):
        expected = model(x, bias=bias)
    equal(model(x, bias=bias), expected)
    assert (expected - model(x)).abs().max() > 1e-3
    grads = [torch.autograd.grad(y.square().sum(), bias)[0] for y in (model(x, bias=bias), expected)]
    equal(*grads)
    assert grads[0].abs().min() > 0


def test_layers_without_position_and_rotary_bases_that_differ() -> None:
    """One list entry a layer: each block must get its own rotation."""
    fast, slow = RotaryConfig(base=10.0), RotaryConfig(base=1e6)
    mixed = build(depth=3, rotary=[fast, None, slow], final_norm=False)
    x = y = torch.randn(2, TOKENS, DIM, dtype=F64)
    for layer, rotary in enumerate((fast, None, slow)):
        alone = build(depth=1, rotary=[rotary], final_norm=False)
        alone.blocks[0].load_state_dict(mixed.blocks[layer].state_dict())
        y = alone(y)
    equal(mixed(x), y)


# --- packing and padding ----------------------------------------------------------------------------------------------

POSITIONS = ["none", "learned", "sinusoidal", "rotary", "dynamic", "longrope"]
GROWING: dict[str, Any] = {
    "dynamic": {"rotary": RotaryConfig(scaling="dynamic", factor=4.0, original_context=5)},
    "longrope": {
        "rotary": RotaryConfig(
            scaling="longrope", factor=4.0, original_context=5, short_factors=[1.0, 2.0], long_factors=[3.0, 9.0]
        ),
    },
}  # fmt: skip
"""Rotations that depend on the length of each document, some of which are longer than the original context."""


def placed(position: str, **values: Any) -> Transformer:
    position, more = ("rotary", GROWING[position]) if position in GROWING else (position, {})
    return build(position=position, **values, **more)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3, [2, None]])
def test_packed_documents_equal_documents_alone(position: str, causal: bool, window: Any) -> None:
    model = placed(position, causal=causal, window=window, context=20)
    sizes = [5, 1, 7, 4]
    x = torch.randn(2, sum(sizes), DIM, dtype=F64)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes)).expand(2, -1)
    packed = model(x, documents=documents)
    for alone, part in zip(x.split(sizes, 1), packed.split(sizes, 1)):
        torch.testing.assert_close(model(alone), part, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [None, 3])
def test_padded_equals_unpadded(position: str, causal: bool, side: str, window: int | None) -> None:
    model = placed(position, causal=causal, window=window, context=20)
    sizes, tokens = [13, 6, 1], 13
    rows = [torch.randn(1, n, DIM, dtype=F64) for n in sizes]
    x = torch.full((3, tokens, DIM), 7.0, dtype=F64)
    padding = torch.zeros(3, tokens, dtype=torch.bool)
    parts = [slice(tokens - n, tokens) if side == "left" else slice(0, n) for n in sizes]
    for i, (row, part) in enumerate(zip(rows, parts)):
        x[i, part], padding[i, part] = row[0], True
    out = model(x, valid=padding)
    assert out.isfinite().all()
    for i, (row, part) in enumerate(zip(rows, parts)):
        torch.testing.assert_close(model(row)[0], out[i, part], atol=1e-11, rtol=1e-11)


def test_given_positions_replace_the_default() -> None:
    model, x = build(), torch.randn(2, TOKENS, DIM, dtype=F64)
    equal(model(x, positions=torch.arange(TOKENS)), model(x))
    equal(model(x, positions=torch.arange(TOKENS).expand(2, -1) + 40), model(x))
    assert (model(x, positions=3 * torch.arange(TOKENS)) - model(x)).abs().max() > 1e-3


# --- what users build on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [f"blocks.1.{part}" for part in ("attn.q", "attn.out", "attn", "ffn.down", "ffn.up", "norm1", "branch2")]
)
def test_hooks_fire_and_can_change_the_output(name: str) -> None:
    model, x = build(), torch.randn(2, TOKENS, DIM, dtype=F64)
    before, seen = model(x), []

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append(out.shape)
        return out + torch.linspace(0, 1, out.shape[-1], dtype=F64)

    handle = model.get_submodule(name).register_forward_hook(hook)
    changed = model(x)
    handle.remove()
    assert len(seen) == 1
    assert seen[0][:2] == (2, TOKENS)
    assert (changed - before).abs().max() > 1e-4
    equal(model(x), before)


def test_names_of_the_parameters_are_stable() -> None:
    """Saved models and hooks depend on these names: a change here needs a new checkpoint format."""
    names = list(Transformer(TransformerConfig(dim=8, depth=1, heads=2)).state_dict())
    assert names == [
        "blocks.0.norm1.weight", "blocks.0.norm1.bias",
        "blocks.0.attn.q.weight", "blocks.0.attn.q.bias", "blocks.0.attn.k.weight", "blocks.0.attn.k.bias",
        "blocks.0.attn.v.weight", "blocks.0.attn.v.bias", "blocks.0.attn.out.weight", "blocks.0.attn.out.bias",
        "blocks.0.norm2.weight", "blocks.0.norm2.bias",
        "blocks.0.ffn.up.weight", "blocks.0.ffn.up.bias", "blocks.0.ffn.down.weight", "blocks.0.ffn.down.bias",
        "final_norm.weight", "final_norm.bias",
    ]  # fmt: skip
    config = TransformerConfig(
        dim=8, depth=1, heads=2, position="learned", norm="rmsnorm", placement="sandwich", qk_norm="head", ffn="swiglu",
        bias=False, layer_scale=0.1, cross_attention=True, inner_norm=["attention", "ffn"], input_norm=True,
    )  # fmt: skip
    block = ["norm1", "attn.q", "attn.k", "attn.v", "attn.q_norm", "attn.k_norm", "attn.inner_norm", "attn.out"]
    cross = [name.replace("attn.", "cross.") for name in block[1:]]
    expected = ["positions.weight", "input_norm.weight", "final_norm.weight"]
    expected += [f"blocks.0.{name}.weight" for name in [*block, "norm_cross", *cross, "norm2"]]
    expected += [f"blocks.0.ffn.{name}.weight" for name in ("gate", "up", "inner_norm", "down")]
    expected += [
        f"blocks.0.{b}.{end}" for b in ("branch1", "branch_cross", "branch2") for end in ("scale", "norm.weight")
    ]
    assert sorted(Transformer(config).state_dict()) == sorted(expected)


def test_stochastic_depth_in_training_skips_whole_branches() -> None:
    model = build(depth=2, stochastic_depth=0.5, position="none", final_norm=False)
    x = torch.randn(1, TOKENS, DIM, dtype=F64).expand(200, -1, -1)
    kinds = {tuple(row.flatten()[:4].tolist()) for row in model(x)}
    assert len(kinds) == 4  # the last block's two branches, each kept or not; the first block always runs
    assert len({tuple(row.flatten()[:4].tolist()) for row in model.eval()(x)}) == 1


BAD = [
    (
        {},
        {"x": torch.randn(1, 3, DIM + 1)},
        rf"x is float32 \[1, 3, {DIM + 1}\], but must be float \[batch, tokens, {DIM}\] \(dim is {DIM}\)",
    ),
    ({"position": "learned", "context": 2}, {}, "has 3 tokens, but the learned position table has context = 2 rows"),
    ({"cross_attention": True}, {}, r"has cross_attention: give it memory=\[batch, memory tokens, dim\]"),
    ({}, {"memory": torch.randn(1, 2, DIM)}, "memory was given, but this model has no cross_attention"),
]


@pytest.mark.parametrize(("config", "call", "message"), BAD, ids=[case[2][:40] for case in BAD])
def test_bad_input_gets_a_sentence(config: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**config).float()(**({"x": torch.randn(1, 3, DIM)} | call))


def test_compiling_the_blocks_in_place_keeps_names_and_values() -> None:
    model = build(depth=3, causal=True, window=[2, None, 2]).float()
    x = torch.randn(2, TOKENS, DIM)
    names, expected = list(model.state_dict()), model(x)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-6)
    assert list(model.state_dict()) == names
    assert not [name for name in names if "_orig_mod" in name]


def test_new_masks_of_the_same_shape_do_not_compile_again() -> None:
    model = build(depth=3, causal=True).float()
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)

    def run(seed: int) -> None:
        torch.manual_seed(seed)
        documents = torch.randint(0, 3, (2, TOKENS)).sort(dim=1).values
        model(torch.randn(2, TOKENS, DIM), documents=documents).sum().backward()

    run(0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(1)
        run(2)


@pytest.mark.slow
def test_compiled_blocks_equal_eager_ones() -> None:
    model = build(causal=True, ffn="swiglu", norm="rmsnorm", qk_norm="head", kv_heads=2).float()
    x = torch.randn(2, TOKENS, DIM)
    grads = []
    for compiled in (False, True):
        if compiled:
            for block in model.blocks:
                block.compile(fullgraph=True)
        out = model(x)
        grads.append([out, *torch.autograd.grad(out.square().mean(), list(model.parameters()))])
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-4)


SCALINGS = [
    {}, {"scaling": "ntk", "factor": 2.0}, {"scaling": "yarn", "factor": 4.0, "original_context": 32},
    {"scaling": "llama3", "factor": 8.0, "original_context": 32},
    {"scaling": "dynamic", "factor": 8.0, "original_context": 3},
]  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.get("scaling", "plain"))
def test_a_model_made_on_the_meta_device_is_right_once_its_weights_are_there(scaling: dict[str, Any]) -> None:
    config = TransformerConfig(dim=DIM, heads=2, depth=2, rotary=RotaryConfig(**scaling))
    model, x = Transformer(config), torch.randn(2, TOKENS, DIM)
    with torch.device("meta"):
        late = Transformer(config)
    late.to_empty(device="cpu").load_state_dict(model.state_dict())
    torch.testing.assert_close(late(x), model(x), atol=0, rtol=0)
    grads = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (model, late)]
    torch.testing.assert_close(grads[1], grads[0], atol=0, rtol=0)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_row_without_memory_has_no_nan(softcap: float | None) -> None:
    """Its cross-attention reads nothing, in value and in gradient, and the other rows do not see it."""
    model = build(cross_attention=True, causal=True, attention_softcap=softcap)
    x, memory = vectors(TOKENS, F64), vectors(MEMORY, F64)
    valid = lengths([MEMORY, 0, 2], MEMORY)
    out = model(x, memory=memory, memory_valid=valid)
    others = model(x[[0, 2]], memory=memory[[0, 2]], memory_valid=valid[[0, 2]])
    equal(out[[0, 2]], others)
    grads = torch.autograd.grad(out.square().sum(), [x, memory, *model.parameters()])
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[1][1].abs().max() == 0


@pytest.mark.parametrize("kernel", ["reference", "masked"])
def test_what_stands_in_the_padding_reaches_no_real_token(kernel: str) -> None:
    model = build(causal=False, cross_attention=True)
    real, x, memory = lengths([TOKENS, 4, 1], TOKENS), vectors(TOKENS, F64), vectors(MEMORY, F64)
    valid = lengths([MEMORY, 3, 1], MEMORY)
    bad = x.detach().masked_fill(~real[..., None], float("nan")).requires_grad_()
    bad_memory = memory.detach().masked_fill(~valid[..., None], float("inf")).requires_grad_()
    found, parameters = [], list(model.parameters())
    with force_kernel(kernel):
        for tokens, read in ((x, memory), (bad, bad_memory)):
            out = model(tokens, valid=real, memory=read, memory_valid=valid)[real]
            found.append([out, *torch.autograd.grad(out.square().sum(), [tokens, read, *parameters])])
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=1e-12)
    assert all(tensor.isfinite().all() for tensor in found[1])


SHAPES = [
    ({}, {"x": torch.randn(5, DIM)}, r"x is float32 \[5, 16\], but must be float \[batch, tokens, 16\]"),
    ({}, {"x": torch.zeros(1, 3, DIM, dtype=torch.long)}, r"x is int64 \[1, 3, 16\]"),
    ({}, {"valid": torch.ones(1, 4).bool()}, r"valid is bool \[1, 4\], but must be bool \[1, 3\]"),
    ({}, {"valid": torch.ones(1, 3)}, r"valid is float32 \[1, 3\]"),
    ({}, {"documents": torch.zeros(2, 3).long()}, r"documents is int64 \[2, 3\], but must be int \[1, 3\]"),
    (
        {},
        {"bias": torch.zeros(1, 3, 3, 3)},
        r"bias is float32 \[1, 3, 3, 3\], but must be float \[1 or 1, 4 or 1, 3, 3\]",
    ),
    ({}, {"positions": torch.arange(4)}, r"positions is int64 \[4\], but must be numbers \[3\] or \[1, 3\]"),
    ({"position": "none"}, {"positions": torch.arange(3)}, "positions were given, but this model has none"),
    ({"position": "learned"}, {"positions": torch.arange(3.0)}, r"positions is float32 \[3\], but must be int"),
    ({"position": "learned"}, {"positions": torch.tensor([0, 1, -1])}, r"positions hold -1, but must be 0 to \d+: the"),
    ({"position": "learned"}, {"positions": torch.arange(3) + 10**6}, r"positions hold 1000000, but must be 0 to"),
    ({"cross_attention": True}, {"memory": torch.randn(2, 2, DIM)}, r"memory is float32 \[2, 2, 16\]"),
    ({}, {"memory_valid": torch.ones(1, 2).bool()}, "memory_valid was given, but this model has no cross_attention"),
]


@pytest.mark.parametrize(("config", "call", "message"), SHAPES, ids=[case[2][:30] for case in SHAPES])
def test_a_wrong_shape_gets_a_sentence(config: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**config).float()(**({"x": torch.randn(1, 3, DIM)} | call))
