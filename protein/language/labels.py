"""Labels of proteins and of their residues: a sequence model with a head."""

from __future__ import annotations

from typing import Any

from ...core.checkpoints.family import Pretrained
from ...core.checkpoints.source import open_source
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.labelled.headed import with_head
from ...core.labelled.rows import Rows
from ...core.labelled.task import LabelTask
from ...core.labelled.tokens import TokenTable
from ...core.labels.table import Table
from ...core.training.start import Start
from ..read.inputs import Content, read_sequences
from .labelled import ProteinPredictor, ProteinReader, open_with_head, refuse_complex
from .model import SequenceConfig, SequenceModel

SMALL = TransformerConfig(dim=128, depth=2, heads=4, position="rotary", norm_eps=1e-5, ffn="gelu", context=1026)
"""A model for a table of a thousand proteins."""
WINDOW = 15
"""Columns of a profile that each residue sees, unless another number is asked for."""


class ProteinTable(TokenTable):
    """Proteins with labels from a table. The input is a sequence, or the path of a file with a sequence or alignment.

    Args:
        fasta: the sequences by name; `input` is then the column of the names.
        profile: give the model the profile of each alignment beside the sequence.
        **others: see `FromTable` and `TokenOptions`.
    """

    PATHS = ("table", "fasta")

    def __init__(self, fasta: str | None = None, profile: bool = False, **others: Any) -> None:
        super().__init__(**others)
        if fasta is not None and profile:
            raise UserError("data.profile is true, but data.fasta holds sequences alone; name files of alignments.")
        self.fasta, self.profile = fasta, profile

    def reader(self, rows: Rows) -> ProteinReader:
        return ProteinReader(self.context, self.profile)

    def resolve(self, table: Table, cells: list[str], notes: list[str]) -> list[str]:
        """The sequence of each name, where they stand in a file of their own; empty for a name that it lacks."""
        if self.fasta is None:
            return cells
        records = read_sequences(self.fasta)
        refuse_complex(Content(sequences=records), self.fasta)
        known = {record.name: record.letters for record in records}
        lacking = [row for row, name in enumerate(cells) if name.strip() not in known]
        if len(lacking) == len(cells):
            raise UserError(
                f"None of the {len(cells):,} names in '{self.table_options['input']}' of '{table.path}' is in "
                f"'{self.fasta}', whose records are called {', '.join(list(known)[:3])}; name their column."
            )
        if lacking and self.on_error == "stop":
            more = f", and so are {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
            raise UserError(
                f"'{cells[lacking[0]]}' in {table.where(lacking[0])} is no record of '{self.fasta}'{more}; mend the "
                "names, or leave such rows out with --data.on_error skip."
            )
        if unused := len(known) - len({name.strip() for name in cells} & set(known)):
            notes.append(f"{unused:,} records of '{self.fasta}' are in no row")
        return [known.get(name.strip(), "") for name in cells]


class ProteinLabels(LabelTask):
    """A protein model for the labels of a table.

    Args:
        transformer: the core of a new model.
        window: columns of the profile (`data.profile`) that each residue sees in the input layer, itself in the middle.
        **options: see `LabelTask`.
    """

    MODEL = ProteinPredictor
    SMALL = SMALL
    COMMAND = "protein"

    def __init__(self, transformer: TransformerConfig = SMALL, window: int | None = None, **options: Any) -> None:
        super().__init__(transformer=transformer, **options)
        if window is not None and (window < 1 or window > 101 or window % 2 == 0):
            raise UserError(f"model.window is {window}, but must be an odd number from 1 to 101, such as {WINDOW}.")
        self.window = window

    def new_trunk(self, data: Any) -> SequenceModel:
        return SequenceModel(SequenceConfig(transformer=self.transformer_config, token_dropout=False))

    def around(self, data: Any) -> int:
        return 2  # the tokens that begin and end a protein

    def reads(self, data: Any) -> dict[str, Any]:
        if not data.profile:
            if self.window is not None:
                raise UserError("model.window is given, but only --data.profile true has a window; leave one out.")
            return {"context": data.context, "profile": False}
        return {"context": data.context, "profile": True, "window": self.window or WINDOW}

    def is_new(self, name: str) -> bool:
        return super().is_new(name) or name.startswith("profile.")

    def adopt(self, start: Start, data: Any) -> str:
        return self.limit(start, data) if isinstance(data, ProteinTable) else ""

    def load_pretrained(self, source: str) -> Pretrained:
        from .checkpoints.pretrained import load

        found = self.own_pretrained(source, open_source) or with_head(open_with_head(source)) or load(source)
        found.companion = None
        return found
