"""The part of proteins in `triune demo`: train on chains and draw the contacts of one that was held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.training.run.cli import run_task
from .data.module import ProteinData
from .data.store import builtin_set
from .pair.task import PairTask
from .predict.metrics import contact_targets
from .predict.plots import contact_map
from .predict.predictors import predictor_for


def main(run: Path, options: list[str]) -> dict[str, Any]:
    """Trains into the folder `run` with further options of `fit`; returns the summary of the run."""

    summary = run_task(
        "protein", "fit", ["--config", "demo", "--run", str(run), *options], PairTask, ProteinData, "triune.protein"
    )
    chains = builtin_set()
    held_out = chains.of("val")
    longest = int(held_out[chains.lengths[held_out].argmax()])
    here = slice(chains.start[longest], chains.start[longest + 1])
    tokens, profile = chains.arrays["tokens"][here], chains.arrays["profile"][here].astype(np.float32) / 255
    cbeta = torch.from_numpy(chains.arrays["cb"][here])
    contacts = predictor_for(run / "model").predict(tokens, profile).contacts
    truth, name = contact_targets(cbeta, ~cbeta[:, 0].isnan()), str(chains.names[longest])
    about = f"{len(tokens)} residues, held out of training; input: sequence and profile"
    contact_map(run / "contacts.png", contacts.numpy(), name, about, truth.numpy())
    print(f"\nContacts of {name}, which it has not seen, beside those of the structure: {run}/contacts.png\n")
    return summary
