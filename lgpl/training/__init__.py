"""What the training of tokenizers and generators shares, with Lightning."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.training.build import build_described, build_module, load_module
    from lgpl.training.module import TrainingModule
    from lgpl.training.optimizers import Schedule
    from lgpl.training.strategy import ShardedStrategy

__all__ = [
    "Schedule",
    "ShardedStrategy",
    "TrainingModule",
    "build_described",
    "build_module",
    "load_module",
]

__getattr__ = lazily(
    __name__,
    {
        "build": ("build_described", "build_module", "load_module"),
        "module": ("TrainingModule",),
        "optimizers": ("Schedule",),
        "strategy": ("ShardedStrategy",),
    },
)
