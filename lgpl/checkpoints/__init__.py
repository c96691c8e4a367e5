"""Checkpoints that say what they hold: read in three forms, written as safetensors + JSON."""

from lgpl.checkpoints.files import (
    Checkpoint,
    check_weights,
    is_exported,
    load_tensors,
    read_checkpoint,
    write_checkpoint,
)
from lgpl.checkpoints.module import SelfDescribing, build_module, load_module
from lgpl.checkpoints.strategy import ShardedStrategy

__all__ = [
    "Checkpoint",
    "SelfDescribing",
    "ShardedStrategy",
    "build_module",
    "check_weights",
    "is_exported",
    "load_module",
    "load_tensors",
    "read_checkpoint",
    "write_checkpoint",
]
