"""`triune protein contacts`: contact maps of sequences and alignments with a trained model."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import UserError
from ...core.files import none_left_empty, read_arrays, read_json, write_json
from ...core.lock import claimed
from ...core.options import Parser, whole
from ...core.training.run.folder import model_folder
from ...core.work import progress
from ..read.alphabet import GAP
from ..read.inputs import KINDS
from .queries import Queries, Query, named

if TYPE_CHECKING:
    from ..read.structure import Chain
    from .outputs import Result
    from .predictors import Prediction, Predictor
    from .truth import Truth

KINDS_OF_FILES = ("png", "rr", "npz", "json")


def parser() -> argparse.ArgumentParser:
    """Returns the options of `triune protein contacts`."""
    p = Parser(
        prog="triune protein contacts",
        description="Predict which residues are in contact, with a model of `triune protein fit` or `pretrain`. For "
        "each sequence (of FASTA; chains of a complex as A:B) and each alignment (A3M, A2M, Stockholm, Clustal, .aln, "
        "aligned FASTA; the query first) writes NAME.png, the contact map, NAME.rr in CASP's format, NAME.npz and "
        "NAME.json. Inputs that cannot be done are named at the end, the others are done, and the exit code is then 2.",
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
    p.add_argument("--top", type=int, default=10, help="long-range pairs to show (default 10)")
    p.add_argument(
        "--as", dest="kind", choices=KINDS, default="auto",
        help="read every file as an alignment, or as sequences one by one; auto (default) decides by gaps, lengths and "
        "likeness, and says so where both are possible",
    )  # fmt: skip
    p.add_argument(
        "--windows", type=whole(64), metavar="N", help="predict longer chains in windows of N residues that overlap"
    )
    p.add_argument("--force", action="store_true", help="predict also what looks like DNA, RNA or unknown residues")
    done = p.add_mutually_exclusive_group()
    done.add_argument(
        "--resume", action="store_true", help="keep what is in DIR from the same input and model, do the rest"
    )
    done.add_argument("--overwrite", action="store_true", help="replace files of the same names in DIR")
    p.add_argument(
        "--distances", action="store_true",
        help="also write the distogram into NAME.npz: `distogram` (residues x residues x classes) and `bin_edges` in Å",
    )  # fmt: skip
    p.add_argument("--no-png", action="store_true", help="draw nothing: faster for thousands of sequences")
    p.add_argument("--json", action="store_true", help="print one JSON list with an entry per input and nothing else")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


def open_predictor(run: str | None, pretrained: str | None, device: str | None) -> Predictor:
    """Returns the model of a run, or a checkpoint, on a device.

    Raises:
        UserError: there is none, or `device` cannot be used.
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


class Work:
    """Predicts one query after the other, and writes what was found.

    Args:
        options: of the command line.
        chains: of the structures to score with.
        problems: gets sentences about what could not be done.
    """

    def __init__(self, options: argparse.Namespace, chains: list[Chain], problems: list[str]) -> None:
        self.options, self.chains, self.problems = options, chains, problems
        self.results: list[Result] = []
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor:
        """The model, opened when it is first used."""
        if self._predictor is None:
            from .predictors import Windowed

            options = self.options
            self._predictor = open_predictor(options.run, options.pretrained, options.device)
            if options.distances:
                if not hasattr(self._predictor, "with_distogram"):
                    raise UserError(
                        "--distances asks for what this model does not predict: a language model tells contacts alone; "
                        "take a run of `triune protein fit`."
                    )
                self._predictor.with_distogram = True  # type: ignore[attr-defined]
            if options.windows:
                self._predictor = Windowed(self._predictor, options.windows)
        return self._predictor

    def do(self, query: Query) -> None:
        """Predicts, scores and writes one query; what is wrong with it becomes a problem."""
        from .truth import matching

        predictor = self.predictor
        _make(self.options.out)
        truth = matching(query, self.chains, self.problems)
        try:
            key = self._key(query, truth)
            with claimed(self.options.out / f"{query.name}.npz"):
                if (done := self._done(query, key)) is None:
                    done = self._one(query, truth, predictor, key)
            self.results.append(done)
        except UserError as error:
            self.problems.append(named(query, str(error)))

    def _key(self, query: Query, truth: Truth | None) -> str:
        """What a result depends on, as a hash: input, model and structure."""
        options, alignment = self.options, query.alignment
        parts = [alignment.tokens.tobytes(), str(alignment.chains).encode(), (query.letters or "").encode()]
        parts += [f"{options.run} {options.pretrained} {options.windows} {self.predictor.about}".encode()]
        parts += [b"distances"] if options.distances else []
        parts += [truth.chain.name.encode(), truth.chain.cbeta.tobytes()] if truth else []
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _done(self, query: Query, key: str) -> Result | None:
        """The result of an earlier run of the same input and model, where `--resume` asks for it.

        Raises:
            UserError: there are files of this name, and neither `--resume` nor `--overwrite` says what to do.
        """
        from .outputs import Result

        files = [self.options.out / f"{query.name}.{kind}" for kind in KINDS_OF_FILES]
        there = [file for file in files if file.exists()]
        if not there or self.options.overwrite:
            return None
        if not self.options.resume:
            raise UserError(
                f"'{there[0]}' is there already; --resume keeps it if it is of the same input and model, --overwrite "
                "replaces it, or give another --out."
            )
        if not files[-1].exists() and _sequence_in(files[-2]) in (None, query.alignment.query):
            return None  # the last file was not written before the other run ended
        known = read_json(files[-1]) if files[-1].exists() else {}
        if known.get("key") != key:
            raise UserError(
                f"'{there[0]}' is of another input, model or structure, so that it cannot be resumed; --overwrite "
                "replaces it, or give another --out."
            )
        scores = {name: math.nan if value is None else value for name, value in (known.pop("scores") or {}).items()}
        return Result(**{name: value for name, value in known.items() if name != "key"}, scores=scores)

    def _one(self, query: Query, truth: Truth | None, predictor: Predictor, key: str) -> Result:
        from ..read.profile import chain_depths
        from .outputs import Result, confidence, confident_pairs
        from .truth import scores

        alignment, options = query.alignment, self.options
        sequence, rows, chains = alignment.query, alignment.tokens, alignment.chains
        msa = rows if len(rows) > 1 else None
        prediction = predictor.predict(rows[0], None, msa, query.letters, chains)
        depths = chain_depths(rows, chains) if msa is not None else []
        chain = truth.chain if truth else None
        result = Result(
            name=query.name,
            title=query.title,
            source=str(query.source),
            sequence=sequence,
            rows=len(rows),
            neff=min(depths) if depths else None,
            pairs=confident_pairs(prediction, sequence, chain, options.top, chains),
            confidence=confidence(prediction.contacts, chains),
            chains=list(chains),
            between=confident_pairs(prediction, sequence, chain, options.top, chains, between=True) if chains else [],
            notes=[*query.notes, *prediction.notes, *depth_notes(rows, depths)],
        )
        if truth is not None:
            result.chain, result.scores = truth.chain.name, scores(prediction.contacts, truth, chains)
            result.notes += [note if chains else f"{truth.chain.name}: {note}" for note in truth.chain.notes]
        _write(result, prediction, truth, predictor.about, options, key)
        return result


def _sequence_in(file: Path) -> str | None:
    """The sequence in the arrays of an earlier result, None where there are none."""
    return str(read_arrays(file)["sequence"]) if file.exists() else None


def depth_notes(rows: np.ndarray, depths: list[float]) -> list[str]:
    """Sentences about an alignment `[rows, residues]` that says no more than its query; `depths` are Neff by chain."""
    if len(rows) < 2:
        return []
    other = (rows != rows[0]) & (rows != GAP)
    if not other.any():
        return [f"all {len(rows):,} rows are the query or parts of it: the alignment adds nothing to it"]
    return (
        [f"the alignment is shallow (Neff {min(depths):.1f}): it adds little to the sequence"]
        if min(depths) < 2
        else []
    )


def main(args: list[str]) -> int:
    """Runs `triune protein contacts` and returns its exit code: 2 if an input could not be done.

    Raises:
        UserError: a mistake in the options.
    """
    from .outputs import mean_scores, show
    from .truth import read_structures

    options = parser().parse_args(args)
    if options.top < 1:
        raise UserError(f"--top is {options.top}, but must be at least 1.")
    if options.chain and not options.structure:
        raise UserError("--chain names a chain of --structure FILE, which was not given.")
    queries = Queries(options.input, options.kind, options.force)
    problems = queries.problems
    work = Work(options, read_structures(options.structure, options.chain, problems), problems)
    sizes = queries.sizes()
    count = 0
    with none_left_empty(options.out), progress("predicting contacts", sum(sizes), "kB", 1e3) as advance:
        for file, size in zip(queries.files, sizes):
            found = list(queries.of(file))
            for query in found:
                work.do(query)
                advance(size // len(found))
            count += len(found)
    if options.json:
        print(json.dumps([result.to_dict() for result in work.results], ensure_ascii=False, indent=2))
    else:
        show(work.results, mean_scores(work.results) if len(work.results) > 1 else {})
    report(problems, count > 1)
    return 2 if problems else 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{folder}' cannot be made: {error.strerror}; name another folder.") from error


def report(problems: Iterable[str], brief: bool) -> None:
    """Prints what went wrong: one sentence each and, unless `brief`, what is shown below it."""
    for problem in problems:
        sentence, *shown = problem.split("\n\n", 1)
        print("\n".join(["error: " + " ".join(sentence.split()), *([] if brief else shown)]), file=sys.stderr)


def _write(
    result: Result, prediction: Prediction, truth: Truth | None, method: str, options: argparse.Namespace, key: str
) -> None:
    """Writes the files of a result, NAME.json last: where it is, the others are."""
    from .distogram import bin_edges
    from .outputs import write_arrays, write_rr
    from .plots import contact_map

    kinds = [kind for kind in KINDS_OF_FILES if kind != "png" or not options.no_png]
    files = {kind: options.out / f"{result.name}.{kind}" for kind in kinds}
    contacts, distances = prediction.contacts, prediction.distances
    write_rr(files["rr"], result.name, result.sequence, contacts, method, result.chains)
    write_arrays(
        files["npz"], name=result.name, sequence=result.sequence, contacts=contacts.numpy(),
        distances=None if distances is None else distances.numpy(),
        chains=np.array(result.chains) if result.chains else None,
        distogram=None if prediction.distogram is None else prediction.distogram.numpy().astype(np.float16),
        bin_edges=None if prediction.distogram is None else bin_edges(prediction.distogram.shape[-1]).numpy(),
    )  # fmt: skip
    if not options.no_png:
        caption = f"{len(result.sequence):,} residues, {result.depth()}"
        if result.scores:
            value, chance, ceiling = (result.scores[f"long_p_at_l{kind}"] for kind in ("", "_chance", "_ceiling"))
            caption += f"\nlong-range P@L {value:.3f} (chance {chance:.3f}, ceiling {ceiling:.3f})"
        title = result.name if result.chain in (None, result.name) else f"{result.name} (structure {result.chain})"
        known = None if truth is None else truth.contacts.numpy()
        contact_map(files["png"], contacts.numpy(), title, caption, known, result.chains)
    result.files = {kind: str(file) for kind, file in files.items()}
    write_json(files["json"], result.to_dict() | {"key": key})
