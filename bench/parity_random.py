"""Random configurations of the original libraries: the source in its own library, ours, and what was written.

    pip install '.[test]' && python bench/parity_random.py [CONFIGURATIONS [FIRST_SEED]]

Each model is made by transformers with random weights, saved by it, read by triune, compared, written back and compared
again. A configuration that triune refuses counts as refused, one that transformers cannot run is drawn again.

Text models are compared in float64 too, where both sides must agree to `SAME`. transformers casts to float32 in its
norms, rotations and softmax even in a model of float64, so it is run with each of these casts replaced. Where a random
model multiplies rounding so much that float32 outputs differ by more than `LIMIT`, ours may be from those of float64 at
most `WORSE` times as far as those of transformers itself, each at its worst of `BATCHES` batches.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from triune.bench.random_more import ENCODERS as MORE_ENCODERS
from triune.bench.random_more import MORE, more
from triune.bench.random_recurrent import recurrent
from triune.core.checkpoints.family import apart
from triune.core.errors import UserError

LIMIT, SAME, WORSE, BATCHES = 2.5e-5, 1e-9, 4.0, 8
TEXT = (
    "Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Gemma", "Gemma2", "Gemma3", "Phi3", "Olmo2", "Olmo3", "Granite",
    "Starcoder2", "StableLm", "Cohere", "Cohere2",
)  # fmt: skip
NEWER = (
    "Olmo", "Arcee", "SeedOss", "Ernie4_5", "Helium", "Glm", "Glm4", "Exaone4", "Ministral", "Nemotron", "Phi",
)  # fmt: skip
OLDER = ("GPT2", "GPTNeoX", "GPTJ", "OPT", "Falcon")
MIXTURES = ("Mixtral", "Qwen3Moe")
RECURRENT = ("Mamba", "Mamba2", "RecurrentGemma", "Jamba", "Qwen3Next", "Bamba", "GraniteMoeHybrid")
ENCODERS = ("Bert", "Roberta", "XLMRoberta", "ModernBert")
IMAGES = ("ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT")
OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "Granite": {
        "embedding_multiplier": (1.0, 0.3, 12), "logits_scaling": (1.0, 3.0, 16), "residual_multiplier": (1.0, 0.22),
        "attention_multiplier": (1.0, 0.0625),
    },
    "Starcoder2": {"use_bias": (True, False), "norm_epsilon": (1e-5, 1e-3), "hidden_act": ("gelu_new", "silu")},
    "StableLm": {
        "use_qkv_bias": (True, False), "use_parallel_residual": (True, False), "qk_layernorm": (True, False),
        "layer_norm_eps": (1e-5, 1e-3), "head_dim": (None,),
    },
    "Cohere": {"use_qk_norm": (True, False), "logit_scale": (0.0625, 1.5), "layer_norm_eps": (1e-5, 1e-3)},
    "Cohere2": {"logit_scale": (0.0625, 1.5), "layer_norm_eps": (1e-5, 1e-3), "head_dim": (None,)},
    "Mixtral": {"num_local_experts": (2, 3, 5), "num_experts_per_tok": (1, 2)},
    "Qwen3Moe": {
        "num_experts": (0, 3, 5), "num_experts_per_tok": (1, 2), "moe_intermediate_size": (7, 12),
        "norm_topk_prob": (True, False), "decoder_sparse_step": (1, 2), "mlp_only_layers": (None, [0], [1, 3]),
    },
}  # fmt: skip
"""Options that only one decoder has, and their choices."""
WITHOUT = {"use_cache": False}
"""transformers cannot make a cache for recurrent layers alone."""
PARTIAL = ("Phi3", "StableLm", "Phi", "Nemotron", "Glm", "Glm4")
"""Decoders that may rotate a part of each head only."""
LAYERED = ("Qwen2", "Qwen3", "SmolLM3", "Gemma2", "Gemma3", "Olmo3", "Cohere2", "Exaone4", "Ministral")
"""Decoders whose config may list the kind of each layer."""
SCALINGS: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "longrope", "original_max_position_embeddings": 16},
)  # fmt: skip


def draw(seed: int) -> tuple[str, str, dict[str, Any]]:
    """Task, name of the class, and the options of its config."""
    r = random.Random(seed)
    heads, depth = r.choice((1, 2, 4, 6)), r.randint(1, 4)
    even = {"num_hidden_layers": depth, "num_attention_heads": heads}
    even |= {"hidden_size": heads * r.choice((4, 8, 16)), "intermediate_size": r.randint(5, 70)}
    kind = r.choice((*TEXT, *TEXT, *NEWER, *OLDER, *MIXTURES, *RECURRENT, *RECURRENT, *ENCODERS, *IMAGES, *MORE))
    eps = r.choice((1e-6, 1e-5, 1e-3))
    if kind in IMAGES:
        return "vision", kind, even | _image(r, kind) | {"layer_norm_eps": eps}
    special = {"vocab_size": 67, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    common = special | even | {"max_position_embeddings": 64}
    if kind in MORE:
        name = r.choice(("Model", "ForMaskedLM")) if kind in MORE_ENCODERS else "ForCausalLM"
        return "text", kind + name, common | more(r, kind, even)
    if kind in ENCODERS:
        return "text", r.choice((f"{kind}Model", f"{kind}ForMaskedLM")), common | _encoder(r, kind, depth, eps)
    if kind in OLDER:
        name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
        return "text", name, common | _older(r, kind, even, eps) | {"tie_word_embeddings": r.random() < 0.5}
    width = even["hidden_size"] // heads
    if kind in ("Mamba", "Mamba2"):
        del common["intermediate_size"]  # of theirs it is the width of the states, which `expand` says
    if kind in RECURRENT:
        return "text", f"{kind}ForCausalLM", common | recurrent(r, kind, heads, depth, width) | {"rms_norm_eps": eps}
    return "text", f"{kind}ForCausalLM", common | _decoder(r, kind, heads, depth, width) | {"rms_norm_eps": eps}


def _older(r: random.Random, kind: str, even: dict[str, Any], eps: float) -> dict[str, Any]:
    heads, dim, act = even["num_attention_heads"], even["hidden_size"], r.choice(("gelu_new", "gelu", "relu", "silu"))
    if kind in ("GPT2", "GPTJ"):
        own = (
            {"scale_attn_weights": r.random() < 0.7} if kind == "GPT2" else {"rotary_dim": r.choice((2, dim // heads))}
        )
        return own | {
            "n_embd": dim, "n_layer": even["num_hidden_layers"], "n_head": heads, "n_positions": 48,
            "n_inner": r.choice((None, 31)), "activation_function": act, "layer_norm_epsilon": eps,
        }  # fmt: skip
    if kind == "GPTNeoX":
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": r.choice((0.5, 1.0))}
        return {
            "rope_parameters": rope, "use_parallel_residual": r.random() < 0.5, "attention_bias": r.random() < 0.5,
            "hidden_act": act, "layer_norm_eps": eps,
        }  # fmt: skip
    if kind == "OPT":
        return {
            "ffn_dim": even["intermediate_size"], "do_layer_norm_before": r.random() < 0.7, "activation_function": act,
            "word_embed_proj_dim": r.choice((None, 10)), "enable_bias": r.random() < 0.7,
            "_remove_final_layer_norm": r.random() < 0.3,
        }  # fmt: skip
    return {
        "new_decoder_architecture": r.random() < 0.5, "multi_query": r.random() < 0.5, "bias": r.random() < 0.5,
        "parallel_attn": r.random() < 0.7, "num_ln_in_parallel_attn": r.choice((None, 1, 2)), "activation": act,
        "num_kv_heads": r.choice([n for n in (1, 2, 3, heads) if heads % n == 0]), "layer_norm_epsilon": eps,
        "ffn_hidden_size": r.choice((None, 31)), "alibi": r.random() < 0.1, **_rotary(r, dim // heads, kind),
    }  # fmt: skip


def _encoder(r: random.Random, kind: str, depth: int, eps: float) -> dict[str, Any]:
    if kind != "ModernBert":
        pad = {} if kind == "Bert" else {"pad_token_id": 1, "bos_token_id": 0}
        return pad | {
            "hidden_act": "gelu" if pad else r.choice(("gelu", "gelu_new", "relu")),
            "type_vocab_size": r.randint(1, 3), "layer_norm_eps": eps,
        }  # fmt: skip
    act = r.choice(("gelu", "silu"))
    names = ("norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias")
    kinds = ("sliding_attention", "full_attention")
    return {name: r.random() < 0.5 for name in names} | {
        "hidden_activation": act, "classifier_activation": act, "norm_eps": eps, "local_attention": r.randint(2, 30),
        "layer_types": r.choice((None, [r.choice(kinds) for _ in range(depth)])),
    }  # fmt: skip


def _decoder(r: random.Random, kind: str, heads: int, depth: int, width: int) -> dict[str, Any]:
    act = "hidden_activation" if kind in ("Gemma2", "Gemma3") else "hidden_act"
    found = {
        "num_key_value_heads": r.choice([n for n in (1, 2, 3, heads) if heads % n == 0]),
        "head_dim": r.choice((4, 8, 12)), "tie_word_embeddings": r.random() < 0.5,
        act: r.choice(("silu", "gelu_pytorch_tanh")), "attention_bias": r.random() < 0.3, "mlp_bias": r.random() < 0.3,
    }  # fmt: skip
    found |= {name: r.choice(choices) for name, choices in OWN.get(kind, {}).items()}
    if found["head_dim"] is None:
        del found["head_dim"]
    found |= _rotary(r, found.get("head_dim", width), kind)
    if r.random() < 0.7:
        found |= {"sliding_window": r.randint(1, 20), "use_sliding_window": r.random() < 0.7}
        found["max_window_layers"] = r.randint(0, depth)
    if kind in LAYERED and r.random() < 0.5:
        found["layer_types"] = [r.choice(("sliding_attention", "full_attention")) for _ in range(depth)]
    if kind == "SmolLM3":
        found["no_rope_layer_interval"] = r.randint(1, 4)
    if kind in ("Gemma2", "Gemma3"):
        found |= {"query_pre_attn_scalar": r.choice((7, 16, 30)), "final_logit_softcapping": r.choice((None, 3.0))}
        found["attn_logit_softcapping"] = r.choice((None, 2.0))
    return found


def _rotary(r: random.Random, head_dim: int, kind: str) -> dict[str, Any]:
    """Rotary settings in the new spelling, some of them for parts of a head."""
    rope = r.choice(SCALINGS) | {"rope_theta": r.choice((100.0, 1e4, 5e5))}
    if kind in PARTIAL:
        rope["partial_rotary_factor"] = r.choice((0.5, 1.0))
    if rope["rope_type"] == "longrope":
        pairs = int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
        rope |= {name: [round(r.uniform(1, 9), 2) for _ in range(pairs)] for name in ("short_factor", "long_factor")}
        rope |= r.choice(({}, {"factor": 3.0}, {"attention_factor": 1.25}))
    if kind == "Gemma3":
        return {}
    return {"rope_parameters": rope} | ({"original_max_position_embeddings": 16} if kind == "Phi3" else {})


def _image(r: random.Random, kind: str) -> dict[str, Any]:
    patch, channels = r.choice((4, 5, 8)), r.choice((1, 3))
    found: dict[str, Any] = {"image_size": patch * r.randint(1, 4), "patch_size": patch, "num_channels": channels}
    found["hidden_act"] = r.choice(("gelu", "relu", "silu"))
    if kind == "DINOv3ViT":
        found |= {f"{name}_bias": r.random() < 0.5 for name in ("query", "key", "value", "proj", "mlp")}
        return found | {"use_gated_mlp": r.random() < 0.5, "num_register_tokens": r.randint(0, 3)}
    found["qkv_bias"] = r.random() < 0.5
    if kind.startswith("Dinov2"):
        found |= {"mlp_ratio": r.randint(1, 4), "use_swiglu_ffn": r.random() < 0.4}
    return found | ({"num_register_tokens": r.randint(1, 3)} if kind == "Dinov2WithRegisters" else {})


class Exact(TorchFunctionMode):
    """Computes in float64 what asks for float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def exact(theirs: Any, *inputs: Any, **options: Any) -> Tensor:
    """The first output of a model of transformers, calculated in float64 throughout."""
    torch.set_default_dtype(torch.float64)
    try:
        with Exact(), torch.no_grad():
            wide = type(theirs)(theirs.config).eval()
            wide.load_state_dict(theirs.state_dict())
            return wide(*inputs, **options)[0]
    finally:
        torch.set_default_dtype(torch.float32)


def in_float64(ours: Any, theirs: Any, batches: Sequence[Tensor]) -> dict[str, float]:
    """How far both functions are apart in float64, and each side's float32 outputs from those of float64, at worst."""
    wide, found = deepcopy(ours).double(), {"float64": 0.0, "ours": 0.0, "theirs": 0.0}
    with torch.no_grad():
        for tokens in batches:
            truth = exact(theirs, tokens, **WITHOUT)
            outputs = {"float64": wide(tokens), "ours": ours(tokens), "theirs": theirs(tokens, **WITHOUT)[0]}
            found = {key: max(value, apart(outputs[key], truth)) for key, value in found.items()}
    return found


def compare(seed: int, folder: Path) -> dict[str, Any] | None:
    """One row of the table; None where transformers itself cannot run the configuration."""
    import transformers

    from triune.text.checkpoints import pretrained as text
    from triune.text.checkpoints.originals import random_tokens
    from triune.vision.checkpoints import pretrained as vision

    task, name, options = draw(seed)
    room: Any = text if task == "text" else vision
    cls: Any = getattr(transformers, name if task == "text" else f"{name}Model")
    row: dict[str, Any] = {"seed": seed, "class": cls.__name__}
    torch.manual_seed(seed)
    try:
        config = cls.config_class(**options)
        config._experts_implementation = "eager"  # the other ones have no float64
        theirs = cls(config).eval()
        with torch.no_grad():
            if task == "text":
                theirs(torch.full((1, 30), 3), **WITHOUT)
            for parameter in theirs.parameters():
                wide = parameter.dim() > 1
                parameter.normal_(std=0.3) if wide else parameter.add_(torch.randn_like(parameter) * 0.2)
    except Exception:  # whatever the library says to a configuration that it does not have
        return None
    theirs.save_pretrained(folder / "theirs")
    try:
        ours = room.load(str(folder / "theirs"))
        row["source"] = room.parity(ours, folder / "theirs", "hf")
        room.export(ours, folder / "back", "hf")
        row["written"] = room.parity(ours, folder / "back", "hf")
        if task == "text":
            theirs.set_attn_implementation("eager")
            wanted = 1 if max(row["source"], row["written"]) <= LIMIT else BATCHES
            row |= in_float64(ours.model, theirs, [random_tokens(ours.model.config, batch) for batch in range(wanted)])
    except UserError as error:
        return row | {"refused": str(error).replace(str(folder), "")}
    except Exception as error:  # what was written does not run there
        return row | {"source": float("nan"), "written": float("nan"), "error": str(error)[:200]}
    return row


def run(wanted: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of the first `wanted` configurations from seed `first` on that transformers can run."""
    rows: list[dict[str, Any]] = []
    while len(rows) < wanted:
        with tempfile.TemporaryDirectory() as folder:
            row = compare(first, Path(folder))
        first += 1
        rows += [row] if row else []
    return rows


def wrong(row: dict[str, Any]) -> bool:
    """Whether outputs differ by more than rounding; NaN counts."""
    if "refused" in row:
        return False
    if not row.get("float64", 0.0) <= SAME:
        return True
    return not (max(row["source"], row["written"]) <= LIMIT or ill_conditioned(row))


def ill_conditioned(row: dict[str, Any]) -> bool:
    """Whether the same function differs because this model multiplies the rounding of transformers as much."""
    within = "float64" in row and row["ours"] <= WORSE * row["theirs"]
    return within and LIMIT < max(row["source"], row["written"]) <= row["ours"] + row["theirs"]


def main() -> None:
    import transformers
    from common import record

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = run(int(sys.argv[1]) if len(sys.argv) > 1 else 300, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    bad, refused = [row for row in rows if wrong(row)], [row for row in rows if "refused" in row]
    fine = [row for row in rows if "refused" not in row and not wrong(row)]
    ill = [row for row in fine if ill_conditioned(row)]
    largest = max(max(row["source"], row["written"]) for row in fine if row not in ill)
    same = max(row.get("float64", 0.0) for row in fine)
    print(*bad, *ill, *Counter(row["refused"] for row in refused).items(), sep="\n")
    print(
        f"{len(rows)} configurations: {len(bad)} wrong, {len(refused)} refused, largest difference {largest:.2g} "
        f"in float32 but for {len(ill)} that multiply the rounding of both sides, {same:.2g} in float64"
    )
    record(
        "parity_random", rows, configurations=len(rows), wrong=len(bad), refused=len(refused), largest=largest,
        ill_conditioned=len(ill), float64=same,
    )  # fmt: skip


if __name__ == "__main__":
    main()
