"""Confidence against accuracy, and the calibration error of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""Confidence bins of the calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, by bins of the confidence (the probability of the predicted class).

    Args:
        counts: examples in each bin, int `[bins]`.
        confidence: their mean confidence, float `[bins]`; 0 in an empty bin.
        accuracy: the share of them that is right, float `[bins]`; 0 in an empty bin.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy, in 0..1 (Guo et al. 2017, eq.
        3).
        """
        gaps = (self.confidence - self.accuracy).abs()
        return float((self.counts * gaps).sum() / self.counts.sum())


def bin_of(confidence: Tensor, bins: int = BINS) -> Tensor:
    """The bin of each confidence: ((b-1)/bins, b/bins]. torchmetrics gives confidences of exactly 1 a bin of their own,
    which Guo et al. do not.
    """
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def equal_width(confidence: Tensor, right: Tensor, bins: int = BINS) -> Reliability:
    """Bins of equal width, as `bin_of` says."""
    return _binned(bin_of(confidence, bins), confidence, right, bins)


def equal_mass(confidence: Tensor, right: Tensor, bins: int = BINS) -> Reliability:
    """Bins with equally many examples, by rank of the confidence."""
    rank = torch.empty_like(confidence, dtype=torch.long)
    rank[confidence.argsort(stable=True)] = torch.arange(len(confidence))
    return _binned(rank * bins // len(confidence), confidence, right, bins)


def _binned(index: Tensor, confidence: Tensor, right: Tensor, bins: int) -> Reliability:
    counts = torch.bincount(index, minlength=bins)
    held = counts.clamp(min=1)
    return Reliability(
        counts,
        torch.bincount(index, confidence, minlength=bins) / held,
        torch.bincount(index, right, minlength=bins) / held,
    )
