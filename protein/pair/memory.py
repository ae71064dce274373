"""How much memory a prediction takes, before it is tried: so that a long chain is computed in chunks, not killed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

from ...core.errors import UserError
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

    def needed(length: int, chunk: int | None) -> int:
        return estimate(config, length, rows, chunk, number_bytes)

    for chunk in (None, *CHUNKS):
        if (chunk is None or chunk < residues) and needed(residues, chunk) <= available:
            return chunk
    raise _too_long(residues, lambda length: needed(length, CHUNKS[-1]), available, f"in chunks of {CHUNKS[-1]} rows")


def estimate_attention(residues: int) -> int:
    """Peak bytes of the contact head on one attention head's map at a time, which it falls back to for long chains."""
    return 4 * residues**2 * 6


def check_attention(residues: int, available: int) -> None:
    """Raises UserError if `estimate_attention` does not fit into `available` bytes."""
    if estimate_attention(residues) > available:
        raise _too_long(residues, estimate_attention, available, "for one attention map at a time")


def free_memory(device: torch.device) -> int:
    """Bytes that a computation on a device may still take; for a CPU within the limits of this container, too."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    bounds = [bound() for bound in (_free_in_system, _free_in_container)]
    known = [bound for bound in bounds if bound is not None]
    return min(known) if known else 8 << 30  # a system that does not say


def _free_in_system() -> int | None:
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        if found:
            return int(found[1]) << 10
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (OSError, ValueError, AttributeError):
        return None


def _free_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What cgroup v2 leaves; pages of files count as free, because the kernel drops them when memory is short."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        files = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.M)
        return int(limit) - int((folder / "memory.current").read_text()) + int(files[1] if files else 0)
    except (OSError, ValueError):  # no limit ("max"), or another system
        return None


def gib(size: float) -> str:
    """Bytes as people compare them with a machine: "11.9 GiB"."""
    return f"{size / 2**30:,.1f} GiB"


def _too_long(residues: int, needed: Callable[[int], int], available: int, how: str) -> UserError:
    longest = residues
    while longest > 1 and needed(longest) > available:
        longest = int(longest * 0.95)
    return UserError(
        f"{residues:,} residues need about {gib(needed(residues))} of memory even {how}, but {gib(max(0, available))}"
        f" can be used here; cut the chain to at most {longest:,} residues (domains), or use a machine with more "
        "memory."
    )
