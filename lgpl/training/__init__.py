"""What the training of tokenizers and generators shares, with Lightning."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.training.build import build_described as build_described
    from lgpl.training.build import build_module as build_module
    from lgpl.training.build import load_module as load_module
    from lgpl.training.module import TrainingModule as TrainingModule
    from lgpl.training.optimizers import Schedule as Schedule
    from lgpl.training.strategy import ShardedStrategy as ShardedStrategy

__getattr__ = lazily(
    __name__,
    {
        "build": ("build_described", "build_module", "load_module"),
        "module": ("TrainingModule",),
        "optimizers": ("Schedule",),
        "strategy": ("ShardedStrategy",),
    },
)
