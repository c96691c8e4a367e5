"""Shards in, batches out; samples in, shards out."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.data.datamodule import ShardDataModule as ShardDataModule

__getattr__ = lazily(__name__, {"datamodule": ("ShardDataModule",)})
