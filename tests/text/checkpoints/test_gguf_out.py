"""GGUF files that are written: read again by ourselves and by the `gguf` package, and by llama.cpp where it is
installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HFTokenizer

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.text.checkpoints import gguf_quants
from triune.text.checkpoints.gguf import read_header
from triune.text.checkpoints.gguf_check import LlamaFile, report
from triune.text.checkpoints.gguf_export import export_gguf
from triune.text.checkpoints.gguf_vocabulary import WORDS, metadata
from triune.text.checkpoints.originals import TEXTS
from triune.text.checkpoints.pretrained import HF_FAMILIES, export, load
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'triune[gguf]'")
transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")


def _cases(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"text_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


READ = _cases("test_gguf")
UNFIT = ("starcoder 2 without biases", "falcon, a key for each head, biases", "cohere with norms of heads")
ALSO = ("llama", "mistral without a window", "neox, serial", "stablelm, norms of heads")
NAMES = [name for name in (*READ.ARCHITECTURES, *ALSO) if name not in UNFIT]
WINDOWED = ("mistral", "phi 3, half of a head, window")
"""Cases with a window that llama.cpp does not have in the architecture."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LETTERS = [chr(code) for code in range(33, 33 + READ.MODELS.VOCAB)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Any, Path]]:
    """Each model as we read it, and the file that was written of it."""
    found = {}
    for number, name in enumerate(NAMES):
        folder = tmp_path_factory.mktemp(f"model{number}")
        READ.model_of(name).save_pretrained(folder)
        ours = load(str(folder))
        ours.companion = Tokenizer.characters(LETTERS)
        path = folder / "out.gguf"
        export_gguf(ours.model, ours.companion, path, "f32", HF_FAMILIES, ours.family)
        found[name] = ours, path
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_family_comes_back(made, name):
    ours, path = made[name]
    again = load(str(path))
    before, after = ours.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if name.startswith("gemma") and "norm" in key:  # stored with one added
            assert torch.allclose(tensor, after[key], atol=2e-7)
        else:
            assert torch.equal(tensor, after[key]), key
    tokens = torch.randint(0, READ.MODELS.VOCAB, (1, again.model.config.transformer.context))
    tokens = tokens[:, :7] if name in WINDOWED else tokens
    with torch.no_grad():
        assert (ours.model(tokens) - again.model(tokens)).abs().max() < 1e-5
    assert again.companion.encode("HELLO").tolist() == ours.companion.encode("HELLO").tolist()


def test_the_package_reads_the_same_numbers(made):
    ours, path = made["llama"]
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    wanted = ours.model.state_dict()
    assert np.array_equal(found["token_embd.weight"], wanted["embedding.weight"].numpy())
    assert np.array_equal(found["blk.1.ffn_down.weight"], wanted["transformer.blocks.1.ffn.down.weight"].numpy())
    heads = ours.model.config.transformer.heads
    turned = READ.interleaved(wanted["transformer.blocks.0.attn.q.weight"], heads)
    assert np.array_equal(found["blk.0.attn_q.weight"], turned.numpy())
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.rope.dimension_count"].contents() == ours.model.config.transformer.head_dim


def test_windows_become_a_shorter_context(tmp_path):
    READ.model_of("mistral").save_pretrained(tmp_path / "m")
    ours = load(str(tmp_path / "m"))
    notes = export_gguf(ours.model, Tokenizer.characters(LETTERS), tmp_path / "m.gguf", "f32", HF_FAMILIES, ours.family)
    assert "no windows in this architecture: the context is 7 tokens there" in notes[0]
    assert read_header(tmp_path / "m.gguf").get("context_length") == 7


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama, dynamic", "stretched by 'dynamic', which llama.cpp does not have"),
        ("llama, longrope", "stretched by 'longrope', which llama.cpp does not have in the architecture 'llama'"),
        ("llama, wide heads, gelu", "cannot be told transformer.ffn"),
        ("gpt j", "no counterpart to this model"),
        ("starcoder 2 without biases", "linear layers without biases"),
        ("falcon, a key for each head, biases", "biases of linear layers other than"),
        ("olmo 2 with biases", "biases of linear layers other than"),
        ("falcon, serial", "cannot be told transformer.parallel"),
    ],
)
def test_what_llama_cpp_does_not_have(name, said, tmp_path):
    kind, options = READ.MODELS.CASES[name]
    READ.MODELS.original(kind, options).save_pretrained(tmp_path / "m")
    ours = load(str(tmp_path / "m"))
    with pytest.raises(UserError, match=said):
        export_gguf(ours.model, Tokenizer.characters(LETTERS), tmp_path / "m.gguf", "f32", HF_FAMILIES, ours.family)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*.gguf"))


# --- quantisation -----------------------------------------------------------------------------------------------------


def dequantised(raw: np.ndarray, kind: str) -> np.ndarray:
    return gguf.quants.dequantize(raw, getattr(gguf.GGMLQuantizationType, kind)).reshape(-1, 256)


def test_values_that_a_block_can_hold_come_back_exactly():
    generator = torch.Generator().manual_seed(0)
    scales = torch.randint(8, 64, (5, 8, 1), generator=generator)
    scales[:, 3] = 63
    shifts = torch.randint(8, 64, (5, 8, 1), generator=generator)
    shifts[:, 2] = 63
    q = torch.randint(0, 16, (5, 8, 32), generator=generator)
    q[..., 0], q[..., 1] = 0, 15
    x = (0.25 * scales * q - 0.125 * shifts).reshape(5, 256)
    raw = gguf_quants.quantize(x, "Q4_K")
    assert raw.shape == (5, 144)
    assert np.abs(dequantised(raw, "Q4_K") - x.numpy()).max() < 1e-6 * 63
    signed = torch.randint(-128, 128, (5, 16, 1), generator=generator)
    signed[:, 4] = -128
    signed[signed == 0] = 7
    q = torch.randint(-32, 32, (5, 16, 16), generator=generator)
    q[..., 0] = -32
    x = (0.5 * signed * q).reshape(5, 256)
    raw = gguf_quants.quantize(x, "Q6_K")
    assert raw.shape == (5, 210)
    assert np.array_equal(dequantised(raw, "Q6_K"), x.numpy())


def reference_q4_k(x: np.ndarray) -> np.ndarray:
    """Values of one block as Q4_K keeps them, each part by itself: scale and shift of the extremes, rounded to six bits
    of the largest."""
    parts = x.reshape(8, 32)
    shift = np.maximum(-parts.min(1), 0)
    scale = (parts.max(1) + shift) / 15
    d, m = (np.float16(part.max() / 63).astype(np.float32) for part in (scale, shift))
    scale, shift = (np.round(part / step) * step for part, step in ((scale, d), (shift, m)))
    q = np.clip(np.round((parts + shift[:, None]) / scale[:, None]), 0, 15)
    return (q * scale[:, None] - shift[:, None]).reshape(-1)


def test_fitting_is_better_than_the_extremes():
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)) * 0.02
    found = dequantised(gguf_quants.quantize(x, "Q4_K"), "Q4_K")
    simple = np.stack([reference_q4_k(row) for row in x.numpy()])
    error, reference = (np.square(part - x.numpy()).mean() for part in (found, simple))
    assert error < reference  # least squares beat the extremes
    assert np.abs(found - x.numpy()).max() < 2 * np.abs(simple - x.numpy()).max()
    six = dequantised(gguf_quants.quantize(x, "Q6_K"), "Q6_K")
    five = dequantised(gguf_quants.quantize(x, "Q5_0"), "Q5_0")
    assert np.square(six - x.numpy()).mean() < 0.3 * np.square(five - x.numpy()).mean()
    assert not dequantised(gguf_quants.quantize(torch.zeros(2, 256), "Q4_K"), "Q4_K").any()
    assert not dequantised(gguf_quants.quantize(torch.zeros(2, 256), "Q6_K"), "Q6_K").any()


def small(dim: int = 64, depth: int = 3, vocab: int = 300, **more: Any) -> LanguageModel:
    core = TransformerConfig(
        dim=dim, depth=depth, heads=2, ffn="swiglu", norm="rmsnorm", bias=False, causal=True, context=32,
        **{"ffn_dim": 2 * dim} | more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(vocab, core)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def bpe(digits: bool = False) -> Tokenizer:
    return Tokenizer.train_bpe(["the cat and the dog, 123 and 456: don't!\n\n  über"] * 3, 300, digits)


@pytest.mark.parametrize(
    ("type_", "dim", "kinds"),
    [
        ("q8_0", 64, {"Q8_0"}),
        ("f16", 64, {"F16"}),
        ("bf16", 64, {"BF16"}),
        ("q4_k_m", 64, {"Q8_0", "Q5_0"}),
        ("q4_k_m", 256, {"Q6_K", "Q4_K"}),
    ],
)
def test_rounded_weights_come_back_as_the_package_reads_them(type_, dim, kinds, tmp_path):
    model, path = small(dim), tmp_path / "m.gguf"
    export_gguf(model, bpe(), path, type_, HF_FAMILIES)
    tensors = gguf.GGUFReader(path).tensors
    assert {tensor.tensor_type.name for tensor in tensors} == kinds | {"F32"}
    again = load(str(path)).model.state_dict()
    for name, ours in (("ffn_down", "ffn.down"), ("attn_v", "attn.v"), ("attn_output", "attn.out")):
        (tensor,) = [tensor for tensor in tensors if tensor.name == f"blk.1.{name}.weight"]
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        key = f"transformer.blocks.1.{ours}.weight"
        assert np.array_equal(again[key].numpy(), wanted)
        part = np.square(wanted - model.state_dict()[key].numpy()).mean() / np.square(wanted).mean()
        assert 0 < part < {"q4_k_m": 0.1, "q8_0": 0.01, "f16": 1e-3, "bf16": 4e-3}[type_] ** 2


def test_widths_that_no_block_fits(tmp_path):
    with pytest.raises(
        UserError, match=r"multiple of 32 values, but those of blk.0.ffn_down.weight have 100; take f32"
    ):
        export_gguf(small(ffn_dim=100), bpe(), tmp_path / "m.gguf", "q4_k_m", HF_FAMILIES)
    model = small()
    with torch.no_grad():
        model.transformer.blocks[0].ffn.up.weight[0, 0] = 1e5  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"f16, which cannot hold the values of blk.0.ffn_up.weight; take bf16"):
        export_gguf(model, bpe(), tmp_path / "m.gguf", "f16", HF_FAMILIES)
    assert not list(tmp_path.iterdir())


# --- tokenizers -------------------------------------------------------------------------------------------------------


def with_chat() -> Tokenizer:
    tokenizer = bpe()
    backend = tokenizer.backend
    backend.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    number = backend.token_to_id("<|im_start|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair=None, special_tokens=[("<|im_start|>", number)]
    )
    end = backend.token_to_id("<|im_end|>")
    return Tokenizer(backend, ends=[end], chat_template=CHATML)


def words(ignore_merges: bool, groups: str) -> Tokenizer:
    """A byte-level BPE that cuts as Qwen 2 or Llama 3 does."""
    known = json.loads(bpe().backend.to_str())
    known["model"]["ignore_merges"] = ignore_merges
    backend = HFTokenizer.from_str(json.dumps(known))
    split = pre_tokenizers.Split(Regex(WORDS % groups), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return Tokenizer(backend)


def sentencepiece(prefix: bool) -> Tokenizer:
    """A BPE as SentencePiece makes them: all pairs that make a token, by its score."""
    trained = HFTokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    trained.train_from_iterator(["the cat and the dog and the catalog, then 123"] * 4, trainer)
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {token: number for number, token in enumerate(order)}
    merges = [(p[:n], p[n:]) for p in pieces for n in range(1, len(p)) if p[:n] in vocab and p[n:] in vocab]
    backend = HFTokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])
    return Tokenizer(backend, "</s>")


TOKENIZERS = {
    "bytes": (Tokenizer.bytes, "gpt2", "gpt-2"),
    "bpe": (bpe, "gpt2", "gpt-2"),
    "single digits": (lambda: bpe(True), "gpt2", "smollm"),
    "chat": (with_chat, "gpt2", "gpt-2"),
    "qwen": (lambda: words(False, r"\p{N}"), "gpt2", "qwen2"),
    "llama 3": (lambda: words(True, r"\p{N}{1,3}"), "gpt2", "llama-bpe"),
    "three digits": (lambda: words(False, r"\p{N}{1,3}"), "gpt2", "smaug-bpe"),
    "sentencepiece": (lambda: sentencepiece(True), "llama", "default"),
    "sentencepiece without a space": (lambda: sentencepiece(False), "llama", "default"),
    "characters": (lambda: Tokenizer.characters("\n\t\\ abcdefghijklmnopqrstuvwxyzé你"), "rwkv", None),
}


def texts_for(tokenizer: Tokenizer) -> list[str]:
    if tokenizer._character_table is not None:
        return ["a cat\n\tand \\n 你é", "", " "]
    return [*TEXTS, "the cat and the dog 4567", " the", "<tool>the</s>"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_comes_back(name, tmp_path):
    make, model, pre = TOKENIZERS[name]
    tokenizer = make()
    path = tmp_path / "m.gguf"
    rows = tokenizer.vocab_size + 3
    export_gguf(small(vocab=rows), tokenizer, path, "f32", HF_FAMILIES)
    meta = read_header(path).metadata
    assert (meta["tokenizer.ggml.model"], meta.get("tokenizer.ggml.pre")) == (model, pre)
    assert len(meta["tokenizer.ggml.tokens"]) == len(set(meta["tokenizer.ggml.tokens"])) == rows
    again = load(str(path)).companion
    for text in texts_for(tokenizer):
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist(), text
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (again.around, again.end_ids, again.eos_id) == (tokenizer.around, tokenizer.end_ids, tokenizer.eos_id)
    assert (again.vocab_size, again.chat_template) == (tokenizer.vocab_size, tokenizer.chat_template)


def odd_cut() -> Tokenizer:
    backend = bpe().backend
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), backend.pre_tokenizer])
    return Tokenizer(backend)


def other_merges() -> Tokenizer:
    known = json.loads(sentencepiece(True).backend.to_str())
    known["model"]["merges"] = known["model"]["merges"][::-1][:-1]
    return Tokenizer(HFTokenizer.from_str(json.dumps(known)), "</s>")


def lower_case() -> Tokenizer:
    backend = bpe().backend
    backend.normalizer = normalizers.Lowercase()
    return Tokenizer(backend)


def wordpiece() -> Tokenizer:
    backend = HFTokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    return Tokenizer(backend)


def greedy_word() -> Tokenizer:
    backend = bpe().backend
    backend.add_tokens([AddedToken("<x>", lstrip=True)])
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (odd_cut, "in a way that llama.cpp has no name for"),
        (other_merges, "llama.cpp would"),
        (lower_case, r"changes a text first \(Lowercase\)"),
        (wordpiece, "The tokenizer is WordPiece"),
        (greedy_word, "takes the spaces beside it"),
    ],
)
def test_tokenizers_that_llama_cpp_does_not_have(make, said):
    with pytest.raises(UserError, match=said):
        metadata(make(), 400)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tokenizer = with_chat()
    small(vocab=tokenizer.vocab_size).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def test_the_command(folder, tmp_path, capsys):
    path = tmp_path / "m.gguf"
    assert main(["convert", str(folder), str(path)]) == 0
    said = capsys.readouterr().out
    assert "Weights: " in said and "F16" in said and "Round trip: " in said and f"Done: '{path}'" in said
    assert main(["convert", str(folder), str(path), "--to", "gguf", "--type", "f32", "--overwrite"]) == 0
    assert "Outputs: exactly those of the model." in capsys.readouterr().out
    assert main(["convert", str(path), str(tmp_path / "back"), "--to", "triune"]) == 0
    before, after = (load(str(name)).model.state_dict() for name in (folder, tmp_path / "back"))
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert export(load(str(path)), tmp_path / "again.gguf", "gguf", "f32").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["m", "--type", "q8_0"], "--to is missing"),
        (["m.gguf", "--to", "hf"], "must end in .gguf"),
        (["m", "--to", "gguf"], "must end in .gguf"),
        (["m", "--to", "hf", "--type", "q8_0"], "--type is given, but only --to gguf uses it"),
        (["m.gguf", "--type", "q3"], "--type is 'q3'"),
    ],
)
def test_mistakes(folder, tmp_path, capsys, arguments, said):
    target, *options = arguments
    assert main(["convert", str(folder), str(tmp_path / target), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- llama.cpp --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Any:
    return pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_llama_cpps(llama, made, name):
    path = made[name][1]
    again = load(str(path))
    tokens = torch.randint(0, READ.MODELS.VOCAB, (again.model.config.transformer.context,))
    tokens = tokens[:24]
    theirs = LlamaFile(path, len(tokens), 1).logits(tokens.tolist())
    with torch.no_grad():
        mine = again.model(tokens[None])[0].numpy()
    assert np.square(theirs - mine).mean() ** 0.5 < 1e-3 * np.square(mine).mean() ** 0.5


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_llama_cpps(llama, name, tmp_path):
    tokenizer = TOKENIZERS[name][0]()
    path = tmp_path / "m.gguf"
    export_gguf(small(vocab=tokenizer.vocab_size + 3), tokenizer, path, "f32", HF_FAMILIES)
    theirs = LlamaFile(path, 8, 1)
    for text in filter(None, texts_for(tokenizer)):
        assert theirs.tokens(text) == [*tokenizer.beginning, *tokenizer.encode(text).tolist()], text


@pytest.mark.parametrize("type_", ["q8_0", "q4_k_m", "f16"])
def test_the_report_asks_llama_cpp(llama, folder, type_, tmp_path):
    pretrained = load(str(folder))
    export(pretrained, tmp_path / "m.gguf", "gguf", type_)
    lines = report(pretrained, tmp_path / "m.gguf", load)
    assert lines[-1].startswith("Tokens: llama.cpp makes the same of ") and "3 chats" in lines[-1]
