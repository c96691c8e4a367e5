"""Shards in, batches out; samples in, shards out."""

from lgpl.data.datamodule import ShardDataModule
from lgpl.data.decode import Decoder, collate
from lgpl.data.shards import expand
from lgpl.data.writer import CodeShardWriter

__all__ = ["CodeShardWriter", "Decoder", "ShardDataModule", "collate", "expand"]
