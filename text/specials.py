"""What the files beside a tokenizer say about the tokens that begin and end a text, and the template of chats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import processors

from ..core.errors import UserError
from ..core.files import MAX_JSON_BYTES, DoubledKey, parse_json, read_bytes, read_json, write_json

CONFIG, GENERATION, MAP = "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
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
        chat_template: in Jinja's language.
        add_bos: whether the config asks for `bos` before every text; None: it says nothing.
        add_eos: the same of `eos` behind every text.
        kind: name of Hugging Face's class.
    """

    bos: str | None = None
    eos: str | None = None
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    kind: str = ""


def read_specials(folder: Path) -> Specials:
    """The settings in the files that transformers writes beside a tokenizer, of old versions and new."""
    config, generation, named = (_optional(folder / name) for name in (CONFIG, GENERATION, MAP))
    ends, template = generation.get("eos_token_id"), config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if (folder / TEMPLATE).is_file():
        template = read_bytes(folder / TEMPLATE, MAX_JSON_BYTES).decode("utf-8")
    return Specials(
        bos=_letters(config.get("bos_token")) or _letters(named.get("bos_token")),
        eos=_letters(config.get("eos_token")) or _letters(named.get("eos_token")),
        ends=tuple(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)),
        chat_template=template,
        add_bos=config.get("add_bos_token"),
        add_eos=config.get("add_eos_token"),
        kind=str(config.get("tokenizer_class") or ""),
    )


def apply_specials(backend: HFTokenizer, specials: Specials) -> None:
    """Makes `backend` put the tokens around a text that its own post-processor or `specials` ask for.

    Versions 4 and 5 of transformers disagree about a flag in the config beside a `tokenizer.json` (5 ignores it, 4
    replaces the post-processor). Here a token is placed when either says so; since it is then saved with the
    post-processor, both versions place it afterwards.
    """
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


def write_specials(
    folder: Path, backend: HFTokenizer, named: dict[str, int | None], ends: Iterable[int], template: str | None
) -> None:
    """Writes what `read_specials` reads, for transformers and for us.

    Args:
        folder: of the tokenizer.
        backend: it.
        named: numbers of tokens by their names in the config (`bos_token`, `eos_token`, `mask_token`).
        ends: numbers of all tokens at which generation ends.
        template: of chats.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {name: backend.id_to_token(number) for name, number in named.items() if number is not None}
    if template is not None:
        config["chat_template"] = template
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
