"""`triune text shard`: texts as tokens in files of bounded size, with a manifest, for `--data.shards`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.options import SEED, Parser, number, whole

if TYPE_CHECKING:
    from ..core.stores import Cache
    from .data.corpus import Corpus

ROWS = 1 << 27


def parser() -> Parser:
    """The options of `triune text shard`."""
    p = Parser(
        prog="triune text shard",
        description="Write texts as tokens into a folder of shards, which training reads in any order with little "
        "memory (--data.shards OUT). Interrupted, the same command goes on; `triune text check OUT` verifies it.",
    )
    p.add_argument(
        "inputs", nargs="*", metavar="INPUTS", help="text files, folders, globs or URLs, as for --data.files"
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    p.add_argument("--dataset", default=None, help="instead of INPUTS, a data set with splits, as for --data.dataset")
    p.add_argument("--tokenizer", default="bpe", help="bpe, bytes, characters, or a path (default bpe)")
    p.add_argument("--vocab_size", type=whole(257), default=None, help="tokens of a BPE made here (default 4096)")
    p.add_argument("--rows", type=whole(1), default=ROWS, help=f"tokens of a shard (default {ROWS:,})")
    p.add_argument("--val_files", nargs="+", default=None, metavar="FILES", help="texts to validate on")
    p.add_argument(
        "--val_fraction", type=number(0, 0.999), default=None, help="else the part to hold out (default 0.1)"
    )
    p.add_argument("--text_field", default=None, help="the field of rows that holds the text (default text)")
    p.add_argument(
        "--on_error", choices=("stop", "skip"), default=None, help="at rows that cannot be used (default stop)"
    )
    p.add_argument("--seed", type=SEED, default=None, help="chooses what is held out (default 0)")
    p.add_argument("--cache", default=None, help="folder for a BPE that is made here, and for files of stores")
    p.add_argument(
        "--cache_gb", type=number(0.001, 1e9), default=None, help="10⁹ bytes that it keeps of files of stores (20)"
    )
    return p


def main(args: list[str]) -> int:
    """Runs `triune text shard` and returns its exit code."""
    options = parser().parse_args(args)
    if options.vocab_size is not None and options.tokenizer != "bpe":
        raise UserError("--vocab_size is given, but only a BPE that is made here has a size to choose; leave it out.")
    if options.val_files and options.val_fraction is not None:
        raise UserError("--val_fraction is given, but --val_files says what to validate on; leave one of them out.")
    if bool(options.inputs) == bool(options.dataset):
        both = "INPUTS and --dataset are both given" if options.inputs else "There is nothing to read"
        raise UserError(f"{both}; give either INPUTS or --dataset NAME, and OUT behind them.")
    if options.dataset and options.val_files:
        raise UserError("--val_files is given, but --dataset has splits of its own; leave one of them out.")
    manifest = _write(options)
    print(f"{options.out}: {described(manifest)}. Train on it: triune text fit --data.shards {options.out}")
    return 0


def _write(options: Any) -> Any:
    from ..core.stores import Cache
    from ..core.work import cache_folder
    from .data.corpus import find
    from .data.sets import find_set
    from .data.sharding import write_shards
    from .data.split import Sides
    from .data.tokens import make_tokenizer

    skip, fraction = options.on_error == "skip", options.val_fraction or 0.1
    field, seed = options.text_field or "text", options.seed or 0
    cache = Cache.of(options.cache, options.cache_gb)
    if options.dataset:
        corpus, val = find_set(options.dataset, field, skip, cache)
        if val is not None and options.val_fraction is not None:
            raise UserError(f"--val_fraction is given, but '{options.dataset}' has a validation split; leave it out.")
    else:
        corpus = find(options.inputs, field, skip, cache)
        val = find(options.val_files, field, skip, cache) if options.val_files else None
    _refuse_unused(options, [corpus, *([] if val is None else [val])])
    sides = Sides(corpus, val, fraction, seed)
    tokenizer = make_tokenizer(options.tokenizer, options.vocab_size or 4096, sides, cache_folder(options.cache))
    about = {
        "inputs": options.inputs or [options.dataset], "val_files": options.val_files, "val_fraction": fraction,
        "seed": seed,
        "text": sides.fingerprint, "text_bytes": sides.bytes, "duplicates": sides.split.duplicates,
        "skipped": sides.skipped, "tokenizer": options.tokenizer,
    }  # fmt: skip
    return write_shards(sides, tokenizer, options.out, options.rows, about)


def _refuse_unused(options: Any, corpora: list[Corpus]) -> None:
    """Raises UserError for an option that is given and changes nothing."""
    unused = {}
    if not any(corpus.remote for corpus in corpora):
        unused["cache_gb"] = "no file lies in a store (a URL)"
        if options.tokenizer != "bpe":
            unused["cache"] = "no BPE is made here and no file lies in a store"
    if not any(corpus.may_have_rows for corpus in corpora):
        unused |= dict.fromkeys(("text_field", "on_error"), "none of the files has rows (.jsonl, .parquet, .json)")
    if len(corpora) > 1:
        unused["seed"] = "what to validate on is known"
    for name, why in unused.items():
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is given, but {why}; leave it out.")


def described(manifest: Any) -> str:
    """A manifest in words."""
    parts = []
    for side, shards in manifest.sides.items():
        tokens, documents = sum(s.tokens for s in shards), sum(s.documents for s in shards)
        several = f"{len(shards):,} shard{'s' * (len(shards) != 1)}"
        parts.append(f"{side} {tokens:,} tokens of {documents:,} documents in {several}")
    return "; ".join(parts)


def check(folder: str, cache: Cache) -> int:
    """Verifies a folder of shards, for `triune text check`; returns the exit code. Raises UserError for any damage."""
    from ..core.shards import Folder
    from .data.sharding import check_shards

    manifest = check_shards(Folder(folder, cache))
    print(f"{folder}: {described(manifest)}. All is as the manifest says.")
    return 0
