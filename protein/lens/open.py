"""Opens a protein model of any kind, with chains, for `triune lens`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.checkpoints.native import load_config
from ...core.errors import UserError
from ...core.subject import Subject
from ...core.training.run.folder import model_folder
from ..language.checkpoints.pretrained import load
from ..language.model import PAD, SequenceModel, esm_tokens, sequence_tokens
from ..read.alphabet import encode
from .chains import Known, builtin, chains_of
from .language import ProteinSubject


def open_subject(name: str, inputs: Sequence[str], options: Any) -> Subject:
    """A protein language model, or a pair model, with chains; without any, chains that come with the package.

    Raises:
        UserError: there is no such model, a file holds no chain, or a structure does not match.
    """
    if options.prompts:
        raise UserError("--prompts are for language models of text, but this is a model of proteins; leave them out.")
    path = Path(name).expanduser()
    folder = model_folder(path, "protein") if path.is_dir() and not (path / "config.json").is_file() else None
    if folder is None and (path / "config.json").is_file():
        folder = path
    chains, about = chains_of(inputs, options)
    if folder is not None and load_config(folder, "PairModel", "SequenceModel")["architecture"] == "PairModel":
        from .pair import pair_subject

        return pair_subject(folder, name, chains, about, options)
    found = load(str(folder or name))
    assert isinstance(found.model, SequenceModel)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        model = found.model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None
    core = model.config.transformer
    rows = [_ids(chain, found.family is not None)[0] for chain in chains]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(device)
    labels = ["<cls>", *(f"{letter}{at}" for at, letter in enumerate(chains[0].letters, 1)), "<eos>"]
    head = None if found.companion is None else found.companion.to(device)
    about = [f"{name}: {core.depth} layers of {core.heads} heads, width {core.dim}", *about]
    if any(chain.rows is not None for chain in chains):
        about.append("of an alignment a language model reads the first row alone")
    if head is None:
        about.append("the model has no fitted contact head")
    return ProteinSubject(
        model, about, labels, options.measure or "", ids=ids, chains=chains, head=head, seed=options.seed
    )  # fmt: skip


def in_training(model: SequenceModel) -> ProteinSubject:
    """The built-in chains with their structures, for a language model that is being trained."""
    chains, _ = builtin()
    rows = [_ids(chain, False)[0] for chain in chains]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(model.embedding.weight.device)
    return ProteinSubject(model, [], [""] * ids.shape[1], ids=ids, chains=chains)


def _ids(chain: Known, as_written: bool) -> Tensor:
    if as_written:
        return sequence_tokens(chain.letters, chain.name)
    return esm_tokens(torch.from_numpy(encode(chain.letters, chain.name).astype(np.int64))[None])
