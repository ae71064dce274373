"""The families of text models: GPT-NeoX and glassllm here, the others in the files beside this one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import TRANSPOSED, Layout, Rule, WeightMap, heads_interleaved, pairs_interleaved
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.files import parsing, read_json
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from ..tokenizer import Tokenizer
from .decoder_families import DECODERS
from .encoders import ENCODERS
from .gpt import GPT, GPT_RELATIVES
from .granite4 import MAMBA2_HYBRIDS
from .hybrids import HYBRIDS
from .lfm2 import LFM
from .long_encoders import LONG_ENCODERS
from .more_decoders import MORE_DECODERS
from .nemotron_h import NEMOTRON
from .older import OLDER
from .recurrent import RECURRENT
from .rope import of_all, old_rotary, write_rotary
from .settings import PLAIN, REQUIRED, Settings, TextFamily, hf_family, name_of

# --- GPT-NeoX and Pythia ----------------------------------------------------------------------------------------------

NEOX = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), REQUIRED),
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "rotary_emb_base": 10_000.0,
    "rotary_pct": 0.25,
    "head_dim": None,
}


def read_neox(c: Settings) -> LanguageModelConfig:
    """The config of GPT-NeoX (Black et al. 2022) and Pythia."""
    c.require("head_dim", None, c["hidden_size"] // c["num_attention_heads"])  # it would change the rotation alone
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=c.depth(),
        heads=c["num_attention_heads"],
        causal=True,
        context=c["max_position_embeddings"],
        rotary=of_all(c, "rotary_emb_base", "rotary_pct"),
        norm_eps=c["layer_norm_eps"],
        parallel=c["use_parallel_residual"],
        ffn=c.choose("hidden_act", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["intermediate_size"],
        bias=True if c["attention_bias"] else ["up", "down"],
    )
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"])


def write_neox(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_neox`."""
    t = ours.transformer.resolved()
    rope = write_rotary(t.rotary_at(0) or RotaryConfig())
    old = old_rotary(rope)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "intermediate_size": t.ffn_dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "max_position_embeddings": t.context,
        "layer_norm_eps": t.norm_eps,
        "use_parallel_residual": t.parallel,
        "hidden_act": name_of(PLAIN, t.ffn),
        "attention_bias": t.has_bias("out"),
        "tie_word_embeddings": ours.tied,
        "rope_parameters": {"partial_rotary_factor": 1.0} | rope,
        "rotary_emb_base": old["rope_theta"],
        "rotary_pct": rope.get("partial_rotary_factor", 1.0),
        "rope_scaling": old["rope_scaling"],
        "hidden_dropout": t.dropout,
        "attention_dropout": t.attention_dropout,
    }


def neox_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of GPT-NeoX, where q, k and v of a head lie together."""
    block, layer = "transformer.blocks.{}", "gpt_neox.layers.{}"
    rules = (
        Rule("embedding", "gpt_neox.embed_in"),
        Rule(f"{block}.norm1", f"{layer}.input_layernorm"),
        Rule(
            tuple(f"{block}.attn.{name}" for name in "qkv"), f"{layer}.attention.query_key_value",
            heads_interleaved(config.transformer.heads),
        ),
        Rule(f"{block}.attn.out", f"{layer}.attention.dense"),
        Rule(f"{block}.norm2", f"{layer}.post_attention_layernorm"),
        Rule(f"{block}.ffn.up", f"{layer}.mlp.dense_h_to_4h"),
        Rule(f"{block}.ffn.down", f"{layer}.mlp.dense_4h_to_h"),
        Rule("transformer.final_norm", "gpt_neox.final_layer_norm"),
        Rule("head", "embed_out"),
    )  # fmt: skip
    return WeightMap(rules, ignored=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",))


# --- glassllm ---------------------------------------------------------------------------------------------------------


def _turned(layout: Layout) -> Layout:
    """The same, with matrices stored `[in, out]`."""
    return Layout(
        lambda parts: layout.join(parts).T.contiguous(),
        lambda whole, shapes: layout.split(whole.T, shapes),
        stacked=False,
    )


def read_glass(source: Source) -> LanguageModelConfig:
    """The config inside a glassllm archive: Llama, small. Its hidden width is that of the weights."""
    c = _glass_config(source)
    assert c is not None
    try:
        transformer = TransformerConfig(
            dim=c["d_model"],
            depth=c["n_layers"],
            heads=c["n_heads"],
            kv_heads=c["n_kv_heads"],
            causal=True,
            context=c["max_len"],
            rotary=RotaryConfig(base=c["rope_base"]),
            norm="rmsnorm",
            norm_eps=c["eps"],
            ffn="swiglu",
            ffn_dim=int(source.tensors()["blocks.0.ffn.W1"].shape[1]),
            bias=False,
        )
        return LanguageModelConfig(c["vocab_size"], transformer)
    except KeyError as error:
        raise UserError(f"'{source.name}' is an incomplete glassllm archive: it has no {error}.") from None


def _glass_config(source: Source) -> dict[str, Any] | None:
    if source.file is None or source.file.suffix != ".npz":
        return None
    try:
        with parsing(source.file, "a NumPy archive"), np.load(source.file, allow_pickle=False) as archive:
            content = json.loads(str(archive["__config__"])) if "__config__" in archive.files else None
    except UserError:
        return None  # reading its weights says what is wrong
    return content if isinstance(content, dict) and "d_model" in content else None


def glass_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of glassllm: matrices `[in, out]`, rotary pairs side by side."""
    t = config.transformer.resolved()
    block, layer = "transformer.blocks.{}", "blocks.{}"
    rules = (
        Rule("embedding.weight", "E"),
        Rule(f"{block}.norm1.weight", f"{layer}.norm1.gamma"),
        Rule(f"{block}.attn.q.weight", f"{layer}.attn.W_Q", _turned(pairs_interleaved(t.heads))),
        Rule(f"{block}.attn.k.weight", f"{layer}.attn.W_K", _turned(pairs_interleaved(t.kv_heads or 0))),
        Rule(f"{block}.attn.v.weight", f"{layer}.attn.W_V", TRANSPOSED),
        Rule(f"{block}.attn.out.weight", f"{layer}.attn.W_O", TRANSPOSED),
        Rule(f"{block}.norm2.weight", f"{layer}.norm2.gamma"),
        Rule(f"{block}.ffn.gate.weight", f"{layer}.ffn.W1", TRANSPOSED),
        Rule(f"{block}.ffn.up.weight", f"{layer}.ffn.W3", TRANSPOSED),
        Rule(f"{block}.ffn.down.weight", f"{layer}.ffn.W2", TRANSPOSED),
        Rule("transformer.final_norm.weight", "norm_f.gamma"),
        Rule("head.weight", "head"),  # it is tied, so no archive has it
    )
    return WeightMap(rules)


def glass_tokenizer(source: Source) -> Tokenizer | None:
    """The tokenizer beside an archive, `en.tokenizer.json` of `en.npz`: BPE of characters, ▁ for a space."""
    path = source.path.with_suffix(".tokenizer.json")
    if not path.is_file():
        return None
    content = read_json(path)
    specials = ["<pad>", "<unk>", "<bos>", "<eos>"]
    try:
        merges = [(first, second) for first, second in content["merges"]]
        tokens = [*specials, *content["alphabet"], *(first + second for first, second in merges)]
        vocab = {token: number for number, token in enumerate(tokens)}
        backend = HFTokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    except Exception as error:  # the library raises a bare one
        raise UserError(f"'{path}' cannot be read as a tokenizer of glassllm ({error}); copy it again.") from None
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens(specials)
    return Tokenizer(backend, "<eos>")


HF_FAMILIES: tuple[TextFamily, ...] = (
    GPT,
    *DECODERS,
    hf_family(
        "GPT-NeoX", "gpt_neox", LanguageModelConfig, read_neox, write_neox, NEOX, neox_weights, prefix="gpt_neox.",
        renames=((r"^lm_head\.", "embed_out."),),
    ),
    *MORE_DECODERS,
    *GPT_RELATIVES,
    *OLDER,
    *RECURRENT,
    *HYBRIDS,
    *MAMBA2_HYBRIDS,
    *NEMOTRON,
    *LFM,
    *ENCODERS,
    *LONG_ENCODERS,
)  # fmt: skip
GLASS = TextFamily(
    "glassllm", "other", lambda source: _glass_config(source) is not None, read_glass, glass_weights,
    companion=glass_tokenizer,
)  # fmt: skip
