"""A text model beside the same one in its own library: outputs on random tokens, and the tokens of texts and chats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checkpoints import native
from ...core.checkpoints.family import Pretrained, apart
from ...core.errors import UserError
from ...core.files import read_json
from ..data.chat import ChatTemplate
from ..encoder import TextEncoder, TextEncoderConfig
from ..model import LanguageModel, LanguageModelConfig
from ..specials import without_flags
from ..tokenizer import Tokenizer, beside

USUAL_LENGTH, MOST_TOKENS = 64, 1024
TEXTS = (
    "Hello, world!", "  two  spaces\n\nand\ta tab ", "Ünïcödé – «你好» 🙂", "def f(x):\n    return x**2",
    "12345 3.14 1e-5", "don't CAN'T", "a", "",
)  # fmt: skip
"""Texts that tokenizers cut in different ways."""
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
CHATS = (
    QUESTION,
    [*QUESTION, {"role": "assistant", "content": "It is 4."}, {"role": "user", "content": "And 3 + 3?"}],
    [{"role": "system", "content": "Answer briefly."}, *QUESTION],
)


def parity(pretrained: Pretrained, folder: str | os.PathLike[str], library: str = "hf") -> float:
    """Largest difference between our outputs and those of `library` on a folder, which `export` wrote or which is the
    source itself, on random tokens. See `apart` for what is measured.

    Raises:
        UserError: the library is not installed, or cannot be asked.
    """
    model: Any = pretrained.model
    tokens = random_tokens(model.config)
    theirs = _ours(Path(folder)) if library == "triune" else original(pretrained, Path(folder), library)
    with torch.inference_mode():
        output = theirs(tokens)
        return apart(model(tokens), output if isinstance(output, Tensor) else output[0])


def random_tokens(config: LanguageModelConfig | TextEncoderConfig, seed: int = 0) -> Tensor:
    """Tokens int64 `[1 or 2, tokens]`: more than a window holds, where that is at most `MOST_TOKENS`, so that it shows.

    Rotary scaling that begins at a length shows in the same way, also where that is the length of the context.
    """
    core = config.transformer
    windows = [window for layer in range(core.depth) if (window := core.window_at(layer))]
    whole = core.sparse.whole + core.sparse.block if core.sparse else 0
    wanted = max([USUAL_LENGTH, *(n for n in (whole, *(2 * window for window in windows)) if n <= MOST_TOKENS)])
    turning = [(r.original_context or 0) + 8 for r in map(core.rotary_at, range(core.depth)) if r and r.grows]
    length = max([min(core.context, wanted), *(n for n in turning if n <= MOST_TOKENS)])
    generator = torch.Generator().manual_seed(seed)
    # Tokens below the offset fill texts up, which some models see in the tokens themselves.
    return torch.randint(
        min(core.position_offset, config.vocab_size - 1),
        config.vocab_size,
        (1 if length > USUAL_LENGTH else 2, length),
        generator=generator,
    )


def original(pretrained: Pretrained, folder: Path, library: str) -> nn.Module:
    """The model in a folder as transformers makes it. Raises UserError when it cannot be asked."""
    try:
        import transformers
    except ImportError:
        raise UserError("Hugging Face's transformers is not installed (pip install transformers).") from None
    if library != "hf" or not folder.is_dir():
        raise UserError("no other library reads such a file here.")
    family, config = pretrained.family, read_json(folder / native.CONFIG)
    if family is not None and family.their_config is not None and folder == pretrained.source.folder:
        # A file of the bare model, or one with a head for another purpose, is read with the head that ours has.
        config = family.their_config(pretrained.model.config)
    (architecture,) = config["architectures"]
    try:
        # The eager attention is the only one that has soft-capped scores.
        found = getattr(transformers, architecture).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    except Exception as error:  # of any kind: whatever the library's code meets in a config that it does not expect
        raise UserError(f"transformers itself cannot open it ({_first_line(error)}).") from None
    found.config.use_cache = False  # it cannot make one for recurrent layers alone
    if hasattr(found, "set_experts_implementation") and found._can_set_experts_implementation():
        found.set_experts_implementation("eager")  # others want widths that are multiples of 16 bytes
    return found.eval()


def _ours(folder: Path) -> nn.Module:
    kinds = {"LanguageModel": LanguageModel, "TextEncoder": TextEncoder}
    kind: Any = kinds[native.load_config(folder, *kinds)["architecture"]]
    return kind.from_pretrained(folder).eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


# --- tokens -----------------------------------------------------------------------------------------------------------


def check_inputs(pretrained: Pretrained, folder: str | os.PathLike[str], library: str) -> str:
    """Compares the tokens of `TEXTS` and `CHATS` with those that transformers makes with what is in `folder`.

    Returns:
        What was compared, as a sentence; an empty text where there is no tokenizer or nothing to compare it with.

    Raises:
        UserError: a text or a chat becomes other tokens there; it is named.
    """
    tokenizer = pretrained.companion
    if library != "hf" or not isinstance(tokenizer, Tokenizer):
        return ""
    try:
        from transformers import AutoTokenizer

        theirs: Any = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # not installed, or whatever its code meets
        return f"Tokens were not compared: transformers does not open the tokenizer ({_first_line(error)})."
    before, behind = tokenizer.around
    # Where flags of the config add to it, the installed library may go by the file alone.
    flags = without_flags(Path(folder)) if _around(Path(folder)) == tokenizer.around else None
    passed_over = False
    for text in (_known(text, tokenizer) for text in TEXTS):
        own, whole = tokenizer.encode(text).tolist(), list(theirs(text)["input_ids"])
        _same(f"the text {text!r}", own, theirs(text, add_special_tokens=False)["input_ids"])
        if whole != [*before, *own, *behind] and flags is not None and whole == flags.encode(text).ids:
            passed_over = True
            continue
        _same(f"the text {text!r}, with what stands around it,", [*before, *own, *behind], whole)
    chats, found = _chats(tokenizer, theirs), f"Tokens: transformers makes the same of {len(TEXTS)} texts and "
    if not passed_over:
        return f"{found}{chats} chats."
    return (
        f"{found}{chats} chats; what tokenizer_config.json alone wants around a text is placed by triune, as by "
        "version 4 of transformers, and not by the installed one."
    )


def _around(folder: Path) -> tuple[list[int], list[int]] | None:
    found = beside(folder)
    return None if found is None else found.around


def _known(text: str, tokenizer: Tokenizer) -> str:
    """A text without the characters that a vocabulary of characters does not have, as it refuses them."""
    try:
        tokenizer.encode(text)
    except UserError:
        return "".join(character for character in text if tokenizer.backend.token_to_id(character) is not None)
    return text


def _chats(tokenizer: Tokenizer, theirs: Any) -> int:
    """The number of chats that were compared: some templates refuse a system prompt."""
    if not theirs.chat_template and not tokenizer.chat_template:
        return 0
    if bool(theirs.chat_template) != bool(tokenizer.chat_template):
        raise UserError("only one of the two tokenizers has a chat template.")
    compared = 0
    try:
        template = ChatTemplate(tokenizer)
    except UserError:
        return 0  # no template of several is the default one, and whoever uses it is told
    for chat in CHATS:
        try:
            ours = template.announced([dict(message) for message in chat])  # type: ignore[misc]
        except UserError:
            continue  # a template that refuses a system prompt, or that ours refuses with a reason
        asked = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, enable_thinking=False)
        _same(f"the chat {chat[-1]['content']!r}", ours, theirs(asked, add_special_tokens=False)["input_ids"])
        compared += 1
    return compared


def _same(what: str, ours: Any, theirs: Any) -> None:
    one, two = [int(token) for token in ours], [int(token) for token in theirs]
    if one != two:
        raise UserError(f"{what} becomes the tokens {two[:8]} in transformers and {one[:8]} here.")
