"""`triune text shard`: texts as tokens in files of bounded size, with a manifest, for `--data.shards`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.options import SEED, Parser, number, whole

ROWS = 1 << 27


def parser() -> Parser:
    """The options of `triune text shard`."""
    p = Parser(
        prog="triune text shard",
        description="Write texts as tokens into a folder of shards, which training reads in any order with little "
        "memory (--data.shards OUT). Interrupted, the same command goes on; `triune text check OUT` verifies it.",
    )
    p.add_argument("inputs", nargs="+", metavar="INPUTS", help="text files, folders or globs, as for --data.files")
    p.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    p.add_argument("--tokenizer", default="bpe", help="bpe, bytes, characters, or a path (default bpe)")
    p.add_argument("--vocab_size", type=whole(257), default=None, help="tokens of a BPE made here (default 4096)")
    p.add_argument("--rows", type=whole(1), default=ROWS, help=f"tokens of a shard (default {ROWS:,})")
    p.add_argument("--val_files", nargs="+", default=None, metavar="FILES", help="texts to validate on")
    p.add_argument(
        "--val_fraction", type=number(0, 0.999), default=None, help="else the part to hold out (default 0.1)"
    )
    p.add_argument("--text_field", default="text", help="the field of rows that holds the text (default text)")
    p.add_argument("--on_error", choices=("stop", "skip"), default="stop", help="at rows that cannot be used")
    p.add_argument("--seed", type=SEED, default=0, help="chooses what is held out (default 0)")
    p.add_argument("--cache", default=None, help="folder for a BPE that is made here")
    return p


def main(args: list[str]) -> int:
    """Runs `triune text shard` and returns its exit code."""
    options = parser().parse_args(args)
    if options.vocab_size is not None and options.tokenizer != "bpe":
        raise UserError("--vocab_size is given, but only a BPE that is made here has a size to choose; leave it out.")
    if options.val_files and options.val_fraction is not None:
        raise UserError("--val_fraction is given, but --val_files says what to validate on; leave one of them out.")
    manifest = _write(options)
    print(f"{options.out}: {described(manifest)}. Train on it: triune text fit --data.shards {options.out}")
    return 0


def _write(options: Any) -> Any:
    from ..core.work import cache_folder
    from .data.corpus import find
    from .data.sharding import write_shards
    from .data.split import Sides
    from .data.tokens import make_tokenizer

    skip, fraction = options.on_error == "skip", options.val_fraction or 0.1
    val = find(options.val_files, options.text_field, skip) if options.val_files else None
    sides = Sides(find(options.inputs, options.text_field, skip), val, fraction, options.seed)
    tokenizer = make_tokenizer(options.tokenizer, options.vocab_size or 4096, sides, cache_folder(options.cache))
    about = {
        "inputs": options.inputs, "val_files": options.val_files, "val_fraction": fraction, "seed": options.seed,
        "text": sides.fingerprint, "text_bytes": sides.bytes, "duplicates": sides.split.duplicates,
        "skipped": sides.skipped, "tokenizer": options.tokenizer,
    }  # fmt: skip
    return write_shards(sides, tokenizer, options.out, options.rows, about)


def described(manifest: Any) -> str:
    """A manifest in words."""
    parts = []
    for side, shards in manifest.sides.items():
        tokens, documents = sum(s.tokens for s in shards), sum(s.documents for s in shards)
        several = f"{len(shards):,} shard{'s' * (len(shards) != 1)}"
        parts.append(f"{side} {tokens:,} tokens of {documents:,} documents in {several}")
    return "; ".join(parts)


def check(folder: str) -> int:
    """Verifies a folder of shards, for `triune text check`; returns the exit code. Raises UserError for any damage."""
    from .data.sharding import check_shards

    manifest = check_shards(Path(folder))
    print(f"{folder}: {described(manifest)}. All is as the manifest says.")
    return 0
