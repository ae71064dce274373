"""What the files beside a tokenizer say about the tokens that begin and end a text, and the template of chats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as HFTokenizer

from ..core.errors import UserError
from ..core.files import MAX_JSON_BYTES, DoubledKey, parse_json, parsing, read_bytes, read_json, write_json

CONFIG, GENERATION, MAP = "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"
TOKENIZER = "tokenizer.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
DEFAULT, FOR_TOOLS = "default", "tool_use"
"""Names of templates: what is used, and what is used where functions are described."""
USUAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
MAX_TOKENIZER_BYTES = 512 << 20
"""A larger file is no tokenizer."""
MASK_TOKENS = ("[MASK]", "<mask>")
"""Names of the token that hides others, of BERT and of RoBERTa."""
BEGINS_BY_CLASS = frozenset({"Llama", "CodeLlama", "Gemma", "Cohere"})
"""Classes of Hugging Face's tokenizers that put the start token before a text unless their config says otherwise, when
`tokenizer.json` has no post-processor."""


@dataclass(frozen=True)
class Specials:
    """The settings of one tokenizer.

    Args:
        bos: the token that begins a text, by its letters.
        eos: the token that ends one.
        ends: numbers of all tokens at which generation ends.
        names: letters of all tokens that have a name in the config, by that name; templates of chats read them.
        added: tokens by number that the config declares, with their flags, beside those of `tokenizer.json`.
        extra: letters of further special tokens.
        templates: of chats in Jinja's language, by name.
        split: special tokens are read as their letters.
        add_bos: whether the config asks for `bos` before every text; None: it says nothing.
        add_eos: the same of `eos` behind every text.
        kind: name of Hugging Face's class.
    """

    bos: str | None = None
    eos: str | None = None
    ends: tuple[int, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    added: dict[int, dict[str, Any]] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    templates: dict[str, str] = field(default_factory=dict)
    split: bool = False
    add_bos: bool | None = None
    add_eos: bool | None = None
    kind: str = ""


def read_specials(folder: Path) -> Specials:
    """The settings in the files that transformers writes beside a tokenizer, of old versions and new."""
    config, generation, named = (_optional(folder / name) for name in (CONFIG, GENERATION, MAP))
    ends = generation.get("eos_token_id")
    # As transformers does: the older file counts before a config that does not list its tokens.
    known = {**named, **config} if config.get("added_tokens_decoder") else {**config, **_said(named)}
    names = {key: letters for key, value in known.items() if key.endswith("_token") and (letters := _letters(value))}
    extra: list[str] = []
    for value in (known.get("additional_special_tokens"), known.get("extra_special_tokens")):
        if isinstance(value, dict):
            names |= {str(key): letters for key, token in value.items() if (letters := _letters(token))}
        extra += filter(None, map(_letters, value)) if isinstance(value, list) else []
    return Specials(
        bos=names.get("bos_token"),
        eos=names.get("eos_token"),
        ends=tuple(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)),
        names=names,
        added=_added(config.get("added_tokens_decoder")),
        extra=tuple(extra),
        templates=_templates(folder, config.get("chat_template")),
        split=config.get("split_special_tokens") is True,
        add_bos=config.get("add_bos_token"),
        add_eos=config.get("add_eos_token"),
        kind=str(config.get("tokenizer_class") or ""),
    )


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def _added(decoder: Any) -> dict[int, dict[str, Any]]:
    """The tokens of `added_tokens_decoder`: letters (`content`) and flags by number."""
    if not isinstance(decoder, dict):
        return {}
    return {
        int(number): token
        for number, token in decoder.items()
        if str(number).isdecimal() and isinstance(token, dict) and _letters(token)
    }


def _templates(folder: Path, inside: Any) -> dict[str, str]:
    """The templates of chats by name: those in files, else those in the config."""
    files = {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        files[DEFAULT] = folder / TEMPLATE
    if files:
        return {name: _template(path) for name, path in files.items()}
    if isinstance(inside, list):
        return {
            str(one["name"]): str(one["template"])
            for one in inside
            if isinstance(one, dict) and one.get("name") and one.get("template")
        }
    return {DEFAULT: inside} if isinstance(inside, str) and inside else {}


def _template(path: Path) -> str:
    with parsing(path, "a template of chats"):
        return read_bytes(path, MAX_JSON_BYTES).decode("utf-8")


def declare_tokens(backend: HFTokenizer, specials: Specials) -> None:
    """Lets `backend` find the tokens that the files beside `tokenizer.json` declare, as transformers does.

    A token that has its number in the vocabulary is found as a whole from then on; one behind the vocabulary is added
    where its number is the next. A named one that has no number anywhere stays out.
    """
    known = {str(token.content) for token in backend.get_added_tokens_decoder().values()}
    for number, token in sorted(specials.added.items()):
        letters = str(token["content"])
        free = backend.token_to_id(letters) is None and number == backend.get_vocab_size(with_added_tokens=True)
        if letters not in known and (free or backend.token_to_id(letters) == number):
            special = token.get("special") is True or letters in (*specials.names.values(), *specials.extra)
            _add(backend, letters, {flag: token[flag] for flag in FLAGS if flag in token} | {"special": special})
            known.add(letters)
    for letters in dict.fromkeys((*specials.names.values(), *specials.extra)):
        if letters not in known and backend.token_to_id(letters) is not None:
            _add(backend, letters, {"special": True})


def _add(backend: HFTokenizer, letters: str, flags: dict[str, bool]) -> None:
    token = AddedToken(letters, **flags)
    (backend.add_special_tokens if flags["special"] else backend.add_tokens)([token])


def apply_specials(backend: HFTokenizer, specials: Specials) -> None:
    """Declares the tokens of `specials` to `backend`, and makes it put those around a text that its own post-processor
    or `specials` ask for.

    Versions 4 and 5 of transformers disagree about a flag in the config beside a `tokenizer.json` (5 ignores it, 4
    replaces the post-processor). Here a token is placed when either says so; since it is then saved with the
    post-processor, both versions place it afterwards.
    """
    declare_tokens(backend, specials)
    family = specials.kind.removesuffix("Fast").removesuffix("Tokenizer")
    by_class = backend.post_processor is None and family in BEGINS_BY_CLASS and specials.add_bos is not False
    placed = backend.encode("a", add_special_tokens=True).tokens
    bos, eos = (
        token if token and wanted and backend.token_to_id(token) is not None and token not in placed else None
        for token, wanted in ((specials.bos, specials.add_bos or by_class), (specials.eos, specials.add_eos))
    )
    if bos is None and eos is None:
        return
    around = processors.TemplateProcessing(
        single=" ".join(filter(None, [bos, "$A", eos])),
        pair=None,
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys([bos, eos]) if token],
    )
    before = backend.post_processor
    backend.post_processor = around if before is None else processors.Sequence([before, around])  # type: ignore


def without_flags(folder: Path) -> HFTokenizer | None:
    """The tokenizer of a folder with what its `tokenizer.json` alone places around a text; None without such a file."""
    if not (folder / TOKENIZER).is_file():
        return None
    with parsing(folder / TOKENIZER, "a tokenizer"):
        found = HFTokenizer.from_file(str(folder / TOKENIZER))
    found.no_truncation()
    found.no_padding()
    return found


def write_specials(
    folder: Path, names: dict[str, str], ends: Iterable[int], templates: dict[str, str], split: bool = False
) -> None:
    """Writes what `read_specials` reads, for transformers and for us.

    Args:
        folder: of the tokenizer.
        names: letters of tokens by their names in the config (`bos_token`, `eos_token`, …).
        ends: numbers of all tokens at which generation ends.
        templates: of chats, by name.
        split: special tokens are read as their letters.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {name: token for name, token in names.items() if name in USUAL_NAMES}
    if more := {name: token for name, token in names.items() if name not in USUAL_NAMES}:
        config["extra_special_tokens"] = more
    if split:
        config["split_special_tokens"] = True
    if list(templates) == [DEFAULT]:
        config["chat_template"] = templates[DEFAULT]
    elif templates:
        config["chat_template"] = [{"name": name, "template": source} for name, source in templates.items()]
    if len(known := sorted(ends)) > 1:
        write_json(folder / GENERATION, {"eos_token_id": known})
    write_json(folder / CONFIG, config)


def with_mask(backend: HFTokenizer) -> HFTokenizer:
    """A copy with the special token [MASK] as its last one."""
    copy = HFTokenizer.from_str(backend.to_str())
    copy.add_special_tokens([MASK_TOKENS[0]])
    return copy


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _letters(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def refuse_doubled_tokens(file: Path) -> None:
    """Raises UserError for a file with a key twice in an object; the library keeps one of the two numbers."""
    try:
        parse_json(read_bytes(file, MAX_TOKENIZER_BYTES), f"'{file}'")
    except DoubledKey:
        raise
    except UserError:  # what else is wrong with it is the library's to say
        return
