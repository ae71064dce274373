"""Adapters in PEFT's format: what PEFT computes with ours, and we with theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from triune.core import TransformerConfig, UserError
from triune.core.adapt.lora import LoRAConfig, add_lora, lora_layers, lora_state
from triune.core.adapt.peft import CONFIG, WEIGHTS, export_peft, load_peft
from triune.core.checkpoints.weights import TRANSPOSED, Rule, Target, WeightMap
from triune.text.checkpoints.families import HF_FAMILIES
from triune.text.model import LanguageModel, LanguageModelConfig

peft: Any = pytest.importorskip("peft", reason="compares with the library PEFT")
transformers: Any = pytest.importorskip("transformers", reason="compares with Hugging Face's models")

B, H = "transformer.blocks.{}.", "model.layers.{}."
LLAMA = WeightMap(
    (
        Rule("embedding", "model.embed_tokens"),
        *(Rule(f"{B}attn.{name}", f"{H}self_attn.{name}_proj") for name in "qkv"),
        Rule(f"{B}attn.out", f"{H}self_attn.o_proj"),
        *(Rule(f"{B}ffn.{name}", f"{H}mlp.{name}_proj") for name in ("gate", "up", "down")),
        Rule(f"{B}norm1", f"{H}input_layernorm"),
        Rule(f"{B}norm2", f"{H}post_attention_layernorm"),
        Rule("transformer.final_norm", "model.norm"),
        Rule("head", "lm_head"),
    )
)
G = "transformer.h.{}."
GPT2 = WeightMap(
    (
        Rule("embedding", "transformer.wte"),
        Rule("transformer.positions", "transformer.wpe"),
        Rule((f"{B}attn.q", f"{B}attn.k", f"{B}attn.v"), f"{G}attn.c_attn", TRANSPOSED),
        Rule(f"{B}attn.out", f"{G}attn.c_proj", TRANSPOSED),
        Rule(f"{B}ffn.up", f"{G}mlp.c_fc", TRANSPOSED),
        Rule(f"{B}ffn.down", f"{G}mlp.c_proj", TRANSPOSED),
        Rule(f"{B}norm1", f"{G}ln_1"),
        Rule(f"{B}norm2", f"{G}ln_2"),
        Rule("transformer.final_norm", "transformer.ln_f"),
    ),
    ignored=("lm_head.weight",),
)

Pair = tuple[Any, LanguageModel, WeightMap]


def llama() -> Pair:
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=False,
        )
    )  # fmt: skip
    core = TransformerConfig(
        dim=32,
        depth=2,
        heads=4,
        kv_heads=2,
        ffn="swiglu",
        ffn_dim=48,
        norm="rmsnorm",
        norm_eps=1e-6,
        bias=False,
        causal=True,
    )
    ours = LanguageModel(LanguageModelConfig(61, core, tied=False))
    LLAMA.load(ours, theirs.state_dict(), "the test")
    return theirs.eval(), ours.eval(), LLAMA


def gpt2() -> Pair:
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    )
    core = TransformerConfig(dim=32, depth=2, heads=4, position="learned", context=64, ffn="gelu_tanh", causal=True)
    ours = LanguageModel(LanguageModelConfig(61, core, tied=True))
    GPT2.load(ours, theirs.state_dict(), "the test")
    return theirs.eval(), ours.eval(), GPT2


def falcon() -> Pair:
    """Its queries, keys and values lie in one matrix, in turns."""
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2,
        new_decoder_architecture=True, tie_word_embeddings=False, max_position_embeddings=64,
    )  # fmt: skip
    theirs = transformers.FalconForCausalLM(config)
    family = next(family for family in HF_FAMILIES if family.model_type == "falcon")
    ours = LanguageModel(family.read("the test", config.to_dict()))
    weights = family.weights(ours.config)
    weights.load(ours, theirs.state_dict(), "the test")
    return theirs.eval(), ours.eval(), weights


FAMILIES = pytest.mark.parametrize("family", [llama, gpt2, falcon])
TOKENS = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(2))


def adapted(model: LanguageModel, **options: Any) -> LanguageModel:
    """A copy with factors as training leaves them."""
    model = deepcopy(model)
    add_lora(model, LoRAConfig(**options))
    torch.manual_seed(1)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_b, std=0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(TOKENS)
    return getattr(found, "logits", found)


@FAMILIES
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4, "alpha": 8},
        {"rank": 3, "alpha": 1, "targets": ["q", "v", "down"]},
        {"rank": 2, "targets": ["transformer.blocks.1.attn.k", "transformer.blocks.0.ffn.*"]},
    ],
    ids=["all", "some", "single"],
)
def test_peft_computes_what_we_do(family: Callable[[], Pair], options: dict, tmp_path: Path, recwarn) -> None:
    theirs, base, weights = family()
    assert torch.allclose(logits(theirs), logits(base), atol=1e-5)
    model = adapted(base, **options)
    export_peft(tmp_path, model, weights.targets(model), base="org/model", task_type="CAUSAL_LM")
    assert not torch.allclose(logits(model), logits(base), atol=1e-2)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path)
    assert torch.allclose(logits(loaded.eval()), logits(model), atol=1e-5)
    assert not [w for w in recwarn if "adapter keys" in str(w.message) or "fan_in_fan_out" in str(w.message)]
    assert loaded.peft_config["default"].base_model_name_or_path == "org/model"
    merged = loaded.merge_and_unload()
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)


@FAMILIES
def test_what_was_written_is_read_back(family: Callable[[], Pair], tmp_path: Path) -> None:
    _, base, weights = family()
    model = adapted(base, rank=4, alpha=2.0, dropout=0.25, targets=["q", "v", "up"])
    export_peft(tmp_path, model, weights.targets(model))
    again = deepcopy(base)
    names = load_peft(tmp_path, again, weights.targets(base))
    assert set(names) == {name for name, _ in lora_layers(model)}
    first, second = lora_state(model), lora_state(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(logits(again), logits(model))
    assert {layer.dropout for _, layer in lora_layers(again)} == {0.25}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == set(first)


@FAMILIES
@pytest.mark.parametrize("stabilised", [False, True])
def test_we_compute_what_peft_trained(family: Callable[[], Pair], stabilised: bool, tmp_path: Path) -> None:
    """In PEFT's own adapters a stacked matrix has a dense B, shared by q, k and v."""
    theirs, ours, weights = family()
    names = {
        gpt2: ["c_attn", "c_proj"], llama: ["q_proj", "down_proj"], falcon: ["query_key_value", "dense_4h_to_h"],
    }[family]  # fmt: skip
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=names, rank_pattern={names[0]: 6}, alpha_pattern={names[1]: 3},
        use_rslora=stabilised, init_lora_weights=False, fan_in_fan_out=family is gpt2,
    )  # fmt: skip
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path)
    base = logits(ours)
    load_peft(tmp_path, ours, weights.targets(ours))
    assert not torch.allclose(logits(ours), base, atol=1e-2)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-4)


def test_the_rank_of_a_stacked_matrix_is_that_of_its_parts(tmp_path: Path) -> None:
    _, base, weights = gpt2()
    model = adapted(base, rank=4, alpha=8)
    export_peft(tmp_path, model, weights.targets(model))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (4, 8, True)
    assert config["rank_pattern"] == {f"transformer.h.{i}.attn.c_attn": 12 for i in (0, 1)}
    assert config["alpha_pattern"] == {f"transformer.h.{i}.attn.c_attn": 24 for i in (0, 1)}


def written(folder: Path, **changes: Any) -> LanguageModel:
    """An adapter with some settings changed, and the model it fits."""
    _, base, weights = llama()
    export_peft(folder, adapted(base, rank=2), weights.targets(base))
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return base


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"lora_alpha": "much"}, "lora_alpha"),
    ],
)
def test_other_kinds_of_adapters_are_refused(changes: dict, says: str, tmp_path: Path) -> None:
    model = written(tmp_path, **changes)
    with pytest.raises(UserError, match=says):
        load_peft(tmp_path, model, LLAMA.targets(model))


def test_the_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    written(tmp_path, base_model_name_or_path="org/llama")
    _, other, weights = gpt2()
    with pytest.raises(UserError, match="org/llama"):
        load_peft(tmp_path, other, weights.targets(other))
    core = TransformerConfig(dim=16, depth=2, heads=4, kv_heads=2, ffn="swiglu", ffn_dim=48, norm="rmsnorm", bias=False)
    smaller = LanguageModel(LanguageModelConfig(61, core, tied=False))
    with pytest.raises(UserError, match="another model"):
        load_peft(tmp_path, smaller, LLAMA.targets(smaller))


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    model = written(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        load_peft(tmp_path, model, LLAMA.targets(model))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match=WEIGHTS):
        load_peft(tmp_path, model, LLAMA.targets(model))


def test_a_layer_the_original_lacks_cannot_be_exported(tmp_path: Path) -> None:
    _, base, _ = llama()
    with pytest.raises(UserError, match="no linear layers of the original"):
        export_peft(tmp_path, adapted(base), {"transformer.blocks.0.attn.q": Target("model.layers.0.self_attn.q_proj")})
    assert not list(tmp_path.iterdir())


def test_what_peft_refuses_to_adapt_is_not_written(tmp_path: Path) -> None:
    """PEFT itself ends with an error for the output layers of Mamba's mixers."""
    model = adapted(llama()[1])
    targets = {name: Target(f"there.{number}") for number, (name, _) in enumerate(lora_layers(model))}
    name = next(iter(targets))
    export_peft(tmp_path / "yes", model, targets | {name: Target("layers.0.mamba.out_proj")})
    assert (tmp_path / "yes" / WEIGHTS).is_file()
    with pytest.raises(UserError, match=r"1 adapted layers are output layers of Mamba's mixers \(transformer\..*PEFT"):
        export_peft(tmp_path / "no", model, targets | {name: Target("backbone.layers.0.mixer.out_proj")})
    assert not (tmp_path / "no").exists()
