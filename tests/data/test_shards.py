"""Shard lists: patterns, reading, faults, splitting."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.index import count_samples
from lgpl.data.shards import OpenShards, Shard, expand, read_shard
from lgpl.data.store import Store
from lgpl.errors import UserError
from tests.shards import samples, write_shard, write_shards


def test_patterns(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [1, 1, 1])
    assert expand(str(tmp_path / "*.tar")) == paths
    assert expand(str(tmp_path / "{0000..0002}.tar")) == paths
    assert expand([paths[2], str(tmp_path / "000[0-1].tar")]) == [paths[2], *paths[:2]]
    assert expand(str(tmp_path / "{0000,0001}.*")) == paths[:2]
    urls = expand("http://host/{000..002}.tar")
    assert urls == [f"http://host/00{i}.tar" for i in range(3)]


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
    assert shard.sizes(4)["cls"] == 1
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
