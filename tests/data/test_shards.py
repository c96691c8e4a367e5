"""Shard lists: patterns, reading, faults, splitting."""

from __future__ import annotations

import random
import socketserver
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from lgpl.data.shards import Place, count_samples, expand, read_shard, share, shuffled
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
    faults: Counter[str] = Counter()
    read = list(read_shard(path, faults))
    assert [raw["__key__"] for raw in read] == [f"{i:05d}" for i in range(5)]
    assert {k: v for k, v in read[3].items() if not k.startswith("__s")} == samples(5)[3]
    assert count_samples(path, faults) == 5 and not faults


def test_truncated_shard_gives_what_is_whole_and_counts(tmp_path: Path) -> None:
    path = Path(write_shard(tmp_path / "a.tar", samples(5)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    faults: Counter[str] = Counter()
    keys = [raw["__key__"] for raw in read_shard(str(path), faults)]
    assert 0 < len(keys) < 5 and count_samples(str(path), Counter()) == len(keys)
    (cause,) = faults
    assert f"{path} is damaged" in cause and f"after {len(keys)} samples" in cause


@pytest.mark.parametrize("content", [b"", bytes(10240)], ids=["no bytes", "no members"])
def test_empty_shard_is_counted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.tar"
    path.write_bytes(content)
    faults: Counter[str] = Counter()
    assert list(read_shard(str(path), faults)) == [] and count_samples(str(path), Counter()) == 0
    assert list(faults) == [f"{path} holds no samples"]


def test_http(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", samples(4))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with socketserver.ThreadingTCPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        faults: Counter[str] = Counter()
        assert len(list(read_shard(f"{base}/a.tar", faults))) == 4
        assert count_samples(f"{base}/a.tar", faults) == 4 and not faults
        assert list(read_shard(f"{base}/gone.tar", faults)) == []
        assert "gone.tar" in next(iter(faults))
        server.shutdown()


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 7])
def test_readers_share_without_overlap(readers: int) -> None:
    sizes = {"a": 5, "b": 8, "c": 3}
    taken = [
        (shard, index)
        for reader in range(readers)
        for shard, first, stride in share(list(sizes), Place(reader, readers))
        for index in range(first, sizes[shard], stride)
    ]
    assert sorted(taken) == [(shard, i) for shard, n in sizes.items() for i in range(n)]


def test_shuffle_buffer_loses_nothing_and_repeats_by_seed() -> None:
    items = [{"__key__": str(i)} for i in range(50)]
    orders = [list(shuffled(items, 10, random.Random(seed))) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(i["__key__"] for i in orders[0]) == sorted(i["__key__"] for i in items)
    assert list(shuffled(items, 0, random.Random(1))) == items
