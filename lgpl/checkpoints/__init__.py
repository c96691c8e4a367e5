"""Checkpoints that say what they hold: read in three forms, written as safetensors + JSON."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.checkpoints.files import (
        Checkpoint,
        check_weights,
        is_exported,
        load_tensors,
        read_checkpoint,
        write_checkpoint,
    )
    from lgpl.checkpoints.shards import is_sharded
    from lgpl.checkpoints.trust import add_trust, split_trust

__all__ = [
    "Checkpoint",
    "add_trust",
    "check_weights",
    "is_exported",
    "is_sharded",
    "load_tensors",
    "read_checkpoint",
    "split_trust",
    "write_checkpoint",
]

__getattr__ = lazily(
    __name__,
    {
        "files": (
            *("Checkpoint", "check_weights", "is_exported", "load_tensors", "read_checkpoint"),
            "write_checkpoint",
        ),
        "shards": ("is_sharded",),
        "trust": ("add_trust", "split_trust"),
    },
)
