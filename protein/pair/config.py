"""What a pair model is, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ...core.checks import check_keys, check_types
from ...core.errors import UserError, nearest
from ..language.model import SequenceConfig

CHECKPOINTS = ("none", "update", "block")

# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    # The widths of AlphaFold2's Evoformer (supplement, Algorithm 6), 8 of its 48 blocks.
    "evoformer": {},
    # Triangle multiplication only, a cheap sequence encoder below it: learns most in little compute.
    "fast": {
        "dim": 32, "depth": 4, "sequence_dim": 128, "sequence_depth": 4, "covariance_dim": 8, "msa_depth": 0,
        "triangle_dim": 16, "triangle_fused": True, "triangle_heads": 0, "transition": 2, "dropout_pair": 0.1,
        "recycles": 0, "checkpoint": "none",
    },
    # Every part once or twice, for tests.
    "tiny": {
        "dim": 12, "depth": 2, "sequence_dim": 16, "sequence_depth": 1, "covariance_dim": 4, "msa_depth": 1,
        "msa_dim": 8,
        "msa_heads": 2, "head_dim": 4, "outer_dim": 4, "triangle_dim": 8, "triangle_heads": 2, "transition": 2,
        "recycles": 1, "checkpoint": "none",
    },
}
# fmt: on
"""What differs from the defaults of `PairConfig`."""


@dataclass(frozen=True)
class PairConfig:
    """A stack of blocks over residue pairs. The defaults are the preset `evoformer`; see `PRESETS` for the others.

    Args:
        dim: channels of the pair representation z.
        depth: blocks.
        sequence_dim: width of the sequence encoder, a core Transformer that reads sequence and profile.
        sequence_depth: its blocks; 0 means that z starts from a linear map of the input, as in AlphaFold2.
        covariance_dim: channels of the residue vectors whose weighted covariances over the alignment enter z; 0 for
            none.
        msa_depth: the first so many blocks also refine an MSA representation (AlphaFold2: all); 0 for none.
        msa_dim: channels of the MSA representation.
        msa_heads: heads of its row and column attention.
        head_dim: channels of one head.
        outer_dim: channels of each operand of the outer product mean.
        triangle_dim: channels of the triangle multiplication's sums.
        triangle_fused: outgoing and incoming multiplication as one update (a deviation, after MiniFold).
        triangle_heads: heads of the triangle attention; 0 for none.
        transition: widening factor of the transitions.
        dropout_msa: row-wise dropout of the MSA row attention.
        dropout_pair: row-wise (ending attention: column-wise) dropout of the pair updates.
        recycles: passes beyond the first; in training a number from 0 to this is drawn.
        relative_positions: sequence distances beyond this count as this.
        bins: distogram classes.
        checkpoint: what training computes again in the backward pass to save memory: little (`none`), also what is
            cheap inside each `update`, a few rows at a time (two thirds of the memory), or also each `block`, whose
            input alone is kept.
        trunk: a protein language model whose vectors enter the sequence input; None for none.

    Raises:
        UserError: a value outside its range.
    """

    dim: int = 128
    depth: int = 8
    sequence_dim: int = 128
    sequence_depth: int = 0
    covariance_dim: int = 0
    msa_depth: int = 8
    msa_dim: int = 256
    msa_heads: int = 8
    head_dim: int = 32
    outer_dim: int = 32
    triangle_dim: int = 128
    triangle_fused: bool = False
    triangle_heads: int = 4
    transition: int = 4
    dropout_msa: float = 0.15
    dropout_pair: float = 0.25
    recycles: int = 3
    relative_positions: int = 32
    bins: int = 64
    checkpoint: Literal["none", "update", "block"] = "update"
    trunk: SequenceConfig | None = None

    def __post_init__(self) -> None:
        check_types(self)
        may_be_zero = ("sequence_depth", "covariance_dim", "msa_depth", "triangle_heads", "recycles")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "checkpoint":
                ok, allowed = value in CHECKPOINTS, f"one of {', '.join(CHECKPOINTS)}"
            elif field.name == "trunk":
                ok, allowed = (
                    value is None or isinstance(value, SequenceConfig),
                    "left out (--model.pretrained gives it)",
                )
            elif isinstance(field.default, bool):
                ok, allowed = isinstance(value, bool), "true or false"
            elif isinstance(field.default, float):
                ok, allowed = isinstance(value, int | float) and 0 <= value < 1, "in [0, 1)"
            else:
                least = 0 if field.name in may_be_zero else 1
                ok, allowed = isinstance(value, int) and value >= least, f"an integer of at least {least}"
            if not ok:
                raise UserError(f"{field.name} is {value!r}, but must be {allowed}.")
        if self.msa_depth > self.depth:
            raise UserError(f"msa_depth is {self.msa_depth}, but must be at most depth ({self.depth}).")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> PairConfig:
        """One of `PRESETS`, with some fields changed. Raises UserError for an unknown name or field."""
        if name not in PRESETS:
            raise UserError(f"preset is {name!r}{nearest(name, PRESETS)}, but must be one of {', '.join(PRESETS)}.")
        values = PRESETS[name] | changes
        if "depth" in changes and "msa_depth" not in changes and name == "evoformer":
            values["msa_depth"] = changes["depth"]  # all blocks of the Evoformer have both tracks
        return cls(**check_keys(cls, values, "model"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PairConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        values = dict(check_keys(cls, values, "model"))
        if values.get("trunk") is not None:
            values["trunk"] = SequenceConfig.from_dict(values["trunk"])
        return cls(**values)
