"""Writes shards in webdataset layout, so that the same samples give the same bytes."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from tqdm import tqdm

# A sample's key and its members by extension, in the order in which they are written.
Sample = tuple[str, dict[str, bytes]]


def write_shards(out: Path, shards: Mapping[str, Iterable[Sample]], total: int) -> None:
    """Writes a data set's shards and prints a summary line.

    The shards are written in a temporary folder beside their final place and moved there
    at the end, so that no reader meets a part of a shard and an interrupted build leaves
    earlier shards as they were.

    Args:
        out: The folder for the shards.
        shards: The samples of each shard by its file name; ".gz" names are compressed.
        total: The number of samples in all shards, for the progress bar.
    """
    out.mkdir(parents=True, exist_ok=True)
    size = 0
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as temporary:
        with tqdm(total=total, unit="sample") as progress:
            for name, samples in shards.items():
                _write_shard(Path(temporary, name), samples, progress)
        for name in shards:
            size += Path(temporary, name).stat().st_size
            os.replace(Path(temporary, name), out / name)
    print(f"{out}: {len(shards)} shards, {total} samples, {size} bytes")


def _write_shard(path: Path, samples: Iterable[Sample], progress: tqdm) -> None:
    with path.open("wb") as file:
        if path.suffix != ".gz":
            _write_tar(file, samples, progress)
            return
        # Without a name and a time the header depends on nothing but the content.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
            _write_tar(compressed, samples, progress)


def _write_tar(stream: IO[bytes], samples: Iterable[Sample], progress: tqdm) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, content in members.items():
                # A fresh TarInfo has owner and group 0, time 0 and mode 0644.
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            progress.update()
