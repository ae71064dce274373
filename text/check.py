"""`triune text check`: what training would read from files of text or chats, and what of it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..core.training.run.cli import TaskParser
    from .data.chat import ChatTemplate, Sample
    from .data.module import TextData
    from .tokenizer import Tokenizer

LEARNED = "⟦", "⟧"
"""Stand around what is learned."""
SHOWN = 100
"""Tokens of a document that are shown."""


UNUSED: set[str | int] = {
    "val_files",
    "val_fraction",
    "vocab_size",
    "batch_size",
    "seed",
    "workers",
    "cache",
    "shards",
    "weights",
    "dataset",
}
"""Options of the data that only training needs."""


def parser() -> TaskParser:
    """The options of `triune text check`: those of the data of `triune text fit`, and a few of its own."""
    from ..core.training.run.cli import TaskParser
    from .data.module import TextData

    p = TaskParser(
        prog="triune text check",
        description="Show what training would read: documents of text files, or conversations as the model's template "
        f"writes them, with {LEARNED[0]}what is learned{LEARNED[1]} marked. Nothing is trained or written.",
    )
    p.add_argument(
        "files",
        nargs="*",
        metavar="FILES",
        help="text files, folders or globs, as for --data.files; or a folder of shards, which is verified",
    )
    p.add_class_arguments(TextData, "data", skip=UNUSED)
    p.set_defaults({"data.on_error": "skip"})
    p.add_argument(
        "--model.pretrained", type=str | None, default=None,
        help="a checkpoint, whose tokenizer and template are used",
    )  # fmt: skip
    p.add_argument("--rows", type=int, default=3, help="how many conversations or documents are shown (default 3)")
    p.add_argument("--tokens", action="store_true", help="show the borders of tokens, too")
    return p


def main(args: list[str]) -> int:
    """Runs `triune text check` and returns its exit code: 0, or 2 when rows cannot be used."""
    from ..core.labelled.check import asked_for

    if asked_for(args):
        from ..core.labelled.check import main as of_table
        from .labelled import MODALITY

        return of_table(MODALITY, args)
    from ..core.shards import is_shards
    from ..core.stores import Cache
    from ..core.training.run.arguments import given
    from .data.module import TextData
    from .shard import check

    options = parser().parse_args(args)
    if len(options.files) == 1 and is_shards(options.files[0]):
        return check(options.files[0], Cache.of(None, options.data.cache_gb))
    if options.files and options.data.files is not None:
        raise UserError("FILES and --data.files are both given; leave out one of them.")
    if options.files:
        options.data.files = options.files
    if (options.data.files is None) == (options.data.chats is None):
        raise UserError("Give either FILES of text or --data.chats with files of conversations.")
    if options.rows < 0:
        raise UserError(f"--rows is {options.rows}, but must be at least 0.")
    data = TextData(**options.data)
    data.given = given(args)
    if data.chats is None and "context" in data.given:
        raise UserError("--data.context is given without --data.chats, for whose rows it counts here; leave it out.")
    tokenizer = _tokenizer(data, options.model.pretrained)
    return _documents(data, tokenizer, options) if data.chats is None else _chats(data, tokenizer, options)


def _tokenizer(data: TextData, pretrained: str | None) -> Tokenizer:
    from .checkpoints.pretrained import load
    from .tokenizer import Tokenizer

    kind = data.tokenizer_kind
    if pretrained == "":
        raise UserError("--model.pretrained is empty, but must name a checkpoint; leave it out for none.")
    if pretrained and kind:
        raise UserError("--data.tokenizer and --model.pretrained are both given; a model brings its own tokenizer.")
    if pretrained:
        tokenizer = load(pretrained).companion
        if tokenizer is None:
            raise UserError(f"'{pretrained}' comes without a tokenizer; give --data.tokenizer PATH instead.")
        return tokenizer
    if kind in ("bpe", "characters"):
        raise UserError(f"--data.tokenizer is {kind}, which is made in training; give bytes or the path of one.")
    return Tokenizer.bytes() if kind in (None, "bytes") else Tokenizer.load(kind)


def _documents(data: TextData, tokenizer: Tokenizer, options: Any) -> int:
    corpus, _ = data.corpora()
    data.refuse_unused(corpus)
    surveyed, tokens = corpus.survey(), 0
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


def _chats(data: TextData, tokenizer: Tokenizer, options: Any) -> int:
    from .data.chat import ChatTemplate
    from .data.conversations import usable
    from .data.messages import read_conversations
    from .data.packing import join

    data.refuse_unused()
    template = ChatTemplate(tokenizer)
    found, rejected = usable(read_conversations(data.chats or [], data.columns), template, data.on_error)
    for one in found[: options.rows]:
        samples = one.samples
        print(f"--- {one.conversation.name}: {len(samples)} sample{'s' * (len(samples) != 1)}, {_lengths(samples)}")
        for sample in samples:
            pairs = list(zip(sample.tokens.tolist(), sample.answers.tolist()))
            print(_shown(pairs, tokenizer, options.tokens))
    chats = join((sample for one in found for sample in one.samples), tokenizer, data.context)
    print(f"{_summary(template, len(found), chats, data.context)}")
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
