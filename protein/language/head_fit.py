"""Fit the contact head of a language model on chains of known structure, and judge it by others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ..data.store import ChainSet
from ..predict.metrics import ContactMetrics, contact_targets
from .contact_head import ContactHead
from .model import SequenceModel, esm_tokens

FITTED_ON = 20
"""Chains with known structure for the contact head (Rao et al. 2020)."""
LONGEST = 256, 1024
"""Residues of a chain that the contact head is fitted on, and judged by."""


def chains_for_head(chains: ChainSet, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the chains to fit the contact head on, drawn among those in training, and of those to judge it by.

    Raises:
        UserError: the set has none that are short enough.
    """
    train, val = (
        numbers[chains.lengths[numbers] <= longest]
        for numbers, longest in zip((chains.of("train"), chains.of("val")), LONGEST)
    )
    if not len(train) or not len(val):
        raise UserError(
            f"the contact head needs training chains of at most {LONGEST[0]} residues and validation chains of at "
            f"most {LONGEST[1]}, and the set has {len(train)} and {len(val)}; leave --model.structures out."
        )
    drawn = np.random.default_rng(seed).choice(train, min(FITTED_ON, len(train)), replace=False)
    return np.sort(drawn), val


def _known(chains: ChainSet, number: int) -> tuple[Tensor, Tensor]:
    """Tokens `[residues]` and contacts int8 `[residues, residues]` of a chain."""
    here = slice(chains.start[number], chains.start[number + 1])
    cbeta = torch.from_numpy(np.array(chains.arrays["cb"][here]))
    tokens = torch.from_numpy(chains.arrays["tokens"][here].astype(np.int64))
    return tokens, contact_targets(cbeta, ~cbeta[:, 0].isnan())


def fit_head(model: SequenceModel, chains: ChainSet, numbers: np.ndarray) -> ContactHead:
    """The regression of contacts on the attention maps of some chains."""
    head = ContactHead.fit(model, [_known(chains, number) for number in numbers.tolist()])
    return head.to(model.embedding.weight.device)


def judge_head(model: SequenceModel, head: ContactHead, chains: ChainSet, numbers: np.ndarray) -> dict[str, float]:
    """The `ContactMetrics` of a head over some chains; of chance, when no attention head tells it anything."""
    metrics = ContactMetrics()
    for number in numbers.tolist():
        tokens, contacts = _known(chains, number)
        if head.weight.any():
            logits = head(model, esm_tokens(tokens[None].to(head.weight.device))).cpu()
        else:
            logits = torch.zeros(1, *contacts.shape)
        metrics.update(logits, contacts[None], names=[str(chains.names[number])])
    return metrics.compute()
