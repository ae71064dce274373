"""A GGUF file beside the model that it was made of, and beside llama.cpp where `llama-cpp-python` is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.checkpoints.family import Pretrained
from ...core.errors import UserError
from ..data.chat import ChatTemplate
from ..tokenizer import Tokenizer
from .originals import CHATS, TEXTS, random_tokens

ROUNDING = 1e-3
"""Part of the size of the logits by which llama.cpp may differ with weights of 32 bits: it calculates in another order
and with other approximations of exponentials."""
AS_LARGE = 2.0
"""With other weights it rounds what goes into a product as well: it may differ from us by this times what the rounding
of the weights changes."""
OFFSET = 2e-7
"""Norms that are stored with one added come back so close."""


def report(pretrained: Pretrained, path: Path, load: Callable[[str], Pretrained]) -> list[str]:
    """What was compared, in sentences.

    Args:
        pretrained: the model that was written.
        path: of the file.
        load: opens it.

    Raises:
        UserError: the file holds another model, or llama.cpp makes something else of it.
    """
    again = load(str(path))
    exact, worst = _compare(pretrained, again, path)
    mine, theirs = _logits(pretrained, again)
    lines = [exact, f"Outputs: {_divergence(mine, theirs)}.{worst}"]
    tokens = _same_tokens(pretrained.companion, again.companion)
    try:
        return [*lines, *tokens, *_beside_llama(pretrained, again, path, mine, theirs)]
    except ImportError:
        return [*lines, *tokens, "llama.cpp was not asked, because it is not installed (pip install llama-cpp-python)."]


def _compare(pretrained: Pretrained, again: Pretrained, path: Path) -> tuple[str, str]:
    """A sentence about the weights that come back, and one about those that were rounded."""
    ours, theirs = pretrained.model.state_dict(), again.model.state_dict()
    if ours.keys() != theirs.keys():
        raise UserError(
            f"'{path}' was written, but comes back as another model; do not use it, and please report this."
        )
    equal = [name for name, tensor in ours.items() if torch.equal(tensor, theirs[name])]
    worst, where = 0.0, ""
    for name in ours.keys() - set(equal):
        a, b = ours[name].double(), theirs[name].double()
        if (a - b).abs().max() <= OFFSET * (1 + a.abs().max()):
            equal.append(name)
            continue
        error = float((a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp(min=1e-30))
        worst, where = max((worst, where), (error, name))
    line = f"Round trip: {len(equal)} of {len(ours)} tensors of '{path}' come back as they were."
    return line, f" Weights are rounded by at most {worst:.2%} of their size ({where})." if where else ""


def _logits(pretrained: Pretrained, again: Pretrained) -> tuple[Tensor, Tensor]:
    """Logits `[tokens, vocabulary]` of one random text by the model and by the file."""
    config: Any = again.model.config
    tokens = _text(config)
    with torch.inference_mode():
        one, two = (model(tokens[None])[0].double() for model in (pretrained.model, again.model))
    return one, two


def _text(config: Any) -> Tensor:
    """One random text, int `[tokens]`, no longer than the context that a file states."""
    return random_tokens(config)[0][: config.transformer.context]


def _divergence(one: Tensor, two: Tensor) -> str:
    """The mean Kullback-Leibler divergence of the next token's chances, in words."""
    a, b = one.log_softmax(-1), two.log_softmax(-1)
    divergence = float((a.exp() * (a - b)).sum(-1).mean())
    if torch.equal(one, two):
        return "exactly those of the model"
    return f"{max(divergence, 0):.2g} nats per token from those of the model, by the rounding of weights"


def _same_tokens(ours: Any, again: Any) -> list[str]:
    """Our own reading of the tokenizer in the file. Raises UserError for a text that becomes other tokens."""
    if not isinstance(ours, Tokenizer) or not isinstance(again, Tokenizer):
        return []
    for text in TEXTS:
        try:
            known = ours.encode(text)
        except UserError:
            continue  # a character that the vocabulary does not have
        if known.tolist() != again.encode(text).tolist() and not np.array_equal(known, again.encode(text)):
            raise UserError(f"the text {text!r} becomes other tokens when the file is read again; please report this.")
    return []


# --- llama.cpp --------------------------------------------------------------------------------------------------------


def _beside_llama(pretrained: Pretrained, again: Pretrained, path: Path, mine: Tensor, rounded: Tensor) -> list[str]:
    """Logits, tokens and chats of llama.cpp. Raises ImportError without it, and UserError where they are others."""
    config: Any = again.model.config
    tokens = _text(config)
    theirs = LlamaFile(path, len(tokens))
    found = torch.from_numpy(theirs.logits(tokens.tolist())).double()
    size = rounded.square().mean().sqrt()
    apart = float((found - rounded).square().mean().sqrt() / size)
    by_rounding = float((mine - rounded).square().mean().sqrt() / size)
    most = ROUNDING + AS_LARGE * by_rounding
    if not apart <= most:
        raise UserError(
            f"'{path}' was written, but llama.cpp's logits differ by {apart:.2%} of their size from ours with the same "
            f"weights (allowed: {most:.2%}); do not use it, and please report this."
        )
    lines = [
        f"llama.cpp: its logits differ by {apart:.2%} of their size from ours with the same weights; rounding the "
        f"weights changes them by {by_rounding:.2%}."
    ]
    tokenizer = pretrained.companion
    if not isinstance(tokenizer, Tokenizer):
        return lines
    texts = 0
    for text in TEXTS:
        try:
            ours = tokenizer.encode(text)
        except UserError:
            continue
        _same(f"the text {text!r}", [*tokenizer.around[0], *ours.tolist(), *tokenizer.around[1]], theirs.tokens(text))
        texts += 1
    return [*lines, f"Tokens: llama.cpp makes the same of {texts} texts and {_chats(tokenizer, theirs)} chats."]


def _same(what: str, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        raise UserError(
            f"The file was written, but {what} becomes the tokens {theirs[:12]} in llama.cpp and {ours[:12]} here; do "
            "not use it for such texts."
        )


def _chats(tokenizer: Tokenizer, theirs: LlamaFile) -> int:
    if not tokenizer.chat_template:
        return 0
    compared, template = 0, ChatTemplate(tokenizer)
    for chat in CHATS:
        try:
            ours = template.ask([dict(message) for message in chat])  # type: ignore[misc]
        except UserError:
            continue  # a template that refuses a system prompt
        _same(f"the chat {chat[-1]['content']!r}", ours.tolist(), theirs.chat([dict(message) for message in chat]))
        compared += 1
    return compared


class LlamaFile:
    """A file as llama.cpp opens it. Raises ImportError without `llama-cpp-python`, UserError where it refuses the file.

    Args:
        path: of the file.
        context: tokens at most.
        threads: of its calculation.
    """

    def __init__(self, path: Path, context: int, threads: int | None = None) -> None:
        llama_cpp = import_module("llama_cpp")
        try:
            self.llama: Any = llama_cpp.Llama(
                str(path), n_ctx=max(context, 8), n_batch=max(context, 8), logits_all=True, verbose=False,
                n_threads=threads, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"'{path}' was written, but llama.cpp does not open it ({error}).") from None

    def logits(self, tokens: list[int]) -> np.ndarray:
        """`[tokens, vocabulary]` of one text."""
        self.llama.reset()
        self.llama.eval(tokens)
        return np.array(self.llama.scores[: len(tokens)])

    def tokens(self, text: str) -> list[int]:
        """With what stands before and behind a text."""
        return list(self.llama.tokenize(text.encode(), add_bos=True, special=False))

    def chat(self, messages: list[Any]) -> list[int]:
        """The tokens after which it answers."""
        formatter = import_module("llama_cpp.llama_chat_format").Jinja2ChatFormatter
        name = {key: self.llama._model.token_get_text(getattr(self.llama, f"token_{key}")()) for key in ("bos", "eos")}
        template = self.llama.metadata["tokenizer.chat_template"]
        asked = formatter(template, eos_token=name["eos"], bos_token=name["bos"])(messages=messages)
        return list(self.llama.tokenize(asked.prompt.encode(), add_bos=not asked.added_special, special=True))
