"""Shards in, batches out; samples in, shards out."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.data.datamodule import ShardDataModule
    from lgpl.data.decode import SampleDecoder, collate
    from lgpl.data.shards import expand

__getattr__ = lazily(
    __name__,
    datamodule=("ShardDataModule",),
    decode=("SampleDecoder", "collate"),
    shards=("expand",),
)
