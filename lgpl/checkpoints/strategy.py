"""FSDP2 whose checkpoint folders are whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, whose sharded checkpoint takes its name when it is whole.

    Written in place over the last one, a checkpoint that a dying node leaves behind would hold
    some ranks' new shards and others' old ones, and load without a word.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        partial = path.with_name(path.name + ".partial")
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier()
        if self.is_global_zero:
            exchange(partial, path)
        self.barrier()


def exchange(new: Path, path: Path) -> None:
    """Give `new` the name `path` and delete what had it; whenever this is cut short, a whole
    checkpoint stands where `--ckpt_path last` looks, which is at `last*.ckpt`."""
    old, doomed = path.with_stem(path.stem + "-old"), path.with_name(path.name + ".old")
    if path.exists():
        _delete(old, doomed)
        path.rename(old)
    new.rename(path)
    _delete(old, doomed)


def _delete(path: Path, doomed: Path) -> None:
    """Under another name, because the newest wins, and deleting a part of a folder makes it new."""
    shutil.rmtree(doomed, ignore_errors=True)
    if path.is_dir():
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
