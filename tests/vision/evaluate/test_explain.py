"""Recorded weights are those the kernels used, the prediction is untouched, and effects are what hiding really does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from triune.core.config import TransformerConfig
from triune.core.lens.effects import rank_correlation, rollout
from triune.core.lens.record import record_attention
from triune.core.rotary import RotaryConfig
from triune.core.transformer import Transformer
from triune.vision.evaluate.explain import (
    attention_maps,
    deletion,
    explain,
    hide,
    hiding_effect,
)
from triune.vision.model import VisionTransformer, VisionTransformerConfig


def build(pool: str = "class", registers: int = 2, **core: object) -> VisionTransformer:
    """A ViT on 4 x 6 patches whose head and attention are not flat."""
    torch.manual_seed(0)
    values = {"dim": 32, "depth": 3, "heads": 4, "position": "rotary", "rotary": RotaryConfig(axes=2)} | core
    config = VisionTransformerConfig(
        image_size=[16, 24], patch_size=4, channels=1, classes=5, registers=registers, pool=pool,
        transformer=TransformerConfig(**values),
    )  # fmt: skip
    model = VisionTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def image() -> torch.Tensor:
    return torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(1))


CORES = [
    {},
    {"qk_norm": "head", "kv_heads": 2},
    {"qk_norm": "full", "position": "none"},
    {"attention_softcap": 5.0, "rotary": RotaryConfig(axes=2, interleaved=True)},
    {"parallel": True, "attention_scale": 0.7, "norm": "rmsnorm"},
]


@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_weights_reproduce_the_output_of_the_layer(core):
    model, outputs = build(**core), {}
    for layer, block in enumerate(model.transformer.blocks):
        block.attn.v.register_forward_hook(lambda m, i, out, n=layer: outputs.update({("v", n): out}))
        block.attn.out.register_forward_pre_hook(lambda m, args, n=layer: outputs.update({("z", n): args[0]}))
    with record_attention(model, lambda name, weights: weights) as seen:
        model(image()[None])
    assert list(seen) == [f"transformer.blocks.{layer}.attn" for layer in range(3)]
    for layer, weights in enumerate(seen.values()):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 4, 27))
        v = outputs["v", layer].unflatten(-1, (-1, 8)).transpose(1, 2)
        z = weights @ v.repeat_interleave(4 // v.shape[1], dim=1)
        torch.testing.assert_close(z.transpose(1, 2).flatten(2), outputs["z", layer], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_masks_are_respected():
    core = Transformer(TransformerConfig(dim=16, depth=1, heads=2, causal=True)).eval()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    padding = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with record_attention(core, lambda name, weights: weights) as seen:
        core(x)
        causal = seen["blocks.0.attn"]
        core(x, valid=padding, bias=torch.zeros(1, 2, 5, 5))
    assert (causal.triu(1) == 0).all()
    assert (causal.sum(-1) - 1).abs().max() < 1e-6
    padded = seen["blocks.0.attn"]
    torch.testing.assert_close(padded[0], causal[0])
    assert (padded[1, :, :3, 3:] == 0).all()
    windowed = Transformer(TransformerConfig(dim=16, depth=1, heads=2, window=1)).eval()
    with record_attention(windowed, lambda name, weights: weights) as seen:
        windowed(x)
    torch.testing.assert_close(seen["blocks.0.attn"], torch.eye(5).expand(2, 2, 5, 5))


@torch.no_grad()
def test_the_prediction_stays_on_the_fused_kernel_bit_for_bit():
    model, x = build(qk_norm="head"), image()[None]
    expected = model(x)

    def kernels(run) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
        return sum(e.count for e in seen.key_averages() if "scaled_dot_product_flash_attention_for_cpu" in e.key)

    plain = kernels(lambda: model(x))
    found: list[torch.Tensor] = []
    recorded = kernels(lambda: found.append(attention_maps(model, x[0])[0]))
    assert torch.equal(found[0], expected[0])
    assert plain == recorded == 3


def test_rollout_follows_the_paper():
    a, b = (torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(s)).softmax(-1) for s in (0, 1))
    expected = (0.5 * b + 0.5 * torch.eye(3)) @ (0.5 * a + 0.5 * torch.eye(3))
    torch.testing.assert_close(rollout([a, b]), expected)
    torch.testing.assert_close(rollout([a, b]).sum(-1), torch.ones(2, 3))


@pytest.mark.parametrize(("pool", "registers"), [("class", 2), ("mean", 0), ("attention", 1)])
@torch.no_grad()
def test_maps_speak_of_what_the_head_reads(pool, registers):
    model = build(pool, registers)
    prefix, x = model.config.prefix, image()
    logits, maps, heads = attention_maps(model, x)
    assert maps.shape == (4, 6)
    assert heads.shape == (4, 4, 6)
    torch.testing.assert_close(logits, model(x[None])[0])
    # All attention together is 1, so the patches get at most the number of tokens in units of even attention.
    tokens = 24 + prefix
    assert 0 < float(maps.sum()) <= tokens + 1e-3
    with record_attention(model, lambda name, weights: weights.mean(dim=1)) as seen:
        model(x[None])
    total = rollout([seen[f"transformer.blocks.{layer}.attn"] for layer in range(3)])[0]
    reader = {"class": lambda: total[0], "mean": lambda: total[prefix:].mean(0)}
    expected = reader[pool]() if pool in reader else seen["pool.attn"][0, 0] @ total[prefix:]
    torch.testing.assert_close(maps.flatten(), expected[prefix:] * tokens)


@torch.no_grad()
def test_effect_is_the_fall_of_log_p_when_a_patch_is_hidden():
    model, x = build(), image()
    effect = hiding_effect(model, x, target=3, temperature=2.0, batch_size=7)
    hidden = x.clone()
    hidden[:, 4:8, 20:24] = x.mean()
    before, after = ((model(v[None])[0].double() / 2).log_softmax(0)[3] for v in (x, hidden))
    assert effect.shape == (4, 6)
    assert float(effect[1, 5]) == pytest.approx(float(before - after), abs=1e-5)
    # The whole grid hidden at once: the same number everywhere.
    everything = hiding_effect(model, x, target=3, window=99)
    assert everything.shape == (4, 6)
    gone = model(torch.full_like(x, float(x.mean()))[None])[0].double().log_softmax(0)[3]
    expected = float(model(x[None])[0].double().log_softmax(0)[3] - gone)
    torch.testing.assert_close(everything, torch.full((4, 6), expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_only_the_patch_that_matters_has_an_effect():
    class FirstPatch(torch.nn.Module):
        """Class 0 is as likely as the first patch is bright; all else is ignored."""

        config = build().config

        def grid(self, images):
            return 4, 6

        def forward(self, images):
            bright = images[:, 0, :4, :4].mean(dim=(1, 2))
            return torch.stack([bright, *[torch.zeros_like(bright)] * 4], dim=1)

    x = torch.zeros(1, 16, 24)
    x[:, :4, :4] = 5
    effect = hiding_effect(FirstPatch(), x, 0)
    assert effect[0, 0] > 1
    assert effect.abs().sum() == effect[0, 0]
    lost = deletion(FirstPatch(), x, 0, {"effect": effect, "rollout": -effect}, 1.0, 64)
    assert lost["effect"] > lost["random"] > lost["rollout"] == 0


@torch.no_grad()
def test_large_grids_stay_affordable():
    calls = []

    class Counting(torch.nn.Module):
        config = build().config

        def grid(self, images):
            return 30, 45

        def forward(self, images):
            calls.append(len(images))
            return torch.zeros(len(images), 5)

    effect = hiding_effect(Counting(), torch.zeros(1, 120, 180), 0)
    assert effect.isfinite().all()
    assert sum(calls) <= 257


def test_rank_correlation_equals_scipy():
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 6, (2, 50), generator=generator).float()
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a.view(5, 10), a.view(5, 10).exp()) == pytest.approx(1)
    assert math.isnan(rank_correlation(a, torch.zeros(50)))


def test_an_explanation_says_how_far_to_believe_it():
    model = build()
    found = explain(model, image(), temperature=1.5)
    p = (model(image()[None])[0].detach().double() / 1.5).softmax(0)
    assert found.target == int(p.argmax())
    assert found.probability == pytest.approx(float(p.max()), rel=1e-4)
    assert f"{found.correlation:+.2f}" in found.caption()
    assert -1 <= found.to_dict()["rank_correlation"] <= 1
    torch.nn.init.zeros_(model.head.weight)
    flat = explain(model, image())
    assert "undefined" in flat.caption()
    assert flat.to_dict()["rank_correlation"] is None
    certain = replace(found, deleted=dict.fromkeys(found.deleted, -1e-6))
    assert "0.00 nats" in certain.caption()
    assert "-0.00" not in certain.caption()


def test_hiding_paints_the_mean():
    model, x = build(), image()
    hidden = torch.zeros(2, 4, 6, dtype=torch.bool)
    hidden[1, 0, 0] = True
    first, second = hide(model, x, hidden)
    assert torch.equal(first, x)
    assert (second[:, :4, :4] == x.mean()).all()
    assert torch.equal(second[:, 4:], x[:, 4:])
