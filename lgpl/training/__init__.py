"""What the training of tokenizers and generators shares, with Lightning."""

from lgpl.training.build import build_described, build_module, load_module
from lgpl.training.module import TrainingModule
from lgpl.training.optimizers import Schedule
from lgpl.training.strategy import ShardedStrategy

__all__ = ["Schedule", "ShardedStrategy", "TrainingModule"]
__all__ += ["build_described", "build_module", "load_module"]
