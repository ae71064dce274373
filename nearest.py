"""`triune nearest`: what is near to what among vectors that `triune embed` or another program has written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import UserError, nearest
from .core.files import OVERWRITE, check_new, few, write_json
from .core.options import Parser, number, whole
from .core.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from .core.embeddings.store import Vectors

SHOWN = 20
"""Pairs, clusters or doubts that are printed; the file has all."""
WRITTEN = (".json", ".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of `--output`: everything as JSON, or a table with a row for each neighbour, pair or doubt."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune nearest`."""
    p = Parser(
        prog="triune nearest",
        description="Find the nearest vectors by cosine, exactly; or copies, or labels that the neighbours contradict.",
        epilog="Write the vectors with `triune embed INPUTS --run RUN --out vectors.parquet`. Vectors of other "
        "programs are read too: .npy, .npz, or Parquet with a column of lists.",
    )
    p.add_argument(
        "queries", nargs="*", metavar="QUERY",
        help="names of the index, or files of vectors of the same model; none of them with --duplicates or --labels",
    )  # fmt: skip
    p.add_argument("--index", type=Path, required=True, help="file of vectors: .parquet, .npz or .npy")
    p.add_argument("--k", type=whole(1, 10_000), default=None, help="neighbours (default: 5, with --labels 10)")
    p.add_argument("--duplicates", action="store_true", help="list the pairs that are alike, and what they join")
    p.add_argument(
        "--threshold", type=number(0, 1), default=None, help="least cosine of --duplicates (default: 0.98)"
    )  # fmt: skip
    p.add_argument(
        "--labels", type=Path, metavar="TABLE", help="table of labels: list those that neighbours contradict"
    )
    p.add_argument("--target", metavar="COLUMN", help="of --labels: the label")
    p.add_argument("--key", metavar="COLUMN", help="of --labels: the name in the index (default: name)")
    p.add_argument("--output", type=Path, help=f"file to write: {', '.join(WRITTEN)}")
    p.add_argument("--sheet", type=Path, metavar="PNG", help="draw the images that are found, whose names are files")
    p.add_argument("--images", type=Path, metavar="FOLDER", help="where these names start from (default: here)")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    return p


def main(args: list[str]) -> int:
    """Runs `triune nearest` and returns its exit code."""
    options = parser().parse_args(args)
    _check(options)
    from .core.embeddings.store import read_vectors

    index = read_vectors(options.index)
    for note in index.notes:
        print(f"note: '{options.index}': {note}.", file=sys.stderr)
    if zero := [index.label(i) for i in _zeros(index.values)]:
        print(f"note: the vectors of {few(zero)} are zero, and their cosines 0.", file=sys.stderr)
    if options.duplicates:
        found, text = duplicates(index, 0.98 if options.threshold is None else options.threshold)
    elif options.labels:
        found, text = doubts(index, options.labels, options.key or "name", options.target, options.k or 10)
    else:
        found, text = neighbours(index, options.queries, options.k or 5)
    print(text)
    if options.output:
        _write(found, options, " ".join(["triune nearest", *args]))
        print(f"Written: {options.output}")
    if options.sheet:
        _draw(found, options)
        print(f"Written: {options.sheet}")
    return 0


def _write(found: dict[str, Any], options: argparse.Namespace, command: str) -> None:
    """Writes everything as JSON, or the rows as a table."""
    if options.output.suffix == ".json":
        write_json(options.output, {"command": command, "version": __version__, "index": str(options.index), **found})
        return
    from .core.labelled.predict import write

    write(rows_of(found), options.output)


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found as rows of a table: a neighbour of a query, a pair, or a doubt each."""
    if "queries" in found:
        return [
            {"query": row["query"], "rank": rank, **hit}
            for row in found["queries"]
            for rank, hit in enumerate(row["nearest"], 1)
        ]
    if "pairs" in found:
        return [
            {"first": pair["names"][0], "second": pair["names"][1], "cosine": pair["cosine"]} for pair in found["pairs"]
        ]
    return found["doubts"]


def _draw(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Draws the images of what was found. Raises UserError where no name is that of a file."""
    from .core.canvas import clip
    from .vision.contact_sheet import Picture, contact_sheet, refuse_others

    folder = options.images or Path()

    def picture(name: str, words: str, marked: bool = False) -> Picture:
        return Picture(folder / name, f"{clip(name, 24)}\n{words}", marked)

    if "queries" in found:
        rows = [
            [picture(row["query"], "query", True)]
            + [picture(hit["name"], f"cosine {hit['cosine']:.4f}") for hit in row["nearest"]]
            for row in found["queries"]
        ]
        title = f"the nearest of {len(rows):,} queries"
    elif "pairs" in found:
        each = [[picture(name, f"cosine {pair['cosine']:.4f}") for name in pair["names"]] for pair in found["pairs"]]
        rows = [[one for pair in each[start : start + 3] for one in pair] for start in range(0, len(each), 3)]
        title = f"{len(each):,} pairs that are alike"
    else:
        said = [
            picture(d["name"], f"{clip(d['label'], 12)}, near {clip(d['neighbours'], 12)}") for d in found["doubts"]
        ]
        rows = [said[start : start + 6] for start in range(0, len(said), 6)]
        title = f"{len(said):,} labels that neighbours contradict"
    refuse_others([one.path for row in rows for one in row], folder)
    contact_sheet(rows, title, options.sheet)


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    asked = [bool(options.queries), options.duplicates, options.labels is not None]
    if sum(asked) != 1:
        what = "Nothing" if not sum(asked) else "More than one thing"
        raise UserError(
            f"{what} is asked for; give QUERY, --duplicates or --labels; `triune nearest --help` says more."
        )
    if options.threshold is not None and not options.duplicates:
        raise UserError("--threshold is of --duplicates; give both, or leave it out.")
    if options.k is not None and options.duplicates:
        raise UserError("--k is of QUERY and --labels, and --duplicates lists all pairs; leave it out.")
    if bool(options.labels) != bool(options.target):
        raise UserError("--labels and --target belong together: a table, and the column of the label; give both.")
    if options.key is not None and not options.labels:
        raise UserError("--key is of --labels, the column with the names of the index; give both, or leave it out.")
    if options.images is not None and not options.sheet:
        raise UserError("--images is of --sheet, where the names of its images start from; give both, or leave it out.")
    for name, path, endings in (("output", options.output, WRITTEN), ("sheet", options.sheet, (".png",))):
        if path is not None and path.suffix not in endings:
            raise UserError(f"--{name} is '{path}', but must end in {' or '.join(endings)}; give such a name.")
    check_new([path for path in (options.output, options.sheet) if path is not None], options.overwrite)


def _zeros(values: np.ndarray) -> list[int]:
    import numpy as np

    return np.flatnonzero(~np.asarray(values.any(axis=1))).tolist()


def neighbours(index: Vectors, queries: list[str], k: int) -> tuple[dict[str, Any], str]:
    """The nearest vectors of each query: what is written, and what is printed."""
    import numpy as np

    from .core.embeddings.nearest import search

    names, values, skip = _queries(index, queries)
    found = search(values, index.values, min(k, len(index)), np.array(skip))
    rows = []
    for name, cosines, near in zip(names, found.cosines.tolist(), found.rows.tolist(), strict=True):
        hits = [{"name": index.label(row), "cosine": cosine} for cosine, row in zip(cosines, near) if row >= 0]
        rows.append({"query": name, "nearest": hits})
    lines = []
    for row in rows[:SHOWN]:
        lines += [row["query"], *(f"  {hit['cosine']:7.4f}  {hit['name']}" for hit in row["nearest"])]
    if len(rows) > SHOWN:
        lines.append(f"… and {len(rows) - SHOWN:,} more queries; --output writes all")
    return {"queries": rows}, "\n".join(lines)


def _queries(index: Vectors, queries: list[str]) -> tuple[list[str], np.ndarray, list[int]]:
    """What queries are called, their vectors `[queries, dim]`, and the row of the index that each is, or -1."""
    import numpy as np

    from .core.embeddings.store import ENDINGS, read_vectors

    rows: dict[str, list[int]] = {}
    for i, name in enumerate(index.names):
        rows.setdefault(name, []).append(i)
    names, values, skip = [], [], []
    for query in queries:
        if query in rows:
            for row in rows[query]:
                names.append(index.label(row))
                values.append(np.asarray(index.values[row : row + 1], np.float32))
                skip.append(row)
        elif query.lower().endswith(ENDINGS) and Path(query).exists():
            other = read_vectors(query)
            check_same(index, other)
            names += [other.label(i) for i in range(len(other))]
            values.append(np.asarray(other.values, np.float32))
            skip += [-1] * len(other)
        else:
            hint = nearest(query, index.names[:100_000])
            embed = f"; embed it first (triune embed {query} … --out query.parquet)" if Path(query).exists() else ""
            raise UserError(
                f"'{index.path}' has no '{query}'{hint}{embed or '; give a name of it, or a file of vectors'}."
            )
    return names, np.concatenate(values), skip


def check_same(index: Vectors, other: Vectors) -> None:
    """Raises UserError where vectors cannot be compared: of other lengths, or known to be of other models."""
    if index.values.shape[1] != other.values.shape[1]:
        raise UserError(
            f"The vectors of '{other.path}' have {other.values.shape[1]:,} numbers, but those of '{index.path}' "
            f"{index.values.shape[1]:,}; embed both with the same model."
        )
    if index.about and other.about and index.about != other.about:
        key = next(k for k in sorted({*index.about, *other.about}) if index.about.get(k) != other.about.get(k))
        raise UserError(
            f"The vectors of '{other.path}' and '{index.path}' differ in {key} ({other.about.get(key)!r} and "
            f"{index.about.get(key)!r}), so they cannot be compared; embed both in the same way."
        )


def duplicates(index: Vectors, threshold: float) -> tuple[dict[str, Any], str]:
    """Pairs of vectors that are alike, and the clusters they join: what is written, and what is printed."""
    from .core.embeddings.nearest import alike, clusters

    pairs = alike(index.values, threshold)
    joined = clusters(pairs)
    more = sum(len(rows) - 1 for rows in joined)
    lines = [
        f"{len(pairs):,} pairs of {len(index):,} vectors have a cosine of {threshold:g} or more; they join "
        f"{len(joined):,} clusters, so {more:,} vectors have another one like them"
    ]
    lines += [f"  {p.cosine:7.4f}  {index.label(p.first)}  {index.label(p.second)}" for p in pairs[:SHOWN]]
    if len(pairs) > SHOWN:
        lines.append(f"… and {len(pairs) - SHOWN:,} more pairs; --output writes all")
    found = {
        "threshold": threshold,
        "pairs": [{"names": [index.label(p.first), index.label(p.second)], "cosine": p.cosine} for p in pairs],
        "clusters": [[index.label(row) for row in rows] for rows in joined],
    }
    return found, "\n".join(lines)


def doubts(index: Vectors, table: Path, key: str, target: str, k: int) -> tuple[dict[str, Any], str]:
    """Labels that the neighbours contradict: what is written, and what is printed."""
    import numpy as np

    from .core.embeddings.nearest import IGNORED, doubtful
    from .core.labels.join import join
    from .core.labels.table import read_table
    from .core.labels.targets import infer

    if index.places:
        raise UserError(
            f"'{index.path}' has several vectors an input ({few(list(index.places))}), but labels are of whole inputs; "
            "embed with pooling."
        )
    read = read_table(table, [key, target])
    labels = infer(read, [target], "classify")
    for note in (*read.notes, *labels.notes):
        print(f"note: '{table}': {note}.", file=sys.stderr)
    joined = join(index.names, read, key, f"'{index.path}'")
    for note in joined.notes:
        print(f"note: {note}.", file=sys.stderr)
    codes = np.where(joined.found, np.asarray(labels.values)[joined.rows], IGNORED)
    found = doubtful(index.values, codes, k)
    lines = [
        f"{len(found.doubts):,} of {found.rows:,} labels are contradicted by most of their {min(k, found.rows - 1)} "
        f"neighbours; neighbours tell {found.agreement:.1%} of the labels (the most frequent class: "
        f"{found.majority:.1%})"
    ]
    if found.doubts:
        lines.append("  votes  own    cosine  name: label -> label of most neighbours")
    for doubt in found.doubts[:SHOWN]:
        lines.append(
            f"  {doubt.votes:4.0%}  {doubt.own:4.0%}  {doubt.cosine:7.4f}  {index.names[doubt.row]}: "
            f"{labels.names[doubt.label]} -> {labels.names[doubt.other]}"
        )
    if len(found.doubts) > SHOWN:
        lines.append(f"… and {len(found.doubts) - SHOWN:,} more; --output writes all")
    rows = [
        {
            "name": index.names[d.row], "label": labels.names[d.label], "neighbours": labels.names[d.other],
            "votes": d.votes, "own": d.own, "cosine": d.cosine,
        }
        for d in found.doubts
    ]  # fmt: skip
    numbers = {"agreement": found.agreement, "majority": found.majority, "rows": found.rows, "k": k}
    return {**numbers, "doubts": rows}, "\n".join(lines)
