"""Shard lists: patterns, reading, faults, splitting."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from lgpl.cli import main
from lgpl.data.decode import SampleDecoder
from lgpl.data.index import count_samples
from lgpl.data.order import Span
from lgpl.data.shards import ALWAYS_UNPACKED, OpenShards, Shard, expand, read_shard
from lgpl.data.store import Store
from lgpl.data.streams import ReadRequest, Samples
from lgpl.errors import UserError
from tests.data.test_tar import END, add, block, octal
from tests.shards import EMOJI_TRAIN, image_bytes, samples, write_shard, write_shards


def test_patterns(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [1, 1, 1])
    assert expand(str(tmp_path / "*.tar")) == paths
    assert expand(str(tmp_path / "{0000..0002}.tar")) == paths
    assert expand([paths[2], str(tmp_path / "000[0-1].tar")]) == [paths[2], *paths[:2]]
    assert expand(str(tmp_path / "{0000,0001}.*")) == paths[:2]
    urls = expand("http://host/{000..002}.tar")
    assert urls == [f"http://host/00{i}.tar" for i in range(3)]


def test_what_is_there_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "out [v1] {a,b}"
    paths = write_shards(folder, [1, 1])
    odd = folder / "a[1]*.tar"
    odd.write_bytes(Path(paths[0]).read_bytes())
    assert expand(paths[0]) == [paths[0]] and expand(str(odd)) == [str(odd)]
    for name in ("out [v2]", "a{1,2}/b", "half{/b[0]", "c*/d?"):
        paths = write_shards(tmp_path / name, [1, 1])
        for form in ("000*.tar", "{0000,0001}.tar", "000[01].tar", "000{0..1}.t?r"):
            assert expand(str(tmp_path / name / form)) == paths
    deep = write_shards(tmp_path / "e[1]/any", [1])
    assert expand(f"{tmp_path}/e[1]/*/0*.tar") == expand(f"{tmp_path}/e[1]/{{any,any}}/*") == deep


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("nowhere-*.tar", "data.train: 'nowhere-\\*.tar' matches no file"),
        ("nowhere/0000.tar", "matches no file"),
        ([], "data.train: the list is empty"),
        ("a-{0000..", "a brace without its partner"),
        ("pipe:cat x.tar", "pipe: would run a shell command"),
    ],
)
def test_patterns_that_match_nothing(pattern: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        expand(pattern, "data.train")


def test_read_and_count_agree_with_what_was_written(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples(5))
    read = list(read_shard(path))
    assert [raw["__key__"] for raw in read] == [f"{i:05d}" for i in range(5)]
    assert {k: v for k, v in read[3].items() if not k.startswith("__s")} == samples(5)[3]
    assert count_samples(path, Store()) == (5, None)


def test_only_the_members_asked_for_are_read(tmp_path: Path) -> None:
    shard = Shard(write_shard(tmp_path / "a.tar", samples(5)), Store())
    assert set(shard.read(4, {"txt", "png"})) == {"__key__", "__shard__", "txt"}
    assert shard.members(4)["cls"][1] == 1
    with pytest.raises(IndexError):
        shard.read(5, None)


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_compressed_shards(tmp_path: Path, opener: Any) -> None:
    plain = Path(write_shard(tmp_path / "a.tar", samples(5))).read_bytes()
    path = tmp_path / "b.tar.packed"
    with opener(path, "wb") as file:
        file.write(plain)
    assert [raw["jpg"] for raw in read_shard(str(path))] == [s["jpg"] for s in samples(5)]
    path.write_bytes(path.read_bytes()[:-2000])
    number, damage = count_samples(str(path), Store())
    assert number < 5 and damage and "damaged compression" in damage


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_what_precedes_damaged_compression_is_read(tmp_path: Path, pack: Any) -> None:
    plain = Path(write_shard(tmp_path / "a.tar", samples(5))).read_bytes()
    path = tmp_path / "b.tar.packed"
    path.write_bytes(pack(plain) + b"no compression")
    assert [raw["jpg"] for raw in read_shard(str(path))] == [s["jpg"] for s in samples(5)]
    number, damage = count_samples(str(path), Store())
    assert number == 5 and damage and "damaged compression" in damage


def test_zstandard(tmp_path: Path) -> None:
    """In one frame, or in several behind each other, as several threads write them."""
    plain = Path(write_shard(tmp_path / "a.tar", samples(5))).read_bytes()
    packed = [zstandard.compress(part) for part in (plain, plain[:2000], plain[2000:])]
    skipped = b"\x5c\x2a\x4d\x18\4\0\0\0size"
    path = tmp_path / "b.tar.zst"
    for content in (packed[0], packed[1] + packed[2], skipped + packed[0]):
        path.write_bytes(content)
        assert [raw["jpg"] for raw in read_shard(str(path))] == [s["jpg"] for s in samples(5)]
    path.write_bytes(packed[0][:-2000])
    number, damage = count_samples(str(path), Store())
    assert number < 5 and damage


def test_truncated_shard_gives_what_is_whole_and_counts(tmp_path: Path) -> None:
    path = Path(write_shard(tmp_path / "a.tar", samples(5)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    keys = [raw["__key__"] for raw in read_shard(str(path))]
    number, damage = count_samples(str(path), Store())
    assert 0 < len(keys) < 5 and number == len(keys)
    assert damage and f"is damaged or cannot be read after {number} samples (cut off" in damage


@pytest.mark.parametrize("content", [b"", bytes(10240)], ids=["no bytes", "no members"])
def test_empty_shard_is_counted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.tar"
    path.write_bytes(content)
    assert list(read_shard(str(path))) == []
    assert count_samples(str(path), Store()) == (0, "holds no samples")


def test_shards_stay_open_while_they_are_needed(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [3] * 30)
    shards = OpenShards(Store(), samples=12)
    first = shards[paths[0]]
    for path in paths[1:4]:
        assert len(shards[path]) == 3
    assert shards[paths[0]] is first
    for path in paths[1:]:
        assert len(shards[path]) == 3
    assert shards[paths[0]] is not first and shards[paths[0]][2]["__key__"] == "00002"


# bounds

ENDINGS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_small_file_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """100 MiB out of 15 to 100 kB; what is above the bound never reaches the disk."""
    made = []
    temporary = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: made.append(temporary()) or made[-1])
    path = tmp_path / f"bomb.tar.{ending}"
    whole = block(b"0.jpg", b"0", octal(5), b"whole")
    path.write_bytes(ENDINGS[ending](whole * 2 + bytes(100 * 2**20)))
    shard = Shard(str(path), Store())
    assert len(shard) == 1 and shard[0]["jpg"] == b"whole"  # before it the tar was whole
    assert shard.damage == "unpacks to more than 600 times its size or 68719476736 bytes"
    assert os.fstat(made[0].fileno()).st_size <= ALWAYS_UNPACKED
    assert count_samples(str(path), Store())[1]


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_alone_compress_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The bound leaves room for them, whatever their number."""
    monkeypatch.setattr("lgpl.data.shards.ALWAYS_UNPACKED", 2**18)
    rng = np.random.RandomState(0)
    content = [{"__key__": f"{i:08d}", "cls": b"%d" % rng.randint(1000)} for i in range(4000)]
    plain = Path(write_shard(tmp_path / "a.tar", content)).read_bytes()
    path = tmp_path / f"a.tar.{ending}"
    path.write_bytes(ENDINGS[ending](plain))
    assert len(plain) / path.stat().st_size > 80
    assert count_samples(str(path), Store()) == (4000, None)
    for emoji in expand(EMOJI_TRAIN):
        assert count_samples(emoji, Store())[1] is None


def large(path: Path, members: dict[str, int]) -> str:
    """A shard whose second sample has members of so many bytes, which take no room on the disk."""
    with path.open("wb") as file:
        for number, sizes in enumerate(({}, members, {})):
            for name, size in ({"txt": 0} | sizes).items():
                file.write(block(f"{number}.{name}".encode(), b"0", octal(size)))
                file.seek(-(-size // 512) * 512, os.SEEK_CUR)
            data = image_bytes(number)
            file.write(block(f"{number}.jpg".encode(), b"0", octal(len(data)), data))
        file.write(END)
    return str(path)


def test_a_sample_of_gigabytes_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = large(tmp_path / "a.tar", {f"{i}.txt": 255 * 2**20 for i in range(16)})
    captions = {f"{i}.txt": 1.0 for i in range(16)} | {"txt": 1.0}
    places, none = np.arange(3), np.zeros(3, np.int64)
    wanted = ReadRequest(Span(none, none, places))
    cause = "sample of more than 536870912 bytes"
    samples = Samples(
        [path], SampleDecoder(("image", "caption"), (16, 16), captions=captions), Store()
    )
    assert (cause, f"1 in {path}") in samples[wanted].skipped
    # Who does not read them does not mind them.
    assert Samples([path], SampleDecoder(("image",), (16, 16)), Store())[wanted].good == [0, 1, 2]
    with pytest.raises(SystemExit):
        main(["data", "check", "--workers", "1", path])
    assert f"{path}: 1: {cause}\n" in capsys.readouterr().out
    main(["data", "show", path])
    assert f"1: {cause}, such as 1 in {path}" in capsys.readouterr().out


def test_a_sample_of_very_many_members_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "a.tar")
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            add(tar, f"{number}.jpg", image_bytes(number))
            for name in range(1001 if number == 1 else 999):
                add(tar, f"{number}.{name}", b"")
    places, none = np.arange(3), np.zeros(3, np.int64)
    found = Samples([path], SampleDecoder(("image",), (16, 16)), Store())[
        ReadRequest(Span(none, none, places))
    ]
    cause = "sample of more than 1000 members"
    assert found.good == [0, 2] and [c for c, _ in found.skipped] == [cause]
    with pytest.raises(SystemExit):
        main(["data", "check", "--workers", "1", path])
    assert f"{path}: 1: {cause}\n" in capsys.readouterr().out
    main(["data", "show", path])
    assert cause in capsys.readouterr().out
    assert [raw["__key__"] for raw in read_shard(path)] == ["0", "2"]
