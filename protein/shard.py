"""`triune protein shard`: sequences in files of bounded size, with a manifest, for `pretrain --data.shards`."""

from __future__ import annotations

from pathlib import Path

from ..core.options import Parser, number, whole

ROWS = 1 << 26


def parser() -> Parser:
    """The options of `triune protein shard`."""
    p = Parser(
        prog="triune protein shard",
        description="Write the distinct sequences of FASTA files into a folder of shards, which training reads in any "
        "order with little memory (triune protein pretrain --data.shards OUT). Interrupted, the same command goes on; "
        "`triune protein check OUT` verifies it. Structures and alignments: triune protein prepare.",
    )
    p.add_argument("inputs", nargs="+", metavar="INPUTS", help="FASTA files, globs or URLs, as for --data.files")
    p.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    p.add_argument("--rows", type=whole(1), default=ROWS, help=f"residues of a shard (default {ROWS:,})")
    p.add_argument(
        "--val_fraction", type=number(0.000001, 0.999), default=0.05, help="the part to hold out (default 0.05)"
    )
    p.add_argument("--cache", default=None, help="folder for files of stores")
    return p


def main(args: list[str]) -> int:
    """Runs `triune protein shard` and returns its exit code."""
    from ..core.shards import Folder
    from ..core.stores import Cache
    from .language.sequences import Distinct, named_files
    from .language.sharded import described, read_shards
    from .language.sharding import write_shards

    options = parser().parse_args(args)
    source = Distinct(named_files(options.inputs), Cache.of(options.cache))
    about = {"inputs": options.inputs, "val_fraction": options.val_fraction}
    write_shards(source, options.out, options.rows, options.val_fraction, about)
    content, sides = read_shards(Folder(options.out))
    left = [f"{content['about'][what]:,} {words}" for what, words in LEFT.items() if content["about"][what]]
    print(
        f"{options.out}: {'; '.join([described(sides), *left])}. Train on it: triune protein pretrain --data.shards"
        f" {options.out}"
    )
    if source.problems:
        print(f"the first that was left out: {source.problems[0]}")
    return 0


LEFT = {"duplicates": "duplicates left out", "left_out": "left out that are no proteins"}


def check(args: list[str]) -> int:
    """Runs `triune protein check`: a folder of shards is verified, the rows of a table are compared with each other."""
    from ..core.shards import Folder, is_shards

    if len(args) == 1 and not args[0].startswith("-") and is_shards(args[0]):
        from .language.sharded import check_shards, described

        print(f"{args[0]}: {described(check_shards(Folder(args[0])))}. All is as the manifest says.")
        return 0
    from .language.labelled import check as of_table

    return of_table(args)
