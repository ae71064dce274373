"""Every key of a config that the original reads or ours does, changed one at a time: outputs equal, or a refusal.

    pip install '.[test]' && python bench/parity_keys.py [FAMILY ...]

The keys are the fields of transformers' config class, what its files of that family ask a config for, and what the
tables of ours and of all other families name. Each stands once in a config that says little and once in one that says
all that the class writes, with each of a few other values of its kind. Weights are random; a config that transformers
cannot run is left out. Where float32 outputs differ by more than `LIMIT`, both are compared in float64, as
`parity_random.py` does.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triune.bench.parity_random import BATCHES, SAME, WORSE, in_float64
from triune.core.checkpoints.family import apart
from triune.core.errors import UserError
from triune.text.checkpoints import pretrained as text

LIMIT = 2e-5
TOKENS = 40
SHAPE: dict[str, Any] = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA = SHAPE | {"num_key_value_heads": 2}
SLIDING = LLAMA | {"sliding_window": 7, "head_dim": 8}
GPT: dict[str, Any] = {
    "vocab_size": 67, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROBERTA = SHAPE | {"max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0}
STATE: dict[str, Any] = {
    "vocab_size": 67, "hidden_size": 24, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
DELTA = {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
         "linear_value_head_dim": 5}  # fmt: skip
FULL, SLIDE = "full_attention", "sliding_attention"
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", LLAMA),
    "Mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": 7}),
    "Qwen 2": ("Qwen2ForCausalLM", LLAMA | {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2}),
    "Qwen 3": ("Qwen3ForCausalLM", SLIDING | {"use_sliding_window": True, "max_window_layers": 2}),
    "SmolLM 3": ("SmolLM3ForCausalLM", LLAMA | {"sliding_window": 7, "use_sliding_window": True}),
    "Gemma": ("GemmaForCausalLM", LLAMA | {"head_dim": 8}),
    "Gemma 2": ("Gemma2ForCausalLM", SLIDING | {"query_pre_attn_scalar": 16}),
    "Gemma 3": ("Gemma3ForCausalLM", SLIDING | {"sliding_window_pattern": 3}),
    "Phi 3": ("Phi3ForCausalLM", LLAMA | {"sliding_window": 7}),
    "OLMo 2": ("Olmo2ForCausalLM", LLAMA),
    "OLMo 3": ("Olmo3ForCausalLM", LLAMA | {"sliding_window": 7}),
    "Granite": ("GraniteForCausalLM", LLAMA),
    "StarCoder 2": ("Starcoder2ForCausalLM", LLAMA | {"sliding_window": 7}),
    "StableLM": ("StableLmForCausalLM", LLAMA),
    "Cohere": ("CohereForCausalLM", LLAMA),
    "Cohere 2": ("Cohere2ForCausalLM", LLAMA | {"sliding_window": 7}),
    "OLMo": ("OlmoForCausalLM", LLAMA),
    "Arcee": ("ArceeForCausalLM", LLAMA),
    "Seed-OSS": ("SeedOssForCausalLM", LLAMA | {"head_dim": 8}),
    "Ernie 4.5": ("Ernie4_5ForCausalLM", LLAMA | {"head_dim": 8}),
    "Helium": ("HeliumForCausalLM", LLAMA | {"head_dim": 8}),
    "GLM": ("GlmForCausalLM", LLAMA | {"head_dim": 8}),
    "GLM 4": ("Glm4ForCausalLM", LLAMA | {"head_dim": 8}),
    "Exaone 4": ("Exaone4ForCausalLM", LLAMA | {"sliding_window": 7}),
    "Ministral": ("MinistralForCausalLM", SLIDING),
    "Nemotron": ("NemotronForCausalLM", LLAMA),
    "Phi": ("PhiForCausalLM", LLAMA),
    "Qwen 2 MoE": (
        "Qwen2MoeForCausalLM", LLAMA | EXPERTS | {"shared_expert_intermediate_size": 10, "sliding_window": 7,
        "use_sliding_window": True},
    ),
    "OLMoE": ("OlmoeForCausalLM", LLAMA | EXPERTS),
    "Granite MoE": ("GraniteMoeForCausalLM", LLAMA | {"num_local_experts": 3}),
    "Granite MoE, shared": (
        "GraniteMoeSharedForCausalLM", LLAMA | {"num_local_experts": 3, "shared_intermediate_size": 10},
    ),
    "GLM 4 MoE": (
        "Glm4MoeForCausalLM", LLAMA | {"n_routed_experts": 4, "moe_intermediate_size": 12, "num_experts_per_tok": 2},
    ),
    "Ernie 4.5 MoE": (
        "Ernie4_5_MoeForCausalLM", LLAMA | {"moe_num_experts": 4, "moe_intermediate_size": 12, "moe_k": 2},
    ),
    "Nemotron-H": (
        "NemotronHForCausalLM", LLAMA | {"layers_block_type": ["linear_attention", "moe", FULL, "mlp"], "head_dim": 8,
        "ssm_state_size": 5, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "n_routed_experts": 4,
        "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 10},
    ),
    "GPT-2": ("GPT2LMHeadModel", GPT),
    "GPT-BigCode": ("GPTBigCodeForCausalLM", GPT),
    "GPT-Neo": (
        "GPTNeoForCausalLM", SHAPE | {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
        "window_size": 7},
    ),
    "CodeGen": ("CodeGenForCausalLM", GPT | {"rotary_dim": 4}),
    "BioGPT": ("BioGptForCausalLM", SHAPE),
    "GPT-NeoX": ("GPTNeoXForCausalLM", SHAPE),
    "GPT-J": ("GPTJForCausalLM", GPT | {"rotary_dim": 4}),
    "OPT": ("OPTForCausalLM", SHAPE | {"ffn_dim": 24}),
    "Falcon": ("FalconForCausalLM", SHAPE | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "Falcon, old": ("FalconForCausalLM", SHAPE),
    "BERT": ("BertForMaskedLM", SHAPE),
    "BERT, bare": ("BertModel", SHAPE),
    "RoBERTa": ("RobertaForMaskedLM", ROBERTA),
    "XLM-RoBERTa": ("XLMRobertaModel", ROBERTA),
    "CamemBERT": ("CamembertForMaskedLM", ROBERTA),
    "DistilBERT": (
        "DistilBertForMaskedLM", {"vocab_size": 67, "dim": 32, "hidden_dim": 24, "n_layers": 3, "n_heads": 4,
        "max_position_embeddings": 64},
    ),
    "ModernBERT": ("ModernBertForMaskedLM", SHAPE | {"local_attention": 8}),
    "Longformer": ("LongformerForMaskedLM", ROBERTA | {"attention_window": 8}),
    "BigBird": ("BigBirdForMaskedLM", SHAPE | {"block_size": 4, "num_random_blocks": 1}),
    "Mamba": ("MambaForCausalLM", STATE | {"state_size": 5}),
    "Mamba-2": ("Mamba2ForCausalLM", STATE | {"state_size": 5, "num_heads": 4, "head_dim": 12, "n_groups": 2}),
    "RecurrentGemma": ("RecurrentGemmaForCausalLM", LLAMA | {"attention_window_size": 7}),
    "Jamba": (
        "JambaForCausalLM", LLAMA | {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_d_state": 5},
    ),
    "Qwen3-Next": (
        "Qwen3NextForCausalLM", LLAMA | EXPERTS | DELTA | {"shared_expert_intermediate_size": 10},
    ),
    "Mixtral": ("MixtralForCausalLM", LLAMA | {"num_local_experts": 3, "sliding_window": 7}),
    "Qwen 3 MoE": ("Qwen3MoeForCausalLM", LLAMA | EXPERTS | {"head_dim": 8}),
    "Qwen 3.5": ("Qwen3_5ForCausalLM", LLAMA | DELTA),
    "Qwen 3.5 MoE": ("Qwen3_5MoeForCausalLM", LLAMA | DELTA | EXPERTS | {"shared_expert_intermediate_size": 10}),
    "LFM2": (
        "Lfm2ForCausalLM", LLAMA | {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", FULL] * 2},
    ),
    "Bamba": ("BambaForCausalLM", LLAMA | {"mamba_n_heads": 4, "mamba_d_state": 5, "attn_layer_indices": [1, 3]}),
    "Granite 4": (
        "GraniteMoeHybridForCausalLM", LLAMA | {"mamba_n_heads": 4, "mamba_d_state": 5, "num_local_experts": 3,
        "shared_intermediate_size": 10, "layer_types": ["linear_attention", FULL] * 2},
    ),
}  # fmt: skip
"""The name of a family, its class, and a config that says little."""
SCALED: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 3.0},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "longrope", "original_max_position_embeddings": 16, "short_factor": [1.0, 1.2, 1.5, 2.0],
     "long_factor": [1.0, 2.0, 3.5, 8.0]},
)  # fmt: skip
TURNED: tuple[Any, ...] = (
    None, {}, {"rope_theta": 300.0}, {"rope_type": "default"}, {"rope_type": "default", "rope_theta": 300.0},
    {"rope_theta": 300.0, "partial_rotary_factor": 0.5}, *SCALED, *(s | {"rope_theta": 300.0} for s in SCALED),
    {FULL: {"rope_type": "default", "rope_theta": 300.0}}, {SLIDE: {"rope_type": "default", "rope_theta": 300.0}},
    {FULL: {"rope_theta": 300.0}, SLIDE: {"rope_theta": 50.0}}, {FULL: SCALED[0], SLIDE: SCALED[4]},
    {FULL: SCALED[2] | {"rope_theta": 300.0}, SLIDE: {"rope_type": "default"}}, {FULL: None, SLIDE: None},
    {FULL: SCALED[0], "rope_theta": 300.0}, {"rope_theta": 300.0, FULL: {}, SLIDE: {}},
)  # fmt: skip
"""Values of `rope_parameters` and `rope_scaling`."""
ACTIVATIONS = (
    "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python", "quick_gelu", "relu", "relu2", "silu", "swish",
    "tanh", "mish", "linear", "sigmoid", "gelu_10", "gelu_accurate", "laplace",
)  # fmt: skip
LISTS: dict[str, tuple[Any, ...]] = {
    "layer_types": (
        [FULL] * 4, [SLIDE] * 4, [SLIDE, FULL, FULL, SLIDE], [FULL, SLIDE, "chunked_attention", FULL], None,
    ),
    "no_rope_layers": ([1, 0, 0, 1], [0] * 4, [1] * 4, [], None),
}  # fmt: skip
SKIPPED = {
    "model_type", "architectures", "vocab_size", "transformers_version", "dtype", "torch_dtype", "_name_or_path",
    "attn_implementation", "_attn_implementation", "id2label", "label2id", "quantization_config", "return_dict",
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "output_router_logits", "problem_type",
}  # fmt: skip
"""Keys that describe no function, or whose change changes what is returned."""
RELATED = re.compile(r"rope|theta|rotary|base|layer|sliding|window|pattern|max_position|attention$|every")
"""Keys whose meaning depends on others, so that they are changed in a config that says everything, too."""
TOKEN = re.compile(r".*_token_id|sparse_pred_ignore_index")


def keys_of(config_class: Any, model_class: Any) -> set[str]:
    """Fields of a class of configs, and names that its files, those of the model and its base ask a config for."""
    aliases = config_class.attribute_map
    found = {field.name for field in dataclasses.fields(config_class)} | {*aliases, *aliases.values()}
    for cls, pattern in (
        (config_class, r"kwargs\.(?:get|pop|setdefault)\(\s*\"(\w+)\"|\"(\w+)\" in kwargs"),
        (model_class, r"config\.(\w+)|getattr\(\s*(?:self\.)?config,\s*\"(\w+)\""),
    ):
        source = Path(inspect.getfile(cls)).read_text()
        found |= {name for match in re.findall(pattern, source) for name in match if name}
    if "rope_parameters" in found:
        found |= {"rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    methods = {name for name in dir(config_class) if callable(getattr(config_class, name, None))}
    return {name for name in found - methods - SKIPPED if not name.startswith("__")}


def others(key: str, value: Any, known: bool) -> tuple[Any, ...]:
    """Other values of a key that has `value`, or that is absent (None); fewer of one that the original has not."""
    if key in ("rope_parameters", "rope_scaling"):
        return TURNED
    if key in LISTS:
        return LISTS[key]
    if "act" in key and (isinstance(value, str) or value is None) and "factor" not in key:
        return ACTIVATIONS
    if isinstance(value, bool):
        return (not value, None)
    if isinstance(value, int) and TOKEN.fullmatch(key):
        return (value + 2, None)
    if isinstance(value, int):
        return (value * 2, value + 1, max(value // 2, 1), *((1,) if value < 9 else ()), None)
    if isinstance(value, float):
        return (value * 3 + 0.05, value / 2, 0.5, 1, 0.0, None)
    if isinstance(value, str):
        return ("relative_key", "relative_key_query", "mean", "cls", "x")
    if not known:
        return (True, 3, 0.5)
    return (None, True, False, 0.5, 1, 2, 3, 5.0, 16, "x") if value is None else ()


class Change(NamedTuple):
    """A config with one key changed, and whether any file of the original mentions this key."""

    label: str
    config: dict[str, Any]
    known: bool = True
    base: Mapping[str, Any] = MappingProxyType({})


def changes(name: str) -> Iterator[Change]:
    """The two configs of a family, and each with each key changed to each other value."""
    cls = class_of(name)
    header = {"architectures": [cls.__name__], "model_type": cls.config_class.model_type}
    little = BASES[name][1] | header
    everything = json.loads(cls.config_class(**little).to_json_string(use_diff=False)) | header
    own = keys_of(cls.config_class, cls)
    for which, base in (("little", little), ("all", everything)):
        yield Change(which, base)
        for key in sorted(own | named()):
            if which == "all" and not RELATED.search(key):
                continue
            seen = [base.get(key, ...)]
            for other in others(key, base.get(key, everything.get(key)), key in own):
                if not any(other is one or (other == one and type(other) is type(one)) for one in seen):
                    seen.append(other)
                    yield Change(f"{which}, {key} = {other!r}", base | {key: other}, key in own, base)


def named() -> set[str]:
    """Keys that a table of ours names for any family."""
    from triune.text.checkpoints import (
        decoder_families,
        encoders,
        families,
        gpt,
        granite4,
        hybrids,
        lfm2,
        long_encoders,
        more_decoders,
        nemotron_h,
        older,
        recurrent,
    )

    tables: list[Mapping[str, Any]] = [row[3] for row in (*decoder_families._TABLE, *more_decoders._ROWS)]
    tables += [gpt.GPT2, gpt.GPT_NEO, gpt.BIGCODE, gpt.BIOGPT, families.NEOX, older.GPTJ, older.OPT, older.FALCON]
    tables += [encoders.BERT, encoders.ROBERTA, encoders.MODERNBERT, recurrent.MAMBA, recurrent.MAMBA2]
    tables += [recurrent.GRIFFIN, hybrids.JAMBA, hybrids.QWEN3_NEXT, hybrids.QWEN3_5, granite4.BAMBA, granite4.GRANITE4]
    tables += [long_encoders.LONGFORMER, long_encoders.BIGBIRD, nemotron_h.NEMOTRON_H, lfm2.LFM2]
    return {key for table in tables for key in table} - SKIPPED | {"rope_scaling", "rope_parameters"}


def class_of(name: str) -> Any:
    """The class of transformers for a row of `BASES`."""
    import transformers

    return getattr(transformers, BASES[name][0])


def ours_of(config: Mapping[str, Any]) -> Any:
    """What we read a config as."""
    return next(f for f in text.HF_FAMILIES if f.model_type == config["model_type"]).read("it", config)


def tokens_of(batch: int) -> Tensor:
    """Random tokens, int64 `[1, tokens]`, without those that models take for padding."""
    return torch.randint(6, 67, (1, TOKENS), generator=torch.Generator().manual_seed(batch))


def compare(name: str, change: Change, folder: Path) -> float | str:
    """How far the outputs of a config are apart, "refused: ..." where ours refuses it, or "impossible: ..." where
    transformers does. A key that no file of the original mentions must leave our reading of the config as it was.
    """
    cls, config = class_of(name), change.config
    if not change.known:
        return unknown(change)
    tokens = tokens_of(0)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    try:
        made = cls.config_class.from_pretrained(folder)
        made._attn_implementation = made._experts_implementation = "eager"
        made.use_cache = False  # which recurrent layers alone cannot make there
        theirs = cls(made).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                wide = parameter.dim() > 1
                std = max(parameter.shape) ** -0.5 if wide else 0.2
                parameter.normal_(std=std) if wide else parameter.add_(torch.randn_like(parameter) * std)
            expected = theirs(tokens)[0]
        theirs.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config))
    except Exception as error:  # whatever the library says to a configuration that it does not have
        return f"impossible: {type(error).__name__} {str(error).strip()[:150]}"
    if not bool(torch.isfinite(expected).all()):
        return "impossible: not finite"
    try:
        ours = text.load(str(folder)).model
        with torch.no_grad():
            found = apart(ours(tokens), expected)
    except UserError as error:
        return f"refused: {str(error).replace(str(folder), '')}"
    if found > LIMIT:  # some models multiply rounding
        wide = in_float64(ours, theirs, [tokens_of(batch) for batch in range(BATCHES)])
        found = wide["float64"] if wide["float64"] <= SAME and wide["ours"] <= WORSE * wide["theirs"] else found
    return found


def unknown(change: Change) -> float | str:
    """0 where a key that the original does not know changes nothing in what we read, 1 where it does."""
    try:
        return float(ours_of(change.config) != ours_of(change.base))
    except UserError as error:
        return f"refused: {error}"


def run(names: Sequence[str], step: int = 1) -> list[dict[str, Any]]:
    """A row for every `step`-th change of the families `names`."""
    rows = []
    for name in names:
        for change in list(changes(name))[::step]:
            with tempfile.TemporaryDirectory() as folder:
                rows.append({"family": name, "change": change.label, "found": compare(name, change, Path(folder))})
    return rows


def wrong(row: dict[str, Any]) -> bool:
    """Whether outputs differ without a refusal; NaN counts."""
    return isinstance(row["found"], float) and not row["found"] <= LIMIT


def main() -> None:
    import transformers
    from common import record

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)  # only what is critical
    transformers.utils.logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    for name in sys.argv[1:] or BASES:
        rows += (found := run([name]))
        for row in filter(wrong, found):
            print(f"WRONG: {name}: {row['change']}: {row['found']}", flush=True)
        print(f"{name}: {len(found)} configs, {sum(map(wrong, found))} wrong", flush=True)
    kinds = Counter(row["found"].split(":")[0] if isinstance(row["found"], str) else "compared" for row in rows)
    record("parity_keys", [row for row in rows if wrong(row)], configs=len(rows), **kinds)


if __name__ == "__main__":
    main()
