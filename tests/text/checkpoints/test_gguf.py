"""GGUF files: header, quantised tensors, the models of transformers written as llama.cpp's converter does,
tokenizers.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from triune.convert import task_of
from triune.core.errors import UserError
from triune.text.checkpoints.gguf import Tensors, read_header
from triune.text.checkpoints.pretrained import export, load
from triune.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'triune[gguf]'")
transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")


def _other_tests() -> Any:
    spec = importlib.util.spec_from_file_location("text_cases", Path(__file__).with_name("test_pretrained.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


MODELS = _other_tests()
ARCHITECTURES = {
    "llama 3": "LLAMA",
    "llama with biases": "LLAMA",
    "mistral": "LLAMA",
    "qwen 2": "QWEN2",
    "qwen 3": "QWEN3",
    "smollm 3": "SMOLLM3",
    "gemma": "GEMMA",
    "gemma 2": "GEMMA2",
    "gemma 3": "GEMMA3",
    "neox": "GPTNEOX",
    "gpt 2": "GPT2",
    "phi 3": "PHI3",
    "phi 3, half of a head, window": "PHI3",
    "olmo 2": "OLMO2",
    "olmo 3": "OLMO2",
    "granite": "GRANITE",
    "starcoder 2": "STARCODER2",
    "starcoder 2 without biases": "STARCODER2",
    "stablelm": "STABLELM",
    "stablelm, parallel, norms of heads": "STABLELM",
    "cohere": "COMMAND_R",
    "cohere with norms of heads": "COMMAND_R",
    "cohere 2": "COHERE2",
    "falcon": "FALCON",
    "falcon, a key for each head, biases": "FALCON",
    "falcon, new decoder": "FALCON",
    "falcon, new decoder with one norm": "FALCON",
    "mixtral": "LLAMA",
    "qwen 3 moe": "QWEN3MOE",
}
"""The cases of `test_pretrained.py` -> architecture."""
FIXED: dict[str, dict[str, Any]] = {
    "gemma 2": {"query_pre_attn_scalar": 16},
    "starcoder 2": {"sliding_window": None, "num_hidden_layers": 2},
    "starcoder 2 without biases": {"hidden_act": "gelu_pytorch_tanh"},
    "cohere with norms of heads": {"tie_word_embeddings": True},
}
"""Settings that a GGUF file does not state, as it presumes them."""
MIXTURES = {
    "mixtral": ("Mixtral", MODELS.GROUPED | {"num_local_experts": 3}),
    "qwen 3 moe": (
        "Qwen3Moe", MODELS.GROUPED | {"head_dim": 12, "num_experts": 5, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "norm_topk_prob": True},
    ),
}  # fmt: skip


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of q and k as the converter moves them: the two halves of a head become neighbours."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def converted(name: str, tensor: Tensor, config: Any, arch: str) -> Tensor:
    """One weight as llama.cpp's converter writes it."""
    if arch in ("LLAMA", "SMOLLM3", "GRANITE") and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return interleaved(tensor, heads)
    if arch.startswith("GEMMA") and name.endswith("norm.weight"):
        return tensor + 1
    if arch == "GPT2" and tensor.dim() == 2 and ".h." in name:
        return tensor.T
    if "query_key_value" in name and arch == "GPTNEOX":
        heads = config.num_attention_heads
        return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    if "query_key_value" in name:
        heads, kv_heads = config.num_attention_heads, falcon_keys(config)
        groups = tensor.unflatten(0, (kv_heads, heads // kv_heads + 2, -1))
        return torch.cat([part.flatten(0, 2) for part in groups.split([heads // kv_heads, 1, 1], dim=1)])
    return tensor


def falcon_keys(config: Any) -> int:
    if config.new_decoder_architecture:
        return config.num_kv_heads
    return 1 if config.multi_query else config.num_attention_heads


def stacked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms of single heads as rows of one tensor; experts, whose gate and up this version keeps together, apart."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".norms." in name:
            first = name.split(".norms.")[0] + ".weight"
            found[first] = torch.cat([*([found[first]] if first in found else []), tensor[None]])
        elif name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                found[name.replace("gate_up", part) + ".weight"] = half
        else:
            found[name + ".weight" if name.endswith("experts.down_proj") else name] = tensor
    return found


def write_settings(writer: Any, model: Any, arch: str) -> None:
    """The metadata of a model."""
    config = model.config
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    usual = getattr(config, "intermediate_size", 4 * config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "ffn_hidden_size", usual))
    writer.add_head_count(config.num_attention_heads)
    width = config.hidden_size // config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or width
    layernorm = ("GPT2", "GPTNEOX", "FALCON", "STARCODER2", "STABLELM", "COMMAND_R", "COHERE2")
    writer.add_layer_norm_eps(1e-5) if arch in layernorm else writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch not in ("GPT2", "GPTNEOX"):
        writer.add_head_count_kv(falcon_keys(config) if arch == "FALCON" else config.num_key_value_heads)
    if arch not in ("GPT2", "GPTNEOX", "FALCON"):
        rope = config.rope_parameters
        of_full = rope.get("full_attention", rope)
        writer.add_rope_freq_base(of_full["rope_theta"])
        writer.add_rope_dimension_count(int(head_dim * (of_full.get("partial_rotary_factor") or 1)))
        if head_dim != width or arch == "QWEN3MOE":
            writer.add_key_length(head_dim)
        if rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        if rope.get("rope_type") == "llama3":
            inverse = 1 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2) / head_dim)
            writer.add_tensor("rope_freqs.weight", (inverse / model.model.rotary_emb.inv_freq).float().numpy())
    if arch == "GPTNEOX":
        writer.add_rope_dimension_count(int(head_dim * 0.5))
        writer.add_parallel_residual(config.use_parallel_residual)
    if getattr(config, "sliding_window", None) or arch == "PHI3":
        writer.add_sliding_window(config.sliding_window or 0)
    if arch == "OLMO2" and getattr(config, "sliding_window", None):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if arch == "PHI3" and rope["rope_type"] == "longrope":
        context = rope["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(context)
        writer.add_rope_scaling_attn_factors((1 + np.log(64 / context) / np.log(context)) ** 0.5)
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))
    if arch == "GEMMA2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "GRANITE":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch in ("COMMAND_R", "COHERE2"):
        writer.add_logit_scale(config.logit_scale)
    if arch == "STABLELM":
        writer.add_parallel_residual(config.use_parallel_residual)
    if experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if arch == "QWEN3MOE":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def write(path: Path, model: Any, arch: str, edit: Any = lambda writer: None, quantised: str | None = None) -> Path:
    """A GGUF file of a model."""
    kind, config = getattr(gguf.MODEL_ARCH, arch), model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    write_settings(writer, model, arch)
    edit(writer)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in stacked(model.state_dict()).items():
        if name in ("lm_head.weight", "embed_out.weight") and config.tie_word_embeddings:
            continue
        new = names.get_name(name, (".weight", ".bias")) or names.get_name(
            name.replace("lm_head", "embed_out"), (".weight", ".bias")
        )
        assert new, name
        array = converted(name, tensor, config, arch).contiguous().float().numpy()
        if quantised and array.ndim == 2 and array.shape[1] % 32 == 0:
            raw = getattr(gguf.GGMLQuantizationType, quantised)
            writer.add_tensor(new, gguf.quants.quantize(array, raw), raw_dtype=raw)
        else:
            writer.add_tensor(new, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model_of(name: str) -> Any:
    kind, options = MODELS.CASES[name] if name in MODELS.CASES else MIXTURES[name]
    options = options | FIXED.get(name, {})
    if name == "llama 3":  # the file states the result of this scaling, for Llama's own context only
        options = options | {"rope_parameters": MODELS.LLAMA3 | {"original_max_position_embeddings": 8192}}
    return MODELS.original(kind, options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_are_those_of_the_original(name, tmp_path):
    theirs = model_of(name)
    ours = load(str(write(tmp_path / "model.gguf", theirs, ARCHITECTURES[name])))
    assert ours.family is not None
    assert ours.family.library == "gguf"
    assert ours.companion is None
    assert MODELS.difference(ours.model, theirs, MODELS.ids()) < 1e-5


@pytest.mark.parametrize(
    ("arch", "edit", "said"),
    [
        ("LLAMA", lambda w: w.add_clamp_kqv(8.0), "attention.clamp_kqv = 8.0, which the core does not have"),
        ("LLAMA", lambda w: w.add_logit_scale(0.5), "logit_scale = 0.5, which"),
        ("LLAMA", lambda w: w.add_causal_attention(False), "attention.causal = False"),
        ("LLAMA", lambda w: w.add_rope_scaling_attn_factors(1.2), "rope.scaling.attn_factor = 1.2"),
        ("LLAMA", lambda w: w.add_value_length(16), "attention.value_length = 16"),
    ],
)
def test_a_key_that_changes_the_model_and_has_no_counterpart_is_refused(arch, edit, said, tmp_path):
    path = write(tmp_path / "model.gguf", model_of("llama"), arch, edit)
    with pytest.raises(UserError, match=said):
        load(str(path))


@pytest.mark.parametrize("name", ["llama 3", "gemma 2", "phi 3", "olmo 3", "cohere 2", "falcon, new decoder"])
def test_from_gguf_to_hugging_face(name, tmp_path):
    theirs = model_of(name)
    ours = load(str(write(tmp_path / "model.gguf", theirs, ARCHITECTURES[name])))
    export(ours, tmp_path / "out", "hf")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    assert MODELS.difference(ours.model, again.eval(), MODELS.ids()) < 1e-5


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "BF16", "F16"])
def test_quantised_tensors_and_the_header_are_those_of_the_package(kind, tmp_path):
    path = write(tmp_path / "model.gguf", model_of("qwen 2"), "QWEN2", quantised=kind)
    header, reader = read_header(path), gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert header.metadata[key] == field.contents(), key
    tensors = Tensors(header)
    assert list(tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(tensors[tensor.name].numpy(), expected.reshape(tensors[tensor.name].shape)), tensor.name
    assert load(str(path)).model.config.vocab_size == MODELS.VOCAB


# --- tokenizers -------------------------------------------------------------------------------------------------------

TEXT = "It's 12345 o'clock,  DON'T — naïve déjà-vu!\n\n\tif (x == 10) { return “y”; }  数字 \r\n end "


def metadata(pre: str, model: str = "gpt2", begins: bool | None = None) -> tuple[Any, Tokenizer]:
    """A writer of the tokenizer's metadata, and the tokenizer it was made of."""
    trained = Tokenizer.train_bpe([TEXT * 3, "the clock is not the end of it 12 345"], 330)
    content = trained._json["model"]
    vocab = dict(content["vocab"])
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokens += [f"<unused{i}>" for i in range(MODELS.VOCAB * 6 - len(tokens))]

    def edit(writer: Any) -> None:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in content["merges"]])
        writer.add_eos_token_id(vocab["<|endoftext|>"])
        writer.add_bos_token_id(vocab["<|endoftext|>"])
        writer.add_chat_template("{{ messages }}")
        if begins is not None:
            writer.add_add_bos_token(begins)

    return edit, trained


def large() -> Any:
    kind, options = MODELS.CASES["llama"]
    return MODELS.original(kind, options | {"vocab_size": 6 * MODELS.VOCAB})


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_tokenizers(pre, tmp_path):
    from tokenizers import Regex, pre_tokenizers

    edit, trained = metadata(pre)
    tokenizer = load(str(write(tmp_path / "model.gguf", large(), "LLAMA", edit))).companion
    assert tokenizer is not None
    words = {
        "gpt-2": [],
        "smollm": [r"\p{N}"],
        "llama-bpe": [transformers_words(r"\p{N}{1,3}")],
        "qwen2": [transformers_words(r"\p{N}")],
    }[pre]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in ("gpt-2", "smollm"))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in words]
    trained.backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    expected = trained.backend.encode(TEXT, add_special_tokens=False).ids
    assert tokenizer.encode(TEXT).tolist() == expected
    assert tokenizer.decode(expected) == TEXT
    assert tokenizer.eos_id == trained.eos_id
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.beginning == ([trained.eos_id] if pre == "llama-bpe" else [])
    assert tokenizer.encode("<|endoftext|>").tolist() != [trained.eos_id]


def transformers_words(numbers: str) -> str:
    """The pattern that transformers has for Qwen 2, with other groups of digits."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    return PRETOKENIZE_REGEX.replace(r"|\p{N}|", f"|{numbers}|")


def test_a_beginning_is_only_written_where_the_file_says_so(tmp_path):
    edit, _ = metadata("llama-bpe", begins=False)
    companion = load(str(write(tmp_path / "model.gguf", large(), "LLAMA", edit))).companion
    assert companion is not None
    assert companion.beginning == []


# --- bad files --------------------------------------------------------------------------------------------------------


def test_damaged_and_unknown_files(tmp_path):
    path = write(tmp_path / "model.gguf", large(), "LLAMA", metadata("gpt-2")[0])
    content = path.read_bytes()
    for end in (3, 20, 400, 4000):
        (tmp_path / "cut.gguf").write_bytes(content[:end])
        with pytest.raises(UserError, match="GGUF"):
            load(str(tmp_path / "cut.gguf"))
    (tmp_path / "tail.gguf").write_bytes(content[:-2000])
    with pytest.raises(UserError, match="cut short or damaged"):
        load(str(tmp_path / "tail.gguf"))
    (tmp_path / "other.gguf").write_bytes(b"\x89PNG" + content[4:])
    with pytest.raises(UserError, match="is not a GGUF file"):
        load(str(tmp_path / "other.gguf"))
    (tmp_path / "arch.gguf").write_bytes(
        content.replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00mamba", 1)
    )
    with pytest.raises(UserError, match="architecture 'mamba', which is not supported; supported are gpt2, llama"):
        load(str(tmp_path / "arch.gguf"))


def test_a_damaged_file_of_any_kind_is_an_error_of_one_sentence(tmp_path):
    """Bytes of the header changed at random: the model opens all the same, or the user is told."""
    content = write(tmp_path / "model.gguf", large(), "LLAMA", metadata("gpt-2")[0]).read_bytes()
    random = np.random.default_rng(0)
    told = []
    for _ in range(25):
        damaged = bytearray(content)
        for at in random.integers(0, 1500, 2):
            damaged[at] = random.integers(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            load(str(tmp_path / "damaged.gguf"))
        except UserError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all("damaged.gguf" in message for message in told)


def test_other_tokenizers_and_rotations_are_named(tmp_path):
    sentencepiece = write(tmp_path / "a.gguf", large(), "LLAMA", metadata("default", model="llama")[0])
    assert load(str(sentencepiece)).companion is None
    from triune.text.generate import load as to_generate

    with pytest.raises(UserError, match="no tokenizer that can be read"):
        to_generate(sentencepiece)
    with pytest.raises(UserError, match="in the way 'deepseek-coder'"):
        load(str(write(tmp_path / "b.gguf", large(), "LLAMA", metadata("deepseek-coder")[0])))

    def odd(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", np.array([1, 2, 3, 5], dtype=np.float32))

    with pytest.raises(UserError, match="rope_freqs"):
        load(str(write(tmp_path / "c.gguf", large(), "LLAMA", odd)))


def packed(*parts: Any) -> bytes:
    """Numbers by their codes, and texts as GGUF writes them."""
    found = b""
    for part in parts:
        if isinstance(part, str):
            found += struct.pack("<Q", len(part)) + part.encode()
        else:
            found += struct.pack("<" + part[0], part[1])
    return found


def header(tensors: int, pairs: int, *rest: Any, version: int = 3) -> bytes:
    return b"GGUF" + packed(("I", version), ("Q", tensors), ("Q", pairs), *rest)


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return packed(name, ("I", len(shape)), *(("Q", size) for size in shape), ("I", kind), ("Q", offset))


def aligned(value: int, code: str = "I", kind: int = 4) -> bytes:
    return header(1, 1, "general.alignment", ("I", kind), (code, value)) + tensor("a", 4) + b"\0" * 256


END = b"\0" * 256
HUGE = 2**63


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (header(0, 0, version=99), "is GGUF of version 99, but must be of version 2 or 3; make it anew"),
        (header(0, 0, version=1), "is GGUF of version 1, but must be"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a GGUF file for big-endian machines"),
        (b"", "cannot be read as GGUF"),
        (aligned(0), "general.alignment is 0, but must be a positive multiple of 8"),
        (aligned(12), "general.alignment is 12, but"),
        (aligned(-8, "i", 5), "general.alignment is -8, but"),
        (aligned(1, "?", 7), "general.alignment is True, but"),
        (header(1, 1, "general.alignment", ("I", 8), "32") + tensor("a", 4) + END, "general.alignment is '32', but"),
        (aligned(2**31), "tensor 'a' of the shape (4,) ends behind the file"),
        (header(HUGE, 0) + END, "too short for 9,223,372,036,854,775,808 tensors"),
        (header(0, HUGE) + END, "too short for 9,223,372,036,854,775,808 pairs of metadata"),
        (header(0, 1, ("Q", HUGE)) + END, "too short for a text of 9,223,372,036,854,775,808 bytes"),
        (header(0, 1, "k", ("I", 9), ("I", 4), ("Q", HUGE)) + END, "808 values of a list"),
        (header(0, 1, "k", ("I", 9), ("I", 8), ("Q", HUGE)) + END, "808 values of a list"),
        (header(0, 1, "k", ("I", 77)) + END, "a value of the unknown kind 77"),
        (header(0, 1, "k", ("I", 9), ("I", 77), ("Q", 1)) + END, "a value of the unknown kind 77"),
        (
            header(0, 1, "k", *[("I", 9), ("I", 9), ("Q", 1), ("I", 9), ("Q", 1), ("I", 9), ("Q", 1)]) + END,
            "in each other",
        ),
        (header(0, 1, "k", ("I", 9), ("I", 0), ("Q", 5 << 20)) + b"\0" * (5 << 20), "lists of more than 4,194,304"),
        (header(0, 2, "k", ("I", 0), ("B", 1), "k", ("I", 0), ("B", 1)) + END, "has the key 'k' twice"),
        (header(2, 0) + tensor("a", 4) + tensor("a", 4, offset=32) + END, "has the tensor 'a' twice"),
        (header(2, 0) + tensor("a", 16) + tensor("b", 4, offset=32) + END, "tensors 'a' and 'b' lie over each other"),
        (header(1, 0) + tensor("a", 4, offset=8) + END, "'a' does not begin at a multiple of 32"),
        (header(1, 0) + tensor("a", 4, offset=HUGE) + END, "'a' of the shape (4,) ends behind the file"),
        (header(1, 0) + tensor("a", HUGE, HUGE, HUGE, HUGE) + END, "ends behind the file"),
        (header(1, 0) + tensor("a", 4, 0) + END, "has a length of 0 in its shape (0, 4)"),
        (header(1, 0) + tensor("a", *[1] * 9) + END, "a tensor of 9 axes, more than 4"),
        (header(1, 0) + packed("a", ("I", 2**32 - 1)) + END, "a tensor of 4,294,967,295 axes"),
        (header(1, 0) + tensor("a", 33, kind=8) + END, "have 33 values, no multiple of 32"),
    ],
)
def test_headers_that_lie_are_refused_in_bounded_memory(tmp_path, content, sentence):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as told:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert sentence in str(told.value)
    assert str(told.value).count(str(path)) == 1


def test_the_command_for_all_kinds_of_checkpoints_knows_gguf(tmp_path, capsys):
    path = write(tmp_path / "model.gguf", large(), "LLAMA", metadata("gpt-2")[0])
    assert task_of(str(path)) == "text"
    path.write_bytes(header(0, 0, version=99))
    with pytest.raises(UserError, match="is GGUF of version 99, but must be"):
        task_of(str(path))
