"""Mixers beside the same layer in transformers, with its random weights: outputs agree in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triune.core.config import TransformerConfig
from triune.core.mixers.recurrent import RecurrentMixer, Row, State
from triune.core.mixers.registry import make_mixer

pytest.importorskip("transformers", reason="the originals: pip install transformers")

CONFIG = TransformerConfig(dim=32, depth=1, heads=4, causal=True, bias=False, norm_eps=1e-6)


def ours(name: str, bias: bool | list[str] = False, **options: Any) -> RecurrentMixer:
    config = replace(CONFIG, bias=bias, mixer=name, mixer_options={name: options})
    mixer = make_mixer(config.resolved(), 0)
    assert isinstance(mixer, RecurrentMixer)
    return mixer


def randomise(original: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in original.parameters():
            p.add_(0.3 * torch.randn_like(p))


def load(mixer: nn.Module, **weights: Tensor) -> None:
    mixer.load_state_dict({name.replace("__", "."): w.detach() for name, w in weights.items()})


def compare(mixer: RecurrentMixer, original: Any, **more: Any) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 70, 32)
    with torch.no_grad():
        theirs = original(x, **more)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        size = theirs.abs().max()
        assert size > 0.1
        assert (mixer(x, Row()) - theirs).abs().max() <= 1e-5 * size
        state = State()
        pieces = []
        for piece in x.split([40, 1, 29], dim=1):
            pieces.append(mixer(piece, Row(), cache=state))
            state.commit()
        assert (torch.cat(pieces, dim=1) - theirs).abs().max() <= 1e-5 * size


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(groups: int) -> None:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    original = Mamba2Mixer(
        Mamba2Config(
            hidden_size=32, num_heads=8, head_dim=8, state_size=6, n_groups=groups, conv_kernel=4, chunk_size=16,
            layer_norm_epsilon=1e-6,
        ), 0,
    )  # fmt: skip
    randomise(original)
    n, w = groups * 6, original.in_proj.weight
    gate, v, k, q, step = w.split([64, 64, n, n, 8])
    conv, bias = ((p[64 + n :], p[64 : 64 + n], p[:64]) for p in (original.conv1d.weight, original.conv1d.bias))
    mixer = ours("mamba2", state=6, width=8, groups=groups)
    load(
        mixer, q__weight=q, k__weight=k, v__weight=v, gate__weight=gate, step__weight=step,
        conv__weight=torch.cat(conv), conv__bias=torch.cat(bias),
        a_log=original.A_log, dt_bias=original.dt_bias, d=original.D, norm_weight=original.norm.weight,
        out__weight=original.out_proj.weight,
    )  # fmt: skip
    compare(mixer, original)


def mamba_weights(original: Any, rank: int) -> dict[str, Tensor]:
    v, gate = original.in_proj.weight.chunk(2)
    step_low, k, q = original.x_proj.weight.split([rank, 5, 5])
    return {
        "v__weight": v, "gate__weight": gate, "conv__weight": original.conv1d.weight,
        "conv__bias": original.conv1d.bias, "step_low__weight": step_low, "k__weight": k, "q__weight": q,
        "step__weight": original.dt_proj.weight, "dt_bias": original.dt_proj.bias, "a_log": original.A_log,
        "d": original.D, "out__weight": original.out_proj.weight,
    }  # fmt: skip


def test_mamba() -> None:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    original = MambaMixer(MambaConfig(hidden_size=32, state_size=5, time_step_rank=3), 0)
    randomise(original)
    mixer = ours("mamba", state=5, rank=3)
    load(mixer, **mamba_weights(original, 3))
    compare(mixer, original)


def test_mamba_with_the_inner_norms_of_jamba() -> None:
    from transformers.models.jamba.modeling_jamba import JambaConfig, JambaMambaMixer

    config = JambaConfig(hidden_size=32, mamba_d_state=5, mamba_dt_rank=3, rms_norm_eps=1e-6)
    original = JambaMambaMixer(config, 0)
    randomise(original)
    mixer = ours("mamba", state=5, rank=3, inner_norm=True)
    load(
        mixer, **mamba_weights(original, 3), norms__step=original.dt_layernorm.weight,
        norms__k=original.b_layernorm.weight, norms__q=original.c_layernorm.weight,
    )  # fmt: skip
    compare(mixer, original)


def test_gated_delta_rule_of_qwen3_next() -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

    original = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=32, linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=6,
            linear_value_head_dim=16, linear_conv_kernel_dim=4, rms_norm_eps=1e-6,
        ), 0,
    )  # fmt: skip
    randomise(original)
    q, k, v, gate = original.in_proj_qkvz.weight.unflatten(0, (4, -1)).split([6, 6, 16, 16], dim=1)
    beta, step = original.in_proj_ba.weight.unflatten(0, (4, -1)).split([1, 1], dim=1)
    mixer = ours("gated_delta", state=6, expand=2)
    load(
        mixer, q__weight=q.flatten(0, 1), k__weight=k.flatten(0, 1), v__weight=v.flatten(0, 1),
        gate__weight=gate.flatten(0, 1), beta__weight=beta.flatten(0, 1), step__weight=step.flatten(0, 1),
        conv__weight=original.conv1d.weight, a_log=original.A_log, dt_bias=original.dt_bias,
        norm_weight=original.norm.weight, out__weight=original.out_proj.weight,
    )  # fmt: skip
    compare(mixer, original)


def test_rglru_of_recurrent_gemma() -> None:
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaConfig,
        RecurrentGemmaRecurrentBlock,
    )

    config = RecurrentGemmaConfig(
        hidden_size=32, lru_width=24, num_attention_heads=4, conv1d_width=4, hidden_activation="gelu_pytorch_tanh"
    )
    original = RecurrentGemmaRecurrentBlock(config, 0)
    with torch.no_grad():
        for name, p in original.named_parameters():
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    lru = original.rg_lru
    mixer = ours("rglru", bias=True, width=24)
    load(
        mixer, v__weight=original.linear_x.weight, v__bias=original.linear_x.bias,
        gate__weight=original.linear_y.weight, gate__bias=original.linear_y.bias,
        conv__weight=original.conv_1d.weight, conv__bias=original.conv_1d.bias,
        gate_weight=torch.stack([lru.recurrent_gate_weight, lru.input_gate_weight]),
        gate_bias=torch.stack([lru.recurrent_gate_bias, lru.input_gate_bias])[:, :, None],
        decay=lru.recurrent_param, out__weight=original.linear_out.weight, out__bias=original.linear_out.bias,
    )  # fmt: skip
    positions = torch.arange(70)[None].expand(2, -1)
    compare(mixer, original, position_ids=positions, attention_mask=torch.ones(2, 70), use_cache=False)
