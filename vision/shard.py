"""`triune vision shard`: labelled images in a few large files with a manifest, for `--data.root`."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UserError
from ..core.options import Parser, number, whole

ROWS = 10_000


def parser() -> Parser:
    """The options of `triune vision shard`."""
    p = Parser(
        prog="triune vision shard",
        description="Write labelled images into a folder of shards: their files one behind the other, each decoded "
        "once now and never again before a training (--data.root OUT). Interrupted, the same command goes on; `triune "
        "vision check OUT` verifies it.",
    )
    p.add_argument("root", metavar="INPUT", help="what --data.root takes, or hf:owner/name")
    p.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    p.add_argument("--val_root", default=None, help="images to validate on (default: those of INPUT, if it has any)")
    p.add_argument("--test_root", default=None, help="images to test on")
    p.add_argument("--rows", type=whole(1), default=ROWS, help=f"images of a shard (default {ROWS:,})")
    p.add_argument("--on_error", choices=("stop", "skip"), default="stop", help="at images that cannot be read")
    p.add_argument("--max_megapixels", type=number(0, 10_000), default=None, help="larger images cannot be read")
    p.add_argument("--cache", default=None, help="folder for what archives hold")
    return p


def main(args: list[str]) -> int:
    """Runs `triune vision shard` and returns its exit code."""
    from ..core.shards import Folder
    from ..core.work import cache_folder
    from .data.find import Where, find
    from .data.folders import unread_note
    from .data.images import MAX_PIXELS, Decoding
    from .data.packed import read_shards
    from .data.packing import write_shards

    options = parser().parse_args(args)
    hub = options.root.startswith("hf:")
    where = Where(None if hub else options.root, options.val_root, options.test_root, options.root if hub else None)
    collection = find(where, cache_folder(options.cache))
    if not hub and Path(options.root).resolve() == options.out.resolve():
        raise UserError(f"OUT '{options.out}' is INPUT itself; give a new folder.")
    pixels = round(options.max_megapixels * 1e6) if options.max_megapixels else MAX_PIXELS
    about = {"inputs": [options.root, options.val_root, options.test_root], "max_pixels": pixels}
    skipped = write_shards(collection, options.out, options.rows, options.on_error == "skip", Decoding(pixels), about)
    sides = read_shards(Folder(options.out))[1]
    left = sum(skipped.values())
    print(
        f"{options.out}: {described({side: sum(s.images for s in shards) for side, shards in sides.items()})}"
        f"{f', {left:,} left out that cannot be read' if left else ''}. Train on it: triune vision fit --data.root"
        f" {options.out}"
    )
    for note in [*collection.notes, *unread_note(collection.others)]:
        print(f"note: {note}")
    return 0


def described(sides: dict[str, int]) -> str:
    """Numbers of images in words."""
    return ", ".join(f"{count:,} {side} images" for side, count in sides.items())
