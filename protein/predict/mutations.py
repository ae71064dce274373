"""`triune protein mutations`: what a masked language model says of every substitution of a protein."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.checkpoints.native import load_config
from ...core.errors import UserError
from ...core.files import OVERWRITE, check_new, write_json
from ...core.labelled.predict import write
from ...core.labels.cells import number
from ...core.labels.table import read_table
from ...core.options import Parser, whole
from ...core.training.run.folder import RunFolder, model_folder
from ...core.work import progress
from ...core.yaml_files import read_yaml
from ..language.effects import METHODS, substitutions
from ..language.model import SequenceModel, esm_tokens, sequence_tokens
from ..read.alphabet import AMINO_ACIDS, check_protein, encode
from ..read.inputs import read_input
from ..read.mutations import check, parse, parse_sites
from .predictors import LONGEST
from .queries import FORCE, unique

FORMATS = ("csv", "tsv", "jsonl", "parquet")
MOST_SHOWN = 10
"""Substitutions that the terminal shows."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune protein mutations`."""
    p = Parser(
        prog="triune protein mutations",
        description="Score every substitution of a protein by a masked language model: log p(mutant) - log p(wild type)"
        ", in nats (Meier et al. 2021). Writes NAME.csv, NAME.png (a heat map) and NAME.json for each protein. Several "
        "substitutions at once (A24G:D30K) count as the sum of the single ones.",
    )
    p.add_argument("input", metavar="SEQUENCE|FILE", nargs="+", help="one-letter codes, or FASTA files")
    model = p.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", help="a run of `triune protein pretrain`, or its model folder")
    model.add_argument("--pretrained", metavar="NAME_OR_PATH", help="ESM-2 or ESM-1b of fair-esm or Hugging Face")
    p.add_argument("--sites", metavar="10-20,35", help="positions to score (default: all)")
    p.add_argument(
        "--first",
        type=whole(-100_000, 1_000_000),
        default=1,
        metavar="N",
        help="number of the first residue (default: 1)",
    )
    p.add_argument(
        "--method", choices=METHODS, default="masked",
        help="masked: each site masked, a pass each (default); wildtype: one pass over the sequence as it is",
    )  # fmt: skip
    p.add_argument("--measured", metavar="TABLE", help="table of measured mutants, to be compared with")
    p.add_argument("--column", help="its column of numbers")
    p.add_argument("--mutation", default="mutation", help="its column of names such as A24G (default: mutation)")
    p.add_argument(
        "--windows", type=whole(16), metavar="N",
        help="residues that are read at once (default: as many as the model was trained on)",
    )  # fmt: skip
    p.add_argument("--out", metavar="DIR", type=Path, default=Path("mutations"), help="where to write")
    p.add_argument("--format", choices=FORMATS, default="csv", help="of the table (default: csv)")
    p.add_argument("--no-png", action="store_true", help="draw nothing")
    p.add_argument("--force", action="store_true", help="also what looks like DNA, RNA or unknown residues")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--json", action="store_true", help="print one JSON list with an entry per protein, nothing else")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


@dataclass(frozen=True)
class Scorer:
    """A masked language model that is ready for use.

    Args:
        model: in evaluation mode, on its device.
        all_letters: it was trained on sequences as they are written, as ESM-2 was, and not on numbers of `alphabet`.
        longest: residues of the longest crops of its training, as far as that is known.
        about: what it is.
    """

    model: SequenceModel
    all_letters: bool
    longest: int
    about: str

    def ids(self, letters: str) -> Tensor:
        """Token ids of the residues, int64 `[residues]`."""
        if self.all_letters:
            return sequence_tokens(letters)[0, 1:-1]
        return esm_tokens(torch.from_numpy(encode(letters)[None].astype(np.int64)))[0, 1:-1]


def open_scorer(run: str | None, pretrained: str | None, device: str | None) -> Scorer:
    """The masked language model of a run or a checkpoint. Raises UserError where it is another kind of model."""
    from ...core.labelled.run import device_of

    place = device_of(device)
    if pretrained is not None:
        from ..language.checkpoints.pretrained import load

        found = load(pretrained)
        model, name, all_letters = found.model, pretrained, found.family is not None
        longest = LONGEST
    else:
        folder = model_folder(str(run), "protein")
        kind = load_config(folder, "SequenceModel", "PairModel", "ProteinPredictor")["architecture"]
        if kind != "SequenceModel":
            raise UserError(
                f"'{run}' is a {kind}, which gives no probabilities of residues; take a run of `triune protein "
                "pretrain`, or --pretrained."
            )
        model, name, all_letters = SequenceModel.from_pretrained(folder).eval(), str(run), False
        longest = _crop(run) or LONGEST
    assert isinstance(model, SequenceModel)
    c = model.config
    if c.transformer.position == "learned":
        longest = min(longest, c.residues)
    about = f"{name}, {c.transformer.depth} layers x {c.transformer.dim}"
    return Scorer(model.eval().to(place), all_letters, longest, about)


def _crop(run: str | None) -> int | None:
    """`data.context` of a run; None where only its model is at hand."""
    config = RunFolder(str(run)).config
    if not config.is_file():
        return None
    data = (read_yaml(config, str(config)) or {}).get("data") or {}
    return data.get("context") if isinstance(data.get("context"), int) else None


@dataclass(frozen=True)
class Protein:
    """What is to be scored.

    Args:
        name: unique, fit for a file name.
        letters: upper case.
        title: the name that its file gives it.
    """

    name: str
    letters: str
    title: str = ""


def proteins(words: list[str], force: bool) -> list[Protein]:
    """The proteins of a command line. Raises UserError for one that cannot be read."""
    found: list[Protein] = []
    taken: set[str] = set()

    def add(name: str, letters: str, where: str) -> None:
        letters = "".join(letters.split()).upper().removesuffix("*")
        tokens = encode(letters, where)
        if "-" in letters:
            raise UserError(f"{where} has gaps, but must be a sequence; remove them.")
        if not letters:
            raise UserError(f"{where} is empty, but must have a residue.")
        if not force:
            check_protein(tokens, where, FORCE)
        found.append(Protein(unique(name, taken), letters, name))

    for word in words:
        path = Path(word).expanduser()
        if not path.is_file():
            if any(sign in word for sign in "./\\"):
                raise UserError(f"'{word}' is no file and no sequence; give a FASTA file, or one-letter codes.")
            add("sequence", word, "The sequence")
            continue
        content = read_input(path)
        for alignment in content.alignments:
            if alignment.chains:
                raise UserError(f"'{path}' is of a complex; give its chains by themselves.")
            add(path.stem, alignment.query, f"The first row of '{path}'")
        for record in content.sequences:
            if record.chains:
                raise UserError(f"{record.name} of '{path}' is a complex; give its chains by themselves.")
            add(record.name, record.letters, f"{record.name} of '{path}'")
    return found


def main(args: list[str]) -> int:
    """Runs `triune protein mutations` and returns its exit code.

    Raises:
        UserError: a mistake in the options, the inputs or the table.
    """
    options = parser().parse_args(args)
    if (options.measured is None) != (options.column is None):
        raise UserError("--measured TABLE and --column NAME belong together; give both.")
    if options.measured is None and options.mutation != "mutation":
        raise UserError("--mutation names a column of --measured TABLE, which is not given; leave it out.")
    found = proteins(options.input, options.force)
    if options.measured is not None and len(found) > 1:
        raise UserError(f"--measured belongs to one protein, but {len(found)} are given; give that one alone.")
    sites = [_sites(options, protein) for protein in found]
    measured = _measured(options, found[0]) if options.measured is not None else None
    files = [_files(options, protein, measured is not None) for protein in found]
    check_new([file for each in files for file in each.values()], options.overwrite)
    scorer = open_scorer(options.run, options.pretrained, options.device)
    size = options.windows or scorer.longest
    _check_window(scorer, size)
    results = []
    with progress("scoring sites", sum(map(len, sites)), "sites") as advance:
        for protein, chosen, each in zip(found, sites, files):
            results.append(_one(options, scorer, protein, chosen, measured, each, size, advance))
    if options.json:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    else:
        for result in results:
            print(_shown(result))
    return 0


def _files(options: argparse.Namespace, protein: Protein, measured: bool) -> dict[str, Path]:
    kinds = {"table": f".{options.format}", "json": ".json"}
    kinds |= {} if options.no_png else {"png": ".png"}
    kinds |= {"measured": f".measured.{options.format}"} if measured else {}
    return {kind: options.out / f"{protein.name}{ending}" for kind, ending in kinds.items()}


def _check_window(scorer: Scorer, size: int) -> None:
    c = scorer.model.config
    if c.transformer.position == "learned" and size > (most := c.residues):
        raise UserError(f"--windows is {size}, but this model has positions for {most} residues; lower it.")


def _sites(options: argparse.Namespace, protein: Protein) -> list[int]:
    """Positions from 0 with one of the twenty amino acids."""
    count = len(protein.letters)
    chosen = list(range(count)) if options.sites is None else parse_sites(options.sites, options.first, count)
    known = [site for site in chosen if protein.letters[site] in AMINO_ACIDS]
    if not known:
        raise UserError(f"{protein.name} has none of the 20 amino acids at these sites; choose others with --sites.")
    return known


@dataclass(frozen=True)
class Measured:
    """Rows of a table of mutants.

    Args:
        names: as they were written.
        mutations: of each row: positions from 0, and columns of `AMINO_ACIDS`.
        values: float64 `[rows]`.
        left_out: rows without a value.
    """

    names: list[str]
    mutations: list[list[tuple[int, int]]]
    values: np.ndarray
    left_out: int


def _measured(options: argparse.Namespace, protein: Protein) -> Measured:
    table = read_table(options.measured, [options.mutation, options.column])
    rows, wheres, names, values, left_out = [], [], [], [], 0
    for row, (name, cell) in enumerate(zip(table.columns[options.mutation], table.columns[options.column])):
        if cell is None or str(cell).strip() == "":
            left_out += 1
            continue
        value = number(cell)
        if value is None or not np.isfinite(value):
            raise UserError(f"'{options.column}' is '{cell}' in {table.where(row)}, but must be a number; mend it.")
        where = f"'{options.mutation}' in {table.where(row)}"
        rows.append(parse("" if name is None else str(name), where))
        wheres.append(where)
        names.append(str(name))
        values.append(value)
    if not rows:
        raise UserError(f"'{options.column}' of '{options.measured}' has no number; name another column.")
    check(rows, wheres, protein.letters, options.first, protein.name)
    coded = [[(m.position - options.first, AMINO_ACIDS.index(m.mutant)) for m in row] for row in rows]
    odd = next((m for row in rows for m in row if m.wild not in AMINO_ACIDS), None)
    if odd is not None:
        raise UserError(f"{odd} begins with {odd.wild}, which is none of the 20 amino acids; leave such rows out.")
    return Measured(names, coded, np.array(values), left_out)


def _one(
    options: argparse.Namespace, scorer: Scorer, protein: Protein, sites: list[int], measured: Measured | None,
    files: dict[str, Path], size: int, advance: Any,
) -> dict[str, Any]:  # fmt: skip
    """Scores, writes and describes one protein."""
    letters, residues = protein.letters, len(protein.letters)
    needed = sorted({*sites, *(at for row in measured.mutations for at, _ in row)}) if measured else sites
    odds = substitutions(scorer.model, scorer.ids(letters), needed, options.method, size, advance).numpy()
    if not np.isfinite(odds).all():
        raise UserError("The model's logits are not finite, so that nothing can be said; its weights have diverged.")
    row_of = {site: row for row, site in enumerate(needed)}
    notes = _notes(options, scorer, letters, sites, size)
    rows = [
        {
            "protein": protein.name, "mutation": f"{letters[site]}{site + options.first}{letter}",
            "position": site + options.first, "wild_type": letters[site], "mutant": letter,
            "score": round(float(odds[row_of[site], column]), 6),
        }
        for site in sites for column, letter in enumerate(AMINO_ACIDS) if letter != letters[site]
    ]  # fmt: skip
    write(rows, files["table"])
    result: dict[str, Any] = {
        "name": protein.name, "title": protein.title, "sequence": letters, "method": options.method,
        "model": scorer.about,
        "sites": len(sites), "mean": round(float(np.mean([row["score"] for row in rows])), 6),
    }  # fmt: skip
    if measured is not None:
        scores = np.array([sum(float(odds[row_of[at], column]) for at, column in row) for row in measured.mutations])
        result["measured"] = _compared(options, scores, measured)
        beside = zip(measured.names, scores.tolist(), measured.values.tolist())
        write([{"mutation": name, "score": round(s, 6), options.column: v} for name, s, v in beside], files["measured"])
        if measured.left_out:
            notes.append(f"left out of '{options.measured}' because '{options.column}' is empty: {measured.left_out:,}")
    if "png" in files:
        _draw(options, files["png"], odds[[row_of[site] for site in sites]], letters, sites, protein.name, result)
    best = sorted(rows, key=lambda row: -row["score"])
    result |= {
        "highest": [{key: row[key] for key in ("mutation", "score")} for row in best[:MOST_SHOWN]],
        "lowest": [{key: row[key] for key in ("mutation", "score")} for row in best[::-1][:MOST_SHOWN]],
        "residues": residues, "notes": notes, "files": {kind: str(file) for kind, file in files.items()},
    }  # fmt: skip
    write_json(files["json"], result)
    return result


def _notes(options: argparse.Namespace, scorer: Scorer, letters: str, sites: list[int], size: int) -> list[str]:
    notes, residues = [], len(letters)
    if residues > size:
        how = "each site in the middle of its own" if options.method == "masked" else "which overlap by half"
        notes.append(
            f"{residues:,} residues are more than {size:,}, so that they are read in windows of that length, {how}; "
            "what lies outside of a window has no influence"
        )
    if min(size, residues) > scorer.longest:
        notes.append(f"the model was trained on at most {scorer.longest:,} residues at once; beyond it is untested")
    asked = residues if options.sites is None else len(parse_sites(options.sites, options.first, residues))
    if asked > len(sites):
        notes.append(f"left out because they have none of the 20 amino acids: {asked - len(sites):,} sites")
    return notes


def _compared(options: argparse.Namespace, scores: np.ndarray, measured: Measured) -> dict[str, Any]:
    """Spearman's rank correlation with its interval."""
    from ...core.evaluate.bootstrap import Resamples, percentiles, spearman

    count = len(scores)
    value = float(spearman(scores, measured.values, np.ones((1, count)))[0])
    drawn = Resamples(count).of_ranks(lambda weights: {"r": spearman(scores, measured.values, weights)}, 1)
    low, high = percentiles(drawn).get("r", (None, None))
    found: dict[str, Any] = {"table": str(options.measured), "column": options.column, "count": count}
    found |= {"spearman": None if np.isnan(value) else round(value, 6), "interval": [low, high]}
    found["several_at_once"] = sum(len(row) > 1 for row in measured.mutations)
    return found


def _draw(
    options: argparse.Namespace, target: Path, odds: np.ndarray, letters: str, sites: list[int], name: str,
    result: dict[str, Any],
) -> None:  # fmt: skip
    from .heatmap import heat_map

    caption = f"{options.method} marginal"
    if result.get("measured", {}).get("spearman") is not None:
        caption += f", Spearman with {options.column} {result['measured']['spearman']:.3f}"
    heat_map(
        target, odds, [letters[site] for site in sites], [site + options.first for site in sites], name, caption
    )  # fmt: skip


def _shown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['name']}: {result['residues']:,} residues, {result['sites']:,} sites, {result['method']} marginal"
    ]
    lines += [f"  {note}" for note in result["notes"]]
    for title, key in (("best", "highest"), ("worst", "lowest")):
        some = [f"{row['mutation']} {row['score']:+.2f}" for row in result[key][:5]]
        lines.append(f"  {title}: {', '.join(some)}")
    if (found := result.get("measured")) is not None:
        low, high = found["interval"]
        value = "not defined: a column is constant" if found["spearman"] is None else f"{found['spearman']:.3f}"
        between = "" if low is None else f" ({low:.3f} to {high:.3f})"
        lines.append(f"  Spearman with {found['column']} of {found['count']:,} mutants: {value}{between}")
    return "\n".join([*lines, "  " + "  ".join(result["files"].values())])
