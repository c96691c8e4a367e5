"""Checkpoints that say what they hold: read in three forms, written as safetensors + JSON."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.checkpoints.files import Checkpoint as Checkpoint
    from lgpl.checkpoints.files import check_weights as check_weights
    from lgpl.checkpoints.files import is_exported as is_exported
    from lgpl.checkpoints.files import read_checkpoint as read_checkpoint
    from lgpl.checkpoints.files import write_checkpoint as write_checkpoint
    from lgpl.checkpoints.shards import is_sharded as is_sharded
    from lgpl.checkpoints.trust import add_trust as add_trust
    from lgpl.checkpoints.trust import split_trust as split_trust

__getattr__ = lazily(
    __name__,
    files=("Checkpoint", "check_weights", "is_exported", "read_checkpoint", "write_checkpoint"),
    shards=("is_sharded",),
    trust=("add_trust", "split_trust"),
)
