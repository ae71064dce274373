"""`triune protein contacts`: contact maps of sequences and alignments with a trained model."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import UserError
from ...core.files import OVERWRITE, check_new
from ...core.training.run.folder import model_folder
from ...core.work import progress
from ..read.alignment import (
    SUFFIXES,
    Alignment,
    Format,
    Record,
    format_of,
    read_alignment,
    read_content,
    read_sequences,
)
from ..read.alphabet import encode

if TYPE_CHECKING:
    from torch import Tensor

    from ..read.structure import Chain
    from .metrics import ContactMetrics
    from .outputs import Result
    from .predictors import Prediction, Predictor

SHORTEST = 7
"""Residues a chain must have for one pair that counts."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune protein contacts`."""
    p = argparse.ArgumentParser(
        prog="triune protein contacts",
        description="Predict which residues are in contact, with a model of `triune protein fit` or `pretrain`. For "
        "each sequence (of FASTA) and each alignment (A3M, A2M, Stockholm, Clustal, .aln, aligned FASTA; the query "
        "first) writes NAME.png, the contact map, NAME.rr in CASP's format, and NAME.npz. Inputs that cannot be done "
        "are named at the end, the others are done, and the exit code is then 2.",
    )
    p.add_argument("input", metavar="INPUT", nargs="+", type=Path, help="files, or folders (searched to the bottom)")
    model = p.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", help="a run folder, or a model folder (config.json, model.safetensors)")
    model.add_argument(
        "--pretrained", metavar="NAME_OR_PATH",
        help="ESM-2 or ESM-1b: a .pt of fair-esm, or a folder or name of Hugging Face (facebook/esm2_t12_35M_UR50D)",
    )  # fmt: skip
    p.add_argument(
        "--structure", metavar="FILE", type=Path, action="append", default=[],
        help="PDB or mmCIF file to draw beside the prediction and to score with, or a folder of them; may be repeated",
    )  # fmt: skip
    p.add_argument("--chain", help="its chain; left out, the one that matches the query")
    p.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("contacts"), help="where to write (default: contacts)"
    )
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--top", type=int, default=10, help="long-range pairs to show (default 10)")
    p.add_argument("--no-png", action="store_true", help="draw nothing: faster for thousands of sequences")
    p.add_argument("--json", action="store_true", help="print one JSON list with an entry per input and nothing else")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


# -- inputs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """One chain to predict: a sequence, or the file of its alignment, read when its turn comes.

    Args:
        name: unique in the batch, fit for a file name.
        source: the file.
        record: the sequence; None for an alignment.
        format: of the alignment.
    """

    name: str
    source: Path
    record: Record | None = None
    format: Format | None = None

    def read(self) -> tuple[Alignment, list[str]]:
        """The alignment (of one row for a sequence), and notes about it. Raises UserError for what is wrong with it."""
        if self.record is not None:
            tokens = encode(self.record.letters, self.record.name)[None]
            alignment, notes = Alignment([self.record.name], tokens, np.zeros_like(tokens)), []
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                alignment = read_alignment(self.source, self.format)
            notes = [str(warning.message) for warning in caught]
        if len(alignment.query) < SHORTEST:
            raise UserError(
                f"'{self.source}': {self.name} has {len(alignment.query)} residues, but contacts are predicted between "
                f"residues at least {SHORTEST - 1} apart"
            )
        if alignment.chains:
            notes.append(
                f"the query joins chains of {', '.join(map(str, alignment.chains))} residues, read here as one"
            )
        return alignment, notes


def collect(inputs: Sequence[Path]) -> tuple[list[Query], list[str]]:
    """The chains in files and folders, and sentences about what is none."""
    queries: list[Query] = []
    problems: list[str] = []
    taken: set[str] = set()
    for path in inputs:
        files = sorted(file for file in path.rglob("*") if _is_input(file)) if path.is_dir() else [path]
        if not files:
            problems.append(f"'{path}' holds no sequence or alignment: no file ends in {', '.join(SUFFIXES)}")
        for file in files:
            try:
                queries += _queries(file, taken, problems)
            except UserError as error:
                problems.append(str(error))
    return queries, problems


def _is_input(file: Path) -> bool:
    return Path(file.name.removesuffix(".gz")).suffix.lower() in SUFFIXES and file.is_file()


def _queries(file: Path, taken: set[str], problems: list[str]) -> list[Query]:
    content = read_content(file)
    format = format_of(file, content)
    if format == "fasta":
        format = _aligned_as(content)
    if format is not None:
        stem = Path(file.name.removesuffix(".gz")).stem
        return [Query(_unique(stem, taken), file, format=format)]
    records = read_sequences(file, on_error=lambda error: problems.append(str(error)))
    return [Query(_unique(record.name, taken), file, record) for record in records]


def _aligned_as(content: bytes) -> Format | None:
    """Whether a file in FASTA is an alignment, by its gaps: `fasta`, `a3m` (with lower-case insertions) or None."""
    blocks = re.split(rb"(?m)^>", content)[1:]
    rows = [b"".join(block.partition(b"\n")[2].split()) for block in blocks]
    gapped = sum(b"-" in row for row in rows)
    if gapped and len({len(row) for row in rows}) == 1:
        return "fasta"
    if gapped > len(rows) / 2:
        return "a3m" if any(re.search(rb"[a-z]", row) for row in rows) else "fasta"
    return None


def _unique(name: str, taken: set[str]) -> str:
    """A file name like `name` that no other input has, whatever the system thinks of upper and lower case."""
    plain = re.sub(r"[^\w.+=-]+", "_", name)[:100].strip("._") or "sequence"
    found, number = plain, 2
    while found.lower() in taken:
        found, number = f"{plain}-{number}", number + 1
    taken.add(found.lower())
    return found


def read_structures(places: Sequence[Path], chain: str | None, problems: list[str]) -> list[Chain]:
    """The chains of structure files and of folders of them; what is wrong with a file of a folder is no reason to stop.

    Raises:
        UserError: a file that was named cannot be read or lacks the chain.
    """
    from ..read.structure import read_chains, structure_files

    found: list[Chain] = []
    for place in places:
        if not place.is_dir():
            found += read_chains(place, chain)
            continue
        for file in structure_files(place):
            try:
                found += read_chains(file, chain)
            except UserError as error:
                problems.append(str(error))
    return found


# -- work -------------------------------------------------------------------------------------------------------------


def open_predictor(run: str | None, pretrained: str | None, device: str | None) -> Predictor:
    """The model of a run, or a checkpoint, on a device. Raises UserError when there is none, or `device` cannot be
    used.
    """
    import torch

    from .predictors import LanguagePredictor, predictor_for

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if pretrained is not None:
            return LanguagePredictor.pretrained(pretrained, place)
        return predictor_for(model_folder(str(run), "protein"), place)
    except (RuntimeError, AssertionError) as error:
        if device is None:
            raise
        raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None


def main(args: list[str]) -> int:
    """Run `triune protein contacts` and return its exit code: 2 if an input could not be done.

    Raises:
        UserError: a mistake in the options.
    """
    from .metrics import ContactMetrics
    from .outputs import show

    options = parser().parse_args(args)
    if options.top < 1:
        raise UserError(f"--top is {options.top}, but must be at least 1.")
    if options.chain and not options.structure:
        raise UserError("--chain names a chain of --structure FILE, which was not given.")
    queries, problems = collect(options.input)
    chains = read_structures(options.structure, options.chain, problems)
    metrics, results = ContactMetrics(), []
    if queries:
        check_new([file for query in queries for file in _files(query.name, options).values()], options.overwrite)
        predictor = open_predictor(options.run, options.pretrained, options.device)
        _make(options.out)
        with progress("predicting contacts", len(queries), "sequences") as advance:
            for query in queries:
                try:
                    results.append(_one(query, predictor, chains, options, metrics, problems))
                except UserError as error:
                    problems.append(_named(query, str(error)))
                advance(1)
    if options.json:
        print(json.dumps([result.to_dict() for result in results], ensure_ascii=False, indent=2))
    else:
        show(results, metrics.compute() if len(results) > 1 else {})
    _report(problems, len(queries) > 1)
    return 2 if problems else 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{folder}' cannot be made: {error.strerror}; name another folder.") from error


def _named(query: Query, problem: str) -> str:
    return problem if str(query.source) in problem else f"'{query.source}': {query.name}: {problem}"


def _report(problems: Iterable[str], brief: bool) -> None:
    """Print what went wrong: one sentence each and, unless `brief`, what is shown below it."""
    for problem in problems:
        sentence, *shown = problem.split("\n\n", 1)
        print("\n".join(["error: " + " ".join(sentence.split()), *([] if brief else shown)]), file=sys.stderr)


def _one(
    query: Query, predictor: Predictor, chains: list[Chain], options: argparse.Namespace, metrics: ContactMetrics,
    problems: list[str],
) -> Result:  # fmt: skip
    """Predict, score and write one chain. A structure that does not match is a problem, but no reason not to
    predict.
    """
    from ..read.profile import effective_sequences
    from .outputs import Result, confidence, confident_pairs

    alignment, notes = query.read()
    sequence, rows = alignment.query, alignment.tokens
    letters = query.record.letters if query.record else None
    prediction = predictor.predict(rows[0], None, rows if len(rows) > 1 else None, letters)
    neff = effective_sequences(rows) if len(rows) > 1 else None
    chain = _matching(query, chains, sequence, problems)
    result = Result(
        name=query.name,
        source=str(query.source),
        sequence=sequence,
        rows=len(rows),
        neff=neff,
        pairs=confident_pairs(prediction, sequence, chain, options.top),
        confidence=confidence(prediction.contacts),
        notes=[*notes, *prediction.notes],
    )
    truth = None
    if chain is not None:
        truth = _score(result, prediction.contacts, chain, metrics)
    _write(result, prediction, truth, predictor.about, options)
    return result


def _matching(query: Query, chains: list[Chain], sequence: str, problems: list[str]) -> Chain | None:
    from ..read.structure import select_chain

    if not chains:
        return None
    try:
        return select_chain(chains, sequence)
    except UserError as error:
        problems.append(_named(query, f"predicted, but not scored: {error}"))
        return None


def _score(result: Result, contacts: Tensor, chain: Chain, metrics: ContactMetrics) -> Tensor:
    """Put the scores into the result and the metrics; return the known contacts."""
    import torch

    from .metrics import contact_targets, precisions

    truth = contact_targets(torch.from_numpy(chain.cbeta), torch.from_numpy(chain.resolved))
    length = torch.tensor([int(chain.resolved.sum())])
    found = precisions(contacts[None], truth[None], length)
    metrics.update(contacts[None], truth[None], length)
    result.chain, result.scores = chain.name, {name: float(value) for name, value in found.items()}
    result.notes += [f"{chain.name}: {note}" for note in chain.notes]
    return truth


def _files(name: str, options: argparse.Namespace) -> dict[str, Path]:
    kinds = ("rr", "npz") if options.no_png else ("png", "rr", "npz")
    return {kind: options.out / f"{name}.{kind}" for kind in kinds}


def _write(
    result: Result, prediction: Prediction, truth: Tensor | None, method: str, options: argparse.Namespace
) -> None:
    from .outputs import write_arrays, write_rr
    from .plots import contact_map

    files = _files(result.name, options)
    write_rr(files["rr"], result.name, result.sequence, prediction.contacts, method)
    write_arrays(files["npz"], result.name, result.sequence, prediction)
    if "png" in files:
        caption = f"{len(result.sequence):,} residues, {result.depth()}"
        if result.scores:
            value, chance, ceiling = (result.scores[f"long_p_at_l{kind}"] for kind in ("", "_chance", "_ceiling"))
            caption += f"\nlong-range P@L {value:.3f} (chance {chance:.3f}, ceiling {ceiling:.3f})"
        title = result.name if result.chain in (None, result.name) else f"{result.name} (structure {result.chain})"
        known = None if truth is None else truth.numpy()
        contact_map(files["png"], prediction.contacts.numpy(), title, caption, known)
    result.files = {kind: str(file) for kind, file in files.items()}
