"""Precision of predicted contacts, with chance and the ceiling of a perfect predictor beside it.

The protocol is that of the ESM notebooks (Rao et al. 2020, fair-esm `examples/contact_prediction.ipynb`), so that the
numbers can be laid beside published ones:

- A contact is a pair of residues whose Cβ are less than 8 Å apart. Pairs i < j count once; those in which a residue is
  unresolved are ignored, neither contact nor non-contact.
- Ranges of j - i: short 6-11, medium 12-23, long 24 and more.
- L is the number of resolved residues. P@L, P@L/2 and P@L/5 are the share of contacts among the ⌊L⌋, ⌊L/2⌋, ⌊L/5⌋
  (at least one) pairs of the range that score highest. Where the range has fewer pairs, the missing ones count as
  wrong.
- AUC is the mean of the precisions at L/10, 2L/10, ... L: the area under that curve, not under a ROC.

Pairs with equal scores are credited with the share of contacts among them, the expectation over orders of the ties, so
that a constant prediction scores exactly chance. The perfect predictor ranks all contacts first: where a chain has
fewer contacts than pairs asked for, even it stays below 1. A chain that has no pair in a range has no score there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..read.complexes import BETWEEN

CUTOFF = 8.0
"""Ångström between Cβ atoms below which two residues are in contact."""

RANGES: dict[str, tuple[int, int]] = {"short": (6, 11), "medium": (12, 23), "long": (24, 1 << 30)}
"""First and last j - i of each range."""

COMPLEX_RANGES = RANGES | {"between": (BETWEEN, BETWEEN)}
"""Those within the chains of a complex, and the pairs of residues of two chains."""

TENTHS = {"p_at_l": 10, "p_at_l2": 5, "p_at_l5": 2}
"""Pairs counted by each precision, in tenths of L."""

SCORES = (*TENTHS, "auc")
KINDS = ("", "_chance", "_ceiling")
NEFF_BINS = (0.0, 10.0, 50.0, 100.0, 300.0, 1000.0, math.inf)
"""Borders of the bins of alignment depth; a bin holds its lower border."""


def contact_targets(cbeta: Tensor, resolved: Tensor, cutoff: float = CUTOFF) -> Tensor:
    """Returns int8 [..., L, L]: 1 contact, 0 none, -1 to be ignored.

    Args:
        cbeta: Cβ positions in ångström, [..., L, 3].
        resolved: bool [..., L], whether a residue has a position; padding has none.
        cutoff: ångström; a contact is closer than this.
    """
    return targets_of(distances(cbeta), resolved, cutoff)


def distances(points: Tensor) -> Tensor:
    """Distances [..., L, L] between points [..., L, 3], in at least float32; NaN where a point is NaN."""
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    # Through matrix products, torch.cdist would lose the second decimal of an ångström.
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def targets_of(distance: Tensor, resolved: Tensor, cutoff: float = CUTOFF) -> Tensor:
    """Returns `contact_targets` from distances [..., L, L]."""
    known = resolved[..., :, None] & resolved[..., None, :] & ~distance.isnan()
    return torch.where(known, (distance < cutoff).to(torch.int8), -1)


def precisions(
    scores: Tensor,
    targets: Tensor,
    lengths: Tensor | None = None,
    ranges: dict[str, tuple[int, int]] = RANGES,
    separation: Tensor | None = None,
) -> dict[str, Tensor]:
    """Returns the scores of each chain, their chance and their ceiling, each float32 `[batch]`; NaN where there is no
    pair.

    The keys are `{range}_{score}{kind}`: `long_p_at_l`, `long_p_at_l5_chance`, `medium_auc_ceiling`, ...

    Args:
        scores: any number that is larger where a contact is more likely, `[batch, L, L]`; the upper triangle is read.
            NaN ranks last.
        targets: as from `contact_targets`, `[batch, L, L]`.
        lengths: L of each chain, `[batch]`; left out, the number of residues with any known pair.
        ranges: first and last separation of each.
        separation: of each pair, int `[L, L]`, such as `read.complexes.separations` for a complex; left out, j - i.
    """
    if lengths is None:
        lengths = (targets >= 0).any(-1).sum(-1)
    out: dict[str, Tensor] = {}
    for name, (first, last) in ranges.items():
        hits, ideal, pairs = _ranked(scores, targets, first, last, separation)
        curves = {
            "": hits.cumsum(1),
            "_chance": (hits.sum(1) / pairs)[:, None] * _counted(hits, pairs),
            "_ceiling": torch.minimum(_ranks(hits), ideal[:, None]),
        }
        for kind, found in curves.items():
            at_tenth = _at_tenths(found, lengths).where(pairs[:, None] > 0, torch.nan)
            out |= {f"{name}_{score}{kind}": at_tenth[:, tenth - 1] for score, tenth in TENTHS.items()}
            out[f"{name}_auc{kind}"] = at_tenth.mean(1)
    return out


def _ranked(
    scores: Tensor, targets: Tensor, first: int, last: int, separation: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Expected hits by rank `[batch, ranks]`, the number of contacts `[batch]` and of known pairs `[batch]` of a
    range.
    """
    i, j = pairs_apart(scores.shape[-1], first, last, separation, scores.device)
    flat = i * scores.shape[-1] + j
    target = targets.flatten(1)[:, flat]
    score = scores.flatten(1)[:, flat]
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    known = target >= 0
    # Only ignored pairs may be -inf, so that they rank behind the worst of the known ones.
    score = score.nan_to_num(nan=-torch.inf).clamp_min(torch.finfo(score.dtype).min).where(known, -torch.inf)
    ranked, order = score.sort(dim=1, descending=True)
    hit = (target == 1).float().gather(1, order)
    return _share_ties(ranked, hit), hit.sum(1), known.sum(1).float()


def pairs_apart(
    residues: int, first: int, last: int = 1 << 30, separation: Tensor | None = None, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The pairs i < j of a range of separations, two int64 `[pairs]`; `separation` as for `precisions`."""
    if separation is not None:
        i, j = torch.triu((separation >= first) & (separation <= last), 1).nonzero(as_tuple=True)
        return i.to(device), j.to(device)
    i, j = torch.triu_indices(residues, residues, min(first, residues), device=device)
    inside = j - i <= last
    return i[inside], j[inside]


def _share_ties(ranked: Tensor, hit: Tensor) -> Tensor:
    """Replaces each hit `[batch, ranks]` by the mean over the ranks of equal score."""
    if not hit.shape[1]:
        return hit
    starts = torch.ones_like(hit, dtype=torch.bool)
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    group = starts.long().cumsum(1) - 1
    size = torch.zeros_like(hit).scatter_add_(1, group, torch.ones_like(hit))
    total = torch.zeros_like(hit).scatter_add_(1, group, hit)
    return (total / size.clamp_min(1)).gather(1, group)


def _ranks(like: Tensor) -> Tensor:
    return torch.arange(1, like.shape[1] + 1, device=like.device, dtype=like.dtype).expand_as(like)


def _counted(like: Tensor, pairs: Tensor) -> Tensor:
    return torch.minimum(_ranks(like), pairs[:, None])


def _at_tenths(found: Tensor, lengths: Tensor) -> Tensor:
    """Precision `[batch, 10]` at 1/10 ... 10/10 of L from the contacts found up to each rank `[batch, ranks]`."""
    asked = (lengths.to(found.device)[:, None] * torch.arange(1, 11, device=found.device) // 10).clamp_min(1)
    if not found.shape[1]:
        return torch.zeros(asked.shape, dtype=found.dtype, device=found.device)
    # Behind the last pair nothing more is found.
    return found.gather(1, asked.clamp_max(found.shape[1]) - 1) / asked


class ContactMetrics:
    """The mean of `precisions` over chains, overall and by depth of the alignment.

    Args:
        ranges: first and last separation of each range.
    """

    def __init__(self, ranges: dict[str, tuple[int, int]] = RANGES) -> None:
        self.ranges = ranges
        self.keys = [f"{name}_{score}{kind}" for name in ranges for score in SCORES for kind in KINDS]
        self._values: list[Tensor] = []
        self._neff: list[Tensor] = []
        self.names: list[str] = []

    def update(
        self,
        scores: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        neff: Tensor | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """Adds chains; the numbers stay on their device. `neff` `[batch]` may hold NaN; other arguments as
        `precisions`.
        """
        found = precisions(scores, targets, lengths, self.ranges)
        self._values.append(torch.stack([found[key] for key in self.keys], 1))
        unknown = torch.full((len(scores),), torch.nan, device=scores.device)
        self._neff.append(unknown if neff is None else neff.to(unknown))
        self.names += list(names) or [""] * len(scores)

    @property
    def values(self) -> Tensor:
        """What each chain scored and, last, its Neff: float32 `[chains, keys + 1]`; rows of several ranks may be
        joined.
        """
        if not self._values:
            return torch.empty(0, len(self.keys) + 1, dtype=torch.float32)
        return torch.cat([torch.cat(self._values), torch.cat(self._neff)[:, None]], 1)

    def compute(self, values: Tensor | None = None) -> dict[str, float]:
        """Returns the means over the chains that have a score: one number per key, then those of each Neff bin.

        The keys of a bin end in `_neff_10_50`; beside them stands `chains_neff_10_50`. Bins without a chain are
        absent, as are keys without a score.

        Args:
            values: rows as from `values`; left out, those of this process.
        """
        rows = (self.values if values is None else values).cpu().double()
        scores, neff = rows[:, :-1], rows[:, -1]
        out = self._means(scores, "")
        for lower, upper in itertools.pairwise(NEFF_BINS):
            chosen = (neff >= lower) & (neff < upper)
            if chosen.any():
                name = f"_neff_{lower:.0f}_up" if math.isinf(upper) else f"_neff_{lower:.0f}_{upper:.0f}"
                out |= {f"chains{name}": float(chosen.sum())} | self._means(scores[chosen], name)
        return out

    def _means(self, scores: Tensor, suffix: str) -> dict[str, float]:
        means = scores.nanmean(0).tolist()
        return {f"{key}{suffix}": mean for key, mean in zip(self.keys, means) if not math.isnan(mean)}
