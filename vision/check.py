"""`triune vision check FOLDER`: what is in a folder of images, and what is wrong with it, before anything is
trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.labelled.check import OF_TABLES, asked_for
from ..core.labels.cells import natural
from ..core.options import Parser, number, whole
from ..core.shards import Folder, is_shards
from ..core.training.run import machine
from ..core.work import cache_folder
from .data.collection import SIDES, Collection
from .data.find import Where, find
from .data.gather import settle_range
from .data.images import MAX_PIXELS, Decoding
from .data.packed import check_shards
from .data.scan import Record, scan
from .data.split import hold_out
from .estimate import estimate
from .neighbours import BY, add_options, check_options, described_file, neighbours, sheet_of_table
from .shard import described

MOST_CLASSES, MOST_LISTED = 20, 10


@dataclass
class Finding:
    """Something about the data that a person should know.

    Args:
        kind: a short name.
        serious: training would stop, or its figures would be wrong.
        text: one sentence.
        examples: names of some images.
    """

    kind: str
    serious: bool
    text: str
    examples: list[str] = field(default_factory=list)


@dataclass
class Report:
    """All that is known about a collection of images; plain values, ready for JSON.

    Args:
        images: number on each side.
        counts: for each class the number on each side.
        sizes: for width and height the smallest, median and largest in pixels.
        formats, modes: how many images have each.
        findings: what is odd or wrong.
        training: suggested image size, and the memory and time it takes (see `estimate`).
    """

    root: str
    images: dict[str, int]
    counts: dict[str, dict[str, int]]
    sizes: dict[str, list[int]]
    formats: dict[str, int]
    modes: dict[str, int]
    findings: list[Finding]
    training: dict[str, Any]

    @property
    def serious(self) -> bool:
        """There is at least one serious finding."""
        return any(finding.serious for finding in self.findings)


def main(args: list[str]) -> int:
    """Checks a folder. Returns 0, or 1 if something serious was found.

    Raises:
        UserError: there are no labelled images to check.
    """
    if asked_for(args):
        from ..core.labelled.check import main as of_table
        from .labelled import MODALITY

        return of_table(MODALITY, args, described_file, BY, sheet_of_table)
    parser = Parser(prog="triune vision check", description=__doc__, epilog=OF_TABLES)
    parser.add_argument("folder", nargs="?", help="what --data.root takes; left out: scikit-learn's digits")
    parser.add_argument("--val", help="what --data.val_root takes")
    parser.add_argument("--test", help="what --data.test_root takes")
    parser.add_argument("--dataset", help="what --data.dataset takes")
    parser.add_argument(
        "--max-megapixels",
        type=number(0, 10_000),
        default=MAX_PIXELS / 1e6,
        help="larger images cannot be read (default 80)",
    )
    parser.add_argument(
        "--image-size", type=whole(1, 16_384), help="pixels, for the estimates; left out: as training chooses"
    )
    parser.add_argument("--cache", help="folder for what is known about files that were looked at")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_options(parser)
    options = parser.parse_args(args)
    check_options(options)
    machine.use_threads(machine.default_threads())
    machine.keep_memory()
    cache = cache_folder(options.cache)
    if options.folder and is_shards(options.folder):
        sides = check_shards(Folder(options.folder))
        if not options.json:
            print(f"{options.folder}: {described(sides)}. All is as the manifest says.")
    collection = find(Where(options.folder, options.val, options.test, options.dataset), cache)
    for images in collection.sides.values():
        images.decoding = Decoding(round(options.max_megapixels * 1e6))
    records = {side: scan(images, cache, f"checking {side} images") for side, images in collection.sides.items()}
    problem = ""
    try:
        settle_range(collection, records)
    except UserError as error:
        problem = str(error)
    name = options.dataset or options.folder or "scikit-learn digits"
    report = examine(name, collection, records, options.image_size)
    if problem:
        report.findings.append(Finding("range", True, problem))
    found = neighbours(collection, records, options) if options.neighbours else None
    if options.json:
        more = {"ok": not report.serious} | ({"neighbours": found.to_dict()} if found else {})
        print(json.dumps(dataclasses.asdict(report) | more, indent=2, ensure_ascii=False))
    else:
        show(report)
        if found is not None:
            print(f"\n{found.text()}")
            print("\n".join(f"Written: {path}" for path in (options.out, options.sheet) if path is not None))
    return int(report.serious)


def examine(
    name: str, collection: Collection, records: dict[str, list[Record]], image_size: int | None = None
) -> Report:
    """Gathers the report from what `scan` saw."""
    known = [record for found in records.values() for record in found if not record.problem]
    sides = [side for side in SIDES if side in collection.sides]
    tallies = {side: np.bincount(collection.sides[side].labels, minlength=len(collection.classes)) for side in sides}
    counts = {label: {side: int(tallies[side][i]) for side in sides} for i, label in enumerate(collection.classes)}
    sizes = {
        axis: [int(v) for v in (min(values), np.median(values), max(values))]
        for axis in ("width", "height")
        if (values := [getattr(record, axis) for record in known])
    }
    findings = [
        *_unreadable(collection, records), *_classes(collection, counts), *_held_out(collection, records),
        *_copies(collection, records), *_remarks(collection, records),
    ]  # fmt: skip
    if collection.others:
        kinds = _tally(dict(collection.others.most_common(6)))
        text = f"{_many(collection.others.total(), 'file')}: no image by the name, left alone ({kinds})."
        findings.append(Finding("other files", False, text))
    findings += [Finding("reading", False, note) for note in collection.notes]
    return Report(
        name, {side: len(collection.sides[side]) for side in sides}, counts, sizes,
        dict(Counter(record.format for record in known).most_common()),
        dict(Counter(record.mode for record in known).most_common()),
        findings, estimate(collection, records, image_size),
    )  # fmt: skip


def _unreadable(collection: Collection, records: dict[str, list[Record]]) -> list[Finding]:
    bad = [
        f"{images.names[i]} {record.problem}"
        for side, images in collection.sides.items()
        for i, record in enumerate(records[side])
        if record.problem
    ]
    text = f"{_many(len(bad))}: training stops, or leaves them out with --data.on_error skip."
    return [Finding("unreadable", True, text, bad[:MOST_LISTED])] if bad else []


def _classes(collection: Collection, counts: dict[str, dict[str, int]]) -> list[Finding]:
    findings = []
    if collection.empty:
        text = f"{_many(len(collection.empty), 'class folder')}: no images in there."
        findings.append(Finding("empty class", True, text, collection.empty[:MOST_LISTED]))
    if len(collection.classes) < 2:
        findings.append(Finding("one class", True, "There is one class only; a classifier needs two or more."))
    train = {label: sides["train"] for label, sides in counts.items() if sides["train"]}
    if train and max(train.values()) > 3 * min(train.values()):
        most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
        share = max(train.values()) / sum(train.values())
        text = (
            f"'{most}' has {train[most] / train[least]:.1f} times the images of '{least}' ({train[most]:,} and "
            f"{train[least]:,}); always answering '{most}' is right in {share:.0%}. --model.logit_adjustment 1 aims at "
            "the mean accuracy over classes."
        )
        findings.append(Finding("imbalance", False, text))
    few = [label for label, count in train.items() if count < 10]
    if few:
        text = f"{_many(len(few), 'class', 'classes')}: fewer than 10 for training."
        findings.append(Finding("few images", False, text, few[:MOST_LISTED]))
    return findings


def _held_out(collection: Collection, records: dict[str, list[Record]]) -> list[Finding]:
    """What keeps training from holding out images for validation, where no side is for that."""
    if "val" in collection.sides or collection.empty or len(collection.classes) < 2:
        return []
    good = [i for i, record in enumerate(records["train"]) if not record.problem]
    try:
        hold_out([records["train"][i].digest for i in good], collection.sides["train"].labels[good], 0.1, 0)
    except UserError as error:
        return [Finding("validation", True, str(error).replace("--data.val_root", "--val (--data.val_root of fit)"))]
    return []


def _copies(collection: Collection, records: dict[str, list[Record]]) -> list[Finding]:
    """Images with the same pixels: within a side, on two sides, under two labels."""
    places: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for side, images in collection.sides.items():
        for i, record in enumerate(records[side]):
            if not record.problem:
                places[record.digest].append((side, int(images.labels[i]), images.names[i]))
    shared = [group for group in places.values() if len(group) > 1]
    apart = [group for group in shared if len({side for side, _, _ in group}) > 1]
    quarrels = [group for group in shared if len({label for _, label, _ in group}) > 1]
    within = sum(count - 1 for group in shared for count in Counter(side for side, _, _ in group).values())
    findings = []
    if apart:
        text = f"{_many(len(apart))}: the same pixels in training, validation or test; training leaves its copies out."
        findings.append(Finding("on two sides", True, text, _pairs(apart)))
    if quarrels:
        text = f"{_many(len(quarrels))}: the same pixels in two classes."
        findings.append(Finding("two labels", True, text, _pairs(quarrels)))
    if within:
        copies = [group for group in shared if len({side for side, _, _ in group}) < len(group)]
        text = (
            f"{_many(within)}: the pixels of another one on the same side; they stay together when a part is held out."
        )
        findings.append(Finding("copies", False, text, _pairs(copies)))
    return findings


def _pairs(groups: list[list[tuple[str, int, str]]]) -> list[str]:
    return [f"{group[0][2]} = {group[1][2]}" for group in groups[:MOST_LISTED]]


def _remarks(collection: Collection, records: dict[str, list[Record]]) -> list[Finding]:
    examples: dict[str, list[str]] = defaultdict(list)
    for side, images in collection.sides.items():
        for i, record in enumerate(records[side]):
            for remark in record.remarks:
                examples[remark].append(images.names[i])
    meaning = {
        "named otherwise": "the format is not the one of the name; read all the same.",
        "animated": "animated; the first frame is used.",
        "16 bits": "16 bits a pixel, scaled to 8.",
        "float": "floating-point pixels, from 0 to 1 or 0 to 255.",
        "transparent": "transparent; what lies behind is white.",
        "CMYK": "CMYK, made for print; converted to RGB.",
        "longer than 1:5": "more than five times as long as wide; a centre crop shows little (--data.resize squash).",
        "below 16 pixels": "smaller than 16 pixels.",
    }
    total = sum(map(len, records.values()))
    return [
        Finding(kind, False, f"{_many(len(examples[kind]))}: {text}", examples[kind][:MOST_LISTED])
        for kind, text in meaning.items()
        if examples[kind] and not (kind == "below 16 pixels" and len(examples[kind]) == total)
    ]


# --- for people -------------------------------------------------------------------------------------------------------


def show(report: Report, console: Any = None) -> None:
    """Prints the report for a terminal of any width."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console(highlight=False)
    total = sum(report.images.values())
    console.print(f"[bold]{escape(report.root)}[/]: {total:,} images in {len(report.counts):,} classes")
    console.print(_class_table(report))
    console.print(_facts(report))
    if not report.findings:
        console.print("\n[green]✓ Nothing is wrong with them.[/]")
        return
    table = _grid()
    for finding in sorted(report.findings, key=lambda finding: not finding.serious):
        mark, style = ("✗", "bold red") if finding.serious else ("·", "yellow")
        shown = finding.examples[: MOST_LISTED if finding.kind == "unreadable" else 2]
        examples = "".join(f"\n[dim]{escape(_short(example))}[/]" for example in shown)
        table.add_row(f"[{style}]{mark}[/]", f"[{style}]{finding.kind}[/]", escape(finding.text) + examples)
    console.print()
    console.print(table)
    if not report.serious:
        console.print("\n[green]✓ They can be trained on.[/]")


def _grid() -> Any:
    """Three columns: a mark, a name and text that wraps under itself."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(min_width=9)
    table.add_column(overflow="fold")
    return table


def _class_table(report: Report) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    sides = list(report.images)
    for side in sides:
        table.add_column(side, justify="right")
    table.add_column("", style="cyan", no_wrap=True)
    rows = sorted(report.counts.items(), key=lambda row: natural(row[0]))
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: -row[1]["train"])
        left = rows[MOST_CLASSES // 2 : -MOST_CLASSES // 2]
        sums = {side: sum(counts[side] for _, counts in left) for side in sides}
        rows = [*rows[: MOST_CLASSES // 2], (f"… {len(left):,} more classes", sums), *rows[-MOST_CLASSES // 2 :]]
    most = max((counts["train"] for name, counts in report.counts.items()), default=0) or 1
    for name, counts in rows:
        bar = (
            ""
            if name not in report.counts
            else "█" * max(1, round(16 * counts["train"] / most)) * bool(counts["train"])
        )
        table.add_row(escape(name), *(f"{counts[side]:,}" for side in sides), bar)
    table.add_row("all", *(f"{report.images[side]:,}" for side in sides), "", style="bold")
    return table


def _facts(report: Report) -> Any:
    table = _grid()
    if report.sizes:
        (w0, w, w1), (h0, h, h1) = report.sizes["width"], report.sizes["height"]
        alike = (w0, h0) == (w1, h1)
        table.add_row("", "size", f"{w}×{h} pixels" + ("" if alike else f" (median; {w0}×{h0} to {w1}×{h1})"))
    if report.formats and set(report.formats) != {"array"}:
        table.add_row("", "formats", f"{_tally(report.formats)}; colours {_tally(report.modes)}")
    training = report.training
    if training:
        height, width = training["image_size"]
        where = "kept in memory" if training["in_memory"] else "decoded anew in every epoch"
        shape = f"{height}×{width}×{training['channels']}"
        table.add_row("", "training", f"at {shape}, {_bytes(training['bytes'])} of pixels, {where}")
    if "images_per_second" in training:
        each = "once" if training["in_memory"] else "each epoch"
        rate = f"{training['images_per_second']:,} images/s and core, measured"
        cores = _many(training["cores"], "core")
        table.add_row("", "reading", f"{_seconds(training['seconds_to_read'])} {each} on {cores} ({rate})")
    if "steps" in training:
        taken = f"about {_seconds(training['seconds_to_train'])} and {training['memory_gb']:g} GB"
        steps = f"{training['steps']:,} steps of {training['batch_size']} images, the default recipe"
        table.add_row("", "fit", f"{taken} ({steps})")
    return table


def _many(count: int, one: str = "image", several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _tally(counts: dict[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _short(text: str, most: int = 150) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"
