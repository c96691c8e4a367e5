"""Real shards for tests: images encoded by Pillow in tar files written by webdataset."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset import TarWriter

from lgpl.data.index import count_samples
from lgpl.data.store import Store

EMOJI_TRAIN = "data/emoji/train-*.tar.gz"
EMOJI_VAL = "data/emoji/val-*.tar.gz"


def image_bytes(seed: int, size: tuple[int, int] = (40, 32), kind: str = "jpeg") -> bytes:
    rng = random.Random(seed)
    small = Image.new("RGB", (4, 4))
    small.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(16)])
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def samples(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "__key__": f"{i:05d}",
            "jpg": image_bytes(i),
            "txt": f"image {i}".encode(),
            "cls": b"%d" % (i % 3),
        }
        for i in range(first, first + count)
    ]


def write_shard(path: Path, content: list[dict[str, Any]]) -> str:
    with TarWriter(str(path), encoder=False) as tar:
        for sample in content:
            tar.write(sample)
    return str(path)


def write_shards(folder: Path, counts: list[int]) -> list[str]:
    """Shards of so many samples each, keys 00000, 00001, ... throughout."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [
        write_shard(folder / f"{i:04d}.tar", samples(count, start))
        for i, (count, start) in enumerate(zip(counts, starts, strict=True))
    ]


def count(shard: str) -> int:
    """Samples of a shard without a fault."""
    number, damage = count_samples(shard, Store())
    assert damage is None
    return number
