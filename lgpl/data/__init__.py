"""Shards in, batches out; samples in, shards out."""

from typing import TYPE_CHECKING

from lgpl.data.decode import Decoder, collate
from lgpl.data.shards import expand
from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.data.datamodule import ShardDataModule
    from lgpl.data.writer import CodeShardWriter

__all__ = ["CodeShardWriter", "Decoder", "ShardDataModule", "collate", "expand"]

__getattr__ = lazily(
    __name__,
    {"CodeShardWriter": "lgpl.data.writer", "ShardDataModule": "lgpl.data.datamodule"},
)
