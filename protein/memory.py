"""How much memory a prediction takes, before it is tried: so that a long chain is computed in chunks, not killed."""

from __future__ import annotations

from ..core.errors import UserError
from .config import PairConfig

CHUNKS = (256, 128, 64, 32, 16, 8, 4)
"""Rows of each update computed at a time, tried in this order."""


def estimate(config: PairConfig, residues: int, rows: int = 1, chunk: int | None = None, number_bytes: int = 4) -> int:
    """Peak bytes of one prediction (one chain, no gradients) above the parameters.

    The largest moment of all updates, in numbers per pair; the distogram logits are float32.

    Args:
        config: of the model.
        residues: length of the chain.
        rows: of its alignment.
        chunk: rows of each update computed at a time; None for all.
        number_bytes: of one number: 4, or 2 in bfloat16.
    """
    dim, total = config.dim, config.triangle_dim * (2 if config.triangle_fused else 1)
    heads, part = config.triangle_heads * config.head_dim, 1.0 if chunk is None else min(1.0, chunk / residues)
    # (held for all rows, held for the rows of a chunk), beside z before the block and z before the update
    moments = [
        (dim + (0 if part == 1 else 3 * total), 6 * total + 2 * dim),  # operands, product, update; maps, their gates
        (dim + config.triangle_heads, 6 * heads + dim) if heads else (0, 0),  # update, bias; q, k, v, heads, gate
        (dim, (2 * config.transition + 1) * dim),
        (dim, 2 * config.covariance_dim**2 + dim) if config.covariance_dim and rows > 1 else (0, 0),
        (dim, 2 * config.outer_dim**2) if config.msa_depth else (0, 0),
        (2 * dim if config.sequence_depth else dim, 3 * dim),  # input: sums of three maps
        (2 * dim, config.bins + dim) if config.recycles else (0, 0),
    ]
    trunk = 2 * dim + max(whole + part * share for whole, share in moments)
    logits = 2 * (1 + config.bins) * 4  # logits, and their sum with the transpose
    recycled = 2 * dim * number_bytes + config.bins * 4 if config.recycles else 0
    alignment = (
        rows * residues * (config.msa_dim * (2 + 6 * part) if config.msa_depth else config.covariance_dim * 4 + 24 * 5)
    )
    pairs = residues**2 * (max(trunk * number_bytes, dim * number_bytes + logits) + recycled)
    return int(pairs + alignment * number_bytes)


def choose_chunk(config: PairConfig, residues: int, available: int, rows: int = 1, number_bytes: int = 4) -> int | None:
    """The largest chunk whose estimate fits into `available` bytes; None when no chunks are needed.

    Raises:
        UserError: even the smallest chunk does not fit.
    """
    for chunk in (None, *CHUNKS):
        if (chunk is None or chunk < residues) and estimate(config, residues, rows, chunk, number_bytes) <= available:
            return chunk
    least = estimate(config, residues, rows, CHUNKS[-1], number_bytes)
    longest = residues
    while longest > 1 and estimate(config, longest, rows, CHUNKS[-1], number_bytes) > available:
        longest = int(longest * 0.95)
    raise UserError(
        f"{residues:,} residues need about {least / 1e9:.1f} GB even in chunks of {CHUNKS[-1]} rows, but"
        f" {available / 1e9:.1f} GB are free; cut the chain to at most {longest:,} residues (domains), or use a machine"
        " with more memory."
    )
