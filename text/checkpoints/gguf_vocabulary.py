"""Tokenizers as llama.cpp reads them: the metadata of a GGUF file from a tokenizer of ours.

llama.cpp has no patterns in a file: it knows ways to cut a text by name. A tokenizer that cuts in another way is
refused, because it would become other tokens there without a word.

| kind of ours                              | `tokenizer.ggml.model`                                    |
|-------------------------------------------|-----------------------------------------------------------|
| byte-level BPE, bytes                     | `gpt2`, with the name of how a text is cut                |
| BPE with ▁ for a space (SentencePiece)    | `llama`, whose scores are the order of the merges         |
| Unigram (SentencePiece)                   | `t5`                                                      |
| characters                                | `rwkv`, the longest token that fits: always a character   |
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.errors import UserError
from ..tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens."""
SPACE = "\u2581"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER_LOWER = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
    r"%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASED = _UPPER_LOWER % ("", "", r"\p{N}")
GPT4O = _UPPER_LOWER % (_CONTRACTIONS, _CONTRACTIONS, r"\p{N}{1,3}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
_BYTES, _GPT2, _DIGITS = ("bytes", False), ("bytes", True), ("digits", True)
_NAMES: dict[tuple[Any, ...], tuple[str, str]] = {
    (_GPT2,): ("gpt-2", ""),
    (_DIGITS, _GPT2): ("smollm", ""),
    (("split", WORDS % r"\p{N}"), _BYTES): ("qwen2", ""),
    (("split", WORDS % r"\p{N}{1,3}"), _BYTES): ("smaug-bpe", "llama-bpe"),
    (("split", QWEN35), _BYTES): ("qwen35", ""),
    (("split", CASED), _BYTES): ("", "tekken"),
    (("split", GPT4O), _BYTES): ("gpt-4o", ""),
}
"""How a text is cut -> the name of it, without and with `ignore_merges` (a whole word that is a token stays one)."""


def metadata(tokenizer: Tokenizer, rows: int) -> tuple[dict[str, Any], list[str]]:
    """The keys `tokenizer.*` of a file, and what differs there, in sentences.

    Args:
        tokenizer: of the model.
        rows: of its embedding; rows without a token become unused ones.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    known = json.loads(tokenizer.backend.to_str())
    notes: list[str] = []
    if tokenizer._character_table is not None:
        found = _characters(tokenizer)
    elif known["model"]["type"] == "Unigram":
        found = _unigram(known, notes)
    elif known["model"]["type"] != "BPE":
        raise UserError(
            f"The tokenizer is {known['model']['type']}, which llama.cpp does not have for language models; keep the "
            "model in triune's or Hugging Face's format."
        )
    elif (known["decoder"] or {}).get("type") == "ByteLevel":
        found = _byte_level(known, notes)
    else:
        found = _sentencepiece(known, notes)
    tokens, kinds = _tokens(tokenizer, known, rows)
    found |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": np.array(kinds, dtype=np.int32)}
    if "tokenizer.ggml.scores" in found:
        scores = found["tokenizer.ggml.scores"]
        found["tokenizer.ggml.scores"] = np.array(
            [scores.get(token, -1e4) if token not in _added(known) else -1e3 for token in tokens], dtype=np.float32
        )
    return found | _specials(tokenizer, known), notes


def _added(known: Mapping[str, Any]) -> dict[str, Any]:
    return {token["content"]: token for token in known.get("added_tokens", [])}


def _tokens(tokenizer: Tokenizer, known: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Names and kinds of all rows. Raises UserError for an added token that is found in another way there."""
    added, unknown = _added(known), known["model"].get("unk_token")
    if known["model"]["type"] == "Unigram":
        unknown = known["model"]["vocab"][known["model"].get("unk_id") or 0][0]
    odd = [
        name
        for name, token in added.items()
        if not token["special"] and (token["lstrip"] or token["rstrip"] or token["single_word"])
    ]
    if odd:
        raise UserError(
            f"The tokenizer has the added token {odd[0]!r}, which takes the spaces beside it or stands alone only; "
            "llama.cpp does not have that."
        )
    fallback = known["model"].get("byte_fallback")
    byte_names = {f"<0x{byte:02X}>" for byte in range(256)} if fallback else set()
    names, kinds = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    plain = tokenizer._character_table is not None
    for name, row in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        names[row] = _escaped(name) if plain else name
        if name in added:
            kinds[row] = CONTROL if added[name]["special"] else USER_DEFINED
        else:
            kinds[row] = BYTE if name in byte_names else NORMAL
        if name == unknown:
            kinds[row] = UNKNOWN
    if len(set(names)) < len(names):
        raise UserError(
            "The tokenizer has a token called like a row without one ([PAD…]); llama.cpp needs unique names."
        )
    return names, kinds


def _escaped(character: str) -> str:
    """As llama.cpp writes the tokens of RWKV."""
    return _ESCAPES.get(character, character)


def unescaped(token: str) -> str:
    """The inverse of `_escaped`."""
    return next((character for character, escape in _ESCAPES.items() if escape == token), token)


def _specials(tokenizer: Tokenizer, known: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of the tokens around a text, and the chat template."""
    found: dict[str, Any] = {}
    begin, end = tokenizer.bos_id, tokenizer.eos_id
    if begin is not None or end is not None:
        found["tokenizer.ggml.bos_token_id"] = begin if begin is not None else end
    ends = [end] if end is not None else []
    ends += sorted(token for token in tokenizer.end_ids if token != end)
    found |= {f"tokenizer.ggml.{name}_token_id": number for name, number in zip(("eos", "eot", "eom"), ends)}
    if len(ends) > 3:
        raise UserError(f"The tokenizer has {len(ends)} tokens that end a text, but a GGUF file has room for 3.")
    before, behind = tokenizer.around
    fine = before in ([], [begin]) and behind in ([], [end])
    if not fine:
        raise UserError(
            f"The tokenizer puts the tokens {before} before a text and {behind} behind it, but llama.cpp puts one "
            "before it and one behind it, or none."
        )
    found |= {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(behind)}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _characters(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"tokenizer.ggml.model": "rwkv"}


# --- byte-level BPE ---------------------------------------------------------------------------------------------------


def _steps(pre: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """How a text is cut, as `_NAMES` has it."""
    if pre is None:
        return ()
    kind = pre["type"]
    if kind == "Sequence":
        return tuple(step for inner in pre["pretokenizers"] for step in _steps(inner))
    if kind == "ByteLevel":
        return (("prefix",),) if pre.get("add_prefix_space") else (("bytes", bool(pre.get("use_regex", True))),)
    if kind == "Digits":
        return (("digits", bool(pre["individual_digits"])),)
    if kind == "Split" and "Regex" in pre["pattern"]:
        plain = pre["behavior"] == "Isolated" and not pre["invert"]
        # The tokenizers of Mistral and others keep what matches, which is all of a text, and remove nothing.
        return (("split", pre["pattern"]["Regex"]) if plain or _keeps(pre) else ("other", kind),)
    return (("other", kind),)


def _keeps(pre: Mapping[str, Any]) -> bool:
    return pre["behavior"] == "Removed" and pre["invert"]


def _byte_level(known: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    model = known["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    steps = _steps(known["pre_tokenizer"])
    if not merges:
        steps = (_GPT2,)  # where nothing is merged, it does not matter how a text is cut
    ignores = bool(model.get("ignore_merges"))
    name = _NAMES.get(steps, ("", ""))[ignores]
    if not name and steps in _NAMES:
        name = _same_either_way(known, _NAMES[steps][not ignores])
    if not name:
        raise UserError(
            "The tokenizer cuts a text before its merges in a way that llama.cpp has no name for "
            f"({json.dumps(known['pre_tokenizer'], ensure_ascii=False)[:160]}); keep the model in triune's or Hugging "
            "Face's format."
        )
    _normalizer(known["normalizer"], ("NFC",), notes)
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise UserError(f"The tokenizer has {setting} = {model[setting]!r}, which llama.cpp does not have.")
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}


def _same_either_way(known: Mapping[str, Any], name: str) -> str:
    """The name, if every token comes out of the merges, so that it does not matter whether whole words skip them."""
    made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in known["model"]["merges"]}
    added = _added(known)
    return name if all(len(t) == 1 or t in made or t in added for t in known["model"]["vocab"]) else ""


def _normalizer(normalizer: Mapping[str, Any] | None, allowed: tuple[str, ...], notes: list[str]) -> None:
    if normalizer is None:
        return
    if normalizer["type"] not in allowed:
        raise UserError(
            f"The tokenizer changes a text first ({normalizer['type']}), which llama.cpp does not do; keep the model "
            "in triune's or Hugging Face's format."
        )
    notes.append("The tokenizer composes accents first (NFC), which llama.cpp leaves out: give it composed text.")


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def _sentencepiece(known: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if not known["model"].get("byte_fallback"):
        raise UserError(
            "The tokenizer is a BPE of characters without bytes for unknown ones, which llama.cpp does not have; keep "
            "the model in triune's or Hugging Face's format."
        )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": _scores(known),
        "tokenizer.ggml.add_space_prefix": _prefixed(known, notes),
    }


def _prefixed(known: Mapping[str, Any], notes: list[str]) -> bool:
    """Whether a space is put before a text. Raises UserError for another way to mark spaces."""
    normalizer, pre = known["normalizer"], known["pre_tokenizer"]
    steps = (
        [normalizer] if normalizer and normalizer["type"] != "Sequence" else (normalizer or {}).get("normalizers", [])
    )
    plain = {("Replace", " ", SPACE), ("Prepend", SPACE)}
    found = [
        ("Replace", step["pattern"].get("String"), step["content"])
        if step["type"] == "Replace"
        else (step["type"], step.get("prepend"))
        for step in steps
    ]
    odd = [step[0] for step in found if step not in plain]
    kind = (pre or {}).get("type")
    if kind == "Metaspace" and not found and pre is not None:
        scheme = pre.get("prepend_scheme", "always")
        if pre.get("replacement") != SPACE or pre.get("split", True):
            odd.append("Metaspace that splits")
        elif scheme == "first":
            notes.append(
                "The tokenizer puts a space before the beginning of a text only, but llama.cpp also behind each "
                "special token: chats may differ by a space there."
            )
        return _refuse(odd) or scheme != "never"
    # Gemma's, which can split nothing, since no space is left.
    nothing = kind == "Split" and pre is not None and pre["pattern"].get("String") == " "
    if kind is not None and not nothing:
        odd.append(str(kind))
    if ("Replace", " ", SPACE) not in found:
        odd.append("spaces that are kept")
    return _refuse(odd) or ("Prepend", SPACE) in found


def _refuse(odd: list[str]) -> bool:
    if odd:
        raise UserError(
            f"The tokenizer changes or cuts a text first ({', '.join(odd)}) as llama.cpp's of SentencePiece does not; "
            "keep the model in triune's or Hugging Face's format."
        )
    return False


def _scores(known: Mapping[str, Any]) -> dict[str, float]:
    """A score of each token that merges make, higher for an earlier merge.

    SentencePiece merges the neighbours whose union has the highest score, whichever they are; a list of merges says
    which neighbours. Both do the same where the list has all the pairs that make a token, one behind the other.

    Raises:
        UserError: this list is of another kind.
    """
    vocab = known["model"]["vocab"]
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in known["model"]["merges"]]
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    scores: dict[str, float] = {}
    last = ""
    for left, right in merges:
        token = left + right
        if token != last and token in scores:
            raise UserError(
                f"The merges of the tokenizer make {token!r} at two places of their order, as those of SentencePiece "
                "never do; llama.cpp would cut texts differently."
            )
        scores.setdefault(token, -float(len(scores)))
        last = token
    added = _added(known)
    for token in vocab:
        if token in added:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocab and right in vocab and (left, right) not in ranks:
                raise UserError(
                    f"The tokenizer never merges {left!r} and {right!r}, although {token!r} is a token, which "
                    "llama.cpp would do; keep the model in triune's or Hugging Face's format."
                )
    return scores


def _unigram(known: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    normalizer, pre = known["normalizer"], known["pre_tokenizer"] or {}
    steps = (
        [normalizer] if normalizer and normalizer["type"] != "Sequence" else (normalizer or {}).get("normalizers", [])
    )
    found: dict[str, Any] = {"tokenizer.ggml.remove_extra_whitespaces": False}
    for step in steps:
        if step["type"] == "Precompiled":
            charsmap = np.frombuffer(base64.b64decode(step["precompiled_charsmap"]), dtype=np.uint8)
            found["tokenizer.ggml.precompiled_charsmap"] = charsmap
        elif step["type"] == "Replace" and step["pattern"].get("Regex") == " {2,}" and step["content"] in (" ", SPACE):
            found["tokenizer.ggml.remove_extra_whitespaces"] = True
        else:
            _refuse([step["type"]])
    last = pre["pretokenizers"][-1] if pre.get("type") == "Sequence" else pre
    if last.get("type") != "Metaspace" or last.get("replacement") != SPACE:
        _refuse([str(pre.get("type"))])
    if len(pre.get("pretokenizers", [])) > 1:
        notes.append("The tokenizer cuts at spaces first, which llama.cpp does by its whole vocabulary.")
    scores = {token: float(score) for token, score in known["model"]["vocab"]}
    return found | {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": last.get("prepend_scheme", "always") != "never",
    }
