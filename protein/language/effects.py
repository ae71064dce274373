"""What a masked language model says of substitutions (Meier et al. 2021, "Language models enable zero-shot prediction
of the effects of mutations on protein function").

The score of a substitution is log p(mutant) - log p(wild type) at its position, in nats. `masked` reads p where the
position is masked ("masked marginal"), a forward pass for each site; `wildtype` reads all positions in one pass over
the sequence as it is ("wild-type marginal"). Of several substitutions at once the scores of the single ones are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..read.alphabet import AMINO_ACIDS
from .model import CLS, EOS, MASK, VOCABULARY

Method = Literal["masked", "wildtype"]
METHODS: tuple[Method, ...] = ("masked", "wildtype")
MOST_TOKENS = 8192
"""Tokens of one forward pass."""

COLUMNS = torch.tensor([VOCABULARY.index(letter) for letter in AMINO_ACIDS])
"""ESM-2's number of each amino acid, in the order of `AMINO_ACIDS`."""


class Window(NamedTuple):
    """A part of a sequence that is read by itself, and the sites that are scored in it.

    Args:
        start, stop: residues, from 0.
        sites: positions in the whole sequence.
    """

    start: int
    stop: int
    sites: list[int]


def windows(residues: int, sites: Sequence[int], size: int, method: Method) -> list[Window]:
    """The parts to read: the whole sequence where it is no longer than `size`.

    Of a longer one each site is read, masked, in the middle of a window of its own; the wild type is read in windows
    that overlap by half, and each site is scored in the one whose nearer cut end is farthest away.
    """
    if residues <= size:
        return [Window(0, residues, list(sites))]
    last = residues - size
    if method == "masked":
        found: dict[int, list[int]] = {}
        for site in sites:
            found.setdefault(min(max(site - size // 2, 0), last), []).append(site)
        return [Window(start, start + size, held) for start, held in found.items()]
    starts = [*range(0, last, max(1, size // 2)), last]

    def room(start: int, site: int) -> int:
        before = site - start if start else residues
        behind = start + size - 1 - site if start < last else residues
        return min(before, behind)

    chosen = {site: max((s for s in starts if s <= site < s + size), key=lambda s: room(s, site)) for site in sites}
    return [
        Window(start, start + size, held)
        for start in starts
        if (held := [site for site in sites if chosen[site] == start])
    ]


@torch.inference_mode()
def substitutions(
    model: Any, ids: Tensor, sites: Sequence[int], method: Method = "masked", size: int | None = None,
    advance: Callable[[float], None] = lambda done: None,
) -> Tensor:  # fmt: skip
    """Log-odds of every amino acid against the wild type, float32 `[sites, 20]`, in the order of `AMINO_ACIDS`.

    Args:
        model: ESM-2's token ids `[batch, tokens]` -> logits `[batch, tokens, vocabulary]`, in evaluation mode.
        ids: of the residues, int64 `[residues]`, without <cls> and <eos>.
        sites: positions from 0.
        method: masked or wildtype.
        size: residues that are read at once; None reads the whole sequence.
        advance: called with the number of sites that were scored.
    """
    device = next(model.parameters()).device
    parts = windows(len(ids), sites, size or len(ids), method)
    found: dict[int, Tensor] = {}
    for part in parts:
        tokens = torch.cat([torch.tensor([CLS]), ids[part.start : part.stop], torch.tensor([EOS])])
        rows = max(1, MOST_TOKENS // len(tokens)) if method == "masked" else len(part.sites)
        for first in range(0, len(part.sites), rows):
            some = part.sites[first : first + rows]
            places = torch.tensor(some) - part.start + 1
            if method == "masked":
                batch = tokens.repeat(len(some), 1)
                batch[torch.arange(len(some)), places] = MASK
                logits = model(batch.to(device))[torch.arange(len(some)), places.to(device)]
            else:
                logits = model(tokens[None].to(device))[0, places.to(device)]
            logits = logits.float().cpu()
            # The sum that makes probabilities of the logits is the same for both, and leaves their difference.
            odds = logits[:, COLUMNS] - logits.gather(1, tokens[places][:, None])
            found.update(zip(some, odds))
            advance(len(some))
    return torch.stack([found[site] for site in sites]) if sites else torch.zeros(0, len(AMINO_ACIDS))


def reference_substitutions(model: Any, ids: Tensor, sites: Sequence[int], method: Method = "masked") -> Tensor:
    """`substitutions` of a whole sequence as the definition reads: one site after the other, by probabilities."""
    tokens = torch.cat([torch.tensor([CLS]), ids, torch.tensor([EOS])])[None]
    rows = []
    for site in sites:
        seen = tokens.clone()
        if method == "masked":
            seen[0, site + 1] = MASK
        with torch.no_grad():
            p = model(seen)[0, site + 1].double().log_softmax(-1)
        rows.append(p[COLUMNS] - p[ids[site]])
    return torch.stack(rows).float()
