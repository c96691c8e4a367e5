"""The photographs that the benchmarks run on: real ones, the same every time."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("skimage", reason="see requirements-benchmark.txt")

from tests.benchmarks import photos


def test_shards_of_photographs(tmp_path: Path) -> None:
    shards = photos.write(tmp_path / "once", count=9, per_shard=5, seed=0)
    again = photos.write(tmp_path / "again", count=9, per_shard=5, seed=0)
    assert [Path(shard).read_bytes() for shard in shards] == [
        Path(shard).read_bytes() for shard in again
    ]
    names = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member) for member in tar}
            names += members
            for name, file in members.items():
                if name.endswith(".jpg"):
                    image = Image.open(io.BytesIO(file.read()))
                    geometry = json.loads(members[name[:-3] + "json"].read())
                    assert image.format == "JPEG" and image.mode == "RGB"
                    assert image.size == (geometry["width"], geometry["height"])
                    assert all(512 <= side <= 1024 for side in image.size)
    assert sorted(names) == sorted(
        f"{i:08d}.{kind}" for i in range(9) for kind in ("jpg", "txt", "json")
    )


def test_a_sample_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few, many = (photos.write(tmp_path / str(n), n, 10, seed=1) for n in (1, 3))
    with tarfile.open(few[0]) as a, tarfile.open(many[0]) as b:
        for name in ("00000000.jpg", "00000000.txt", "00000000.json"):
            assert a.extractfile(name).read() == b.extractfile(name).read()
