"""The shared transformer: knows no modality, imports nothing from the tasks beside it.

The names below load on first use, so that importing the package stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TransformerConfig
    from .errors import UserError
    from .layers import FeedForward, Norm
    from .lens.record import record_attention
    from .losses import linear_cross_entropy
    from .masks import AttentionMask
    from .mixers.attention import Attention
    from .mixers.cache import KeyValueCache
    from .mixers.kernels import force_kernel, reference_attention
    from .rotary import RotaryConfig
    from .training.module import Loss, TrainingModule
    from .training.optimizers import OptimizerConfig
    from .training.schedules import ScheduleConfig
    from .transformer import Block, Transformer

_HOME = {
    "Attention": "mixers.attention",
    "AttentionMask": "masks",
    "Block": "transformer",
    "FeedForward": "layers",
    "KeyValueCache": "mixers.cache",
    "Loss": "training.module",
    "Norm": "layers",
    "OptimizerConfig": "training.optimizers",
    "RotaryConfig": "rotary",
    "ScheduleConfig": "training.schedules",
    "TrainingModule": "training.module",
    "Transformer": "transformer",
    "TransformerConfig": "config",
    "UserError": "errors",
    "force_kernel": "mixers.kernels",
    "linear_cross_entropy": "losses",
    "record_attention": "lens.record",
    "reference_attention": "mixers.kernels",
}

__all__ = [
    "Attention",
    "AttentionMask",
    "Block",
    "FeedForward",
    "KeyValueCache",
    "Loss",
    "Norm",
    "OptimizerConfig",
    "RotaryConfig",
    "ScheduleConfig",
    "TrainingModule",
    "Transformer",
    "TransformerConfig",
    "UserError",
    "force_kernel",
    "linear_cross_entropy",
    "record_attention",
    "reference_attention",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
