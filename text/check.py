"""`triune text check`: what training would read from files of text or chats, and what of it is learned."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.options import Parser, whole

if TYPE_CHECKING:
    from .data.chat import ChatTemplate, Sample
    from .tokenizer import Tokenizer

LEARNED = "⟦", "⟧"
"""Stand around what is learned."""
SHOWN = 100
"""Tokens of a document that are shown."""


def parser() -> Parser:
    """The options of `triune text check`."""
    p = Parser(
        "triune text check",
        description="Show what training would read: documents of text files, or conversations as the model's template "
        f"writes them, with {LEARNED[0]}what is learned{LEARNED[1]} marked. Nothing is trained or written.",
    )
    p.add_argument("files", nargs="*", metavar="FILES", help="text files, folders or globs, as for --data.files")
    p.add_argument("--data.chats", dest="chats", nargs="+", metavar="FILE", help="conversations, as for text fit")
    p.add_argument("--data.text_field", dest="text_field", default="text", help="the field of the text in rows")
    p.add_argument("--data.tokenizer", dest="tokenizer", help="bytes, or the path of a tokenizer")
    p.add_argument("--model.pretrained", dest="pretrained", help="a checkpoint, whose tokenizer and template are used")
    p.add_argument("--data.context", dest="context", type=whole(2), default=256, help="tokens of a row (default 256)")
    p.add_argument("--data.on_error", dest="on_error", choices=("stop", "skip"), default="skip")
    p.add_argument("--data.columns", dest="columns", type=json.loads, default={}, help='such as \'{"prompt": "q"}\'')
    p.add_argument("--rows", type=whole(0), default=3, help="how many conversations or documents are shown (default 3)")
    p.add_argument("--tokens", action="store_true", help="show the borders of tokens, too")
    return p


def main(args: list[str]) -> int:
    """Run `triune text check` and return its exit code: 0, or 2 when rows cannot be used."""
    options = parser().parse_args(_joined(args))
    if bool(options.files) == bool(options.chats):
        raise UserError("Give either FILES of text or --data.chats with files of conversations.")
    if not isinstance(options.columns, dict):
        raise UserError('--data.columns must be an object such as {"prompt": "q"}.')
    return _documents(options) if options.files else _chats(options)


def _joined(args: list[str]) -> list[str]:
    """`--data.columns.prompt q`, the form of `text fit`, as one `--data.columns`."""
    rest, columns, words = [], {}, iter(args)
    for word in words:
        if not word.startswith("--data.columns."):
            rest.append(word)
            continue
        name, found, value = word.removeprefix("--data.columns.").partition("=")
        columns[name] = value if found else next(words, "")
    return [*rest, "--data.columns", json.dumps(columns)] if columns else rest


def _tokenizer(options: argparse.Namespace) -> Tokenizer:
    from .checkpoints.pretrained import load
    from .tokenizer import Tokenizer

    if options.pretrained and options.tokenizer:
        raise UserError("--data.tokenizer and --model.pretrained are both given; a model brings its own tokenizer.")
    if options.pretrained:
        tokenizer = load(options.pretrained).companion
        if tokenizer is None:
            raise UserError(f"'{options.pretrained}' comes without a tokenizer; give --data.tokenizer PATH instead.")
        return tokenizer
    return Tokenizer.bytes() if options.tokenizer in (None, "bytes") else Tokenizer.load(options.tokenizer)


def _documents(options: argparse.Namespace) -> int:
    from .data.corpus import find

    corpus = find(options.files, options.text_field, options.on_error == "skip")
    surveyed, tokenizer, tokens = corpus.survey(), _tokenizer(options), 0
    for number, (document, known) in enumerate(zip(corpus, surveyed)):
        count, start = _counted(tokenizer, document.blocks)
        if number < options.rows:
            print(f"--- {document.name}: {known.characters:,} characters, {count:,} tokens")
            shown = _shown([(token, False) for token in start], tokenizer, options.tokens)
            print(shown + "…" * (count > len(start)))
        tokens += count
    size = sum(known.size for known in surveyed)
    skipped = [f"{number:,} {why}" for why, number in corpus.skipped.items() if number]
    parts = [f"{len(surveyed):,} documents, {size:,} bytes, {tokens:,} tokens", *corpus.notes]
    print("; ".join([*parts, f"passed over: {', '.join(skipped)}"] if skipped else parts))
    return 2 if corpus.skipped["row that cannot be used"] else 0


def _counted(tokenizer: Tokenizer, blocks: Iterable[str]) -> tuple[int, list[int]]:
    """How many tokens a document has, and the first hundred of them."""
    count, start = len(tokenizer.beginning), list(tokenizer.beginning)
    for part in tokenizer.parts(blocks):
        for ids in tokenizer.encode_parts([part]):
            start += ids[: SHOWN - len(start)].tolist()
            count += len(ids)
    start += tokenizer.ending[: SHOWN - len(start)]
    return count + len(tokenizer.ending), start


def _chats(options: argparse.Namespace) -> int:
    from .data.chat import ChatTemplate
    from .data.conversations import usable
    from .data.messages import read_conversations
    from .data.packing import join

    tokenizer = _tokenizer(options)
    template = ChatTemplate(tokenizer)
    found, rejected = usable(read_conversations(options.chats, options.columns), template, options.on_error)
    for one in found[: options.rows]:
        samples = one.samples
        print(f"--- {one.conversation.name}: {len(samples)} sample{'s' * (len(samples) != 1)}, {_lengths(samples)}")
        for sample in samples:
            pairs = list(zip(sample.tokens.tolist(), sample.answers.tolist()))
            print(_shown(pairs, tokenizer, options.tokens))
    chats = join((sample for one in found for sample in one.samples), tokenizer, options.context)
    print(f"{_summary(template, len(found), chats, options.context)}")
    for reason in rejected.reasons:
        print(f"cannot be used: {reason}")
    if rejected.number:
        print(f"{rejected.number:,} of {rejected.rows:,} rows cannot be used; text fit needs --data.on_error skip")
    return 2 if rejected.number else 0


def _lengths(samples: list[Sample]) -> str:
    learned = sum(int(sample.answers.sum()) for sample in samples)
    return f"{sum(len(sample.tokens) for sample in samples):,} tokens, {learned:,} of them learned"


def _summary(template: ChatTemplate, conversations: int, chats: Any, context: int) -> str:
    parts = [
        f"{conversations:,} conversations, {len(chats) + chats.beyond:,} samples",
        "the plain template (this tokenizer has none)" if template.is_plain else "the template of the tokenizer",
        f"{chats.targets:,} tokens are learned in rows of {context:,}",
    ]
    if chats.beyond:
        parts.append(f"{chats.beyond:,} samples are left out, whose answers begin beyond that")
    if chats.cut:
        parts.append(f"{chats.cut:,} are cut within an answer")
    return "; ".join(parts)


def _shown(tokens: list[tuple[int, bool]], tokenizer: Tokenizer, borders: bool) -> str:
    """Text of tokens, what is learned between marks."""
    parts = []
    for learned, ids in _runs(tokens):
        if borders:
            text = "|".join(tokenizer.decode([token], skip_special=False) for token in ids)
        else:
            text = tokenizer.decode(ids, skip_special=False)
        parts.append(f"{LEARNED[0]}{text}{LEARNED[1]}" if learned else text)
    return "".join(parts)


def _runs(tokens: list[tuple[int, bool]]) -> Iterator[tuple[bool, list[int]]]:
    """Tokens that follow each other and are all learned, or all not."""
    run: list[int] = []
    for at, (token, learned) in enumerate(tokens):
        run.append(token)
        if at + 1 == len(tokens) or tokens[at + 1][1] != learned:
            yield learned, run
            run = []
