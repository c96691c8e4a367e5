"""Remote shards through the cache: servers that fail, stall and go away, and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.index import count_samples, counted, named, write_index
from lgpl.data.shards import read_shard
from lgpl.data.store import Store, Unreachable
from lgpl.errors import UserError
from tests.conftest import wait_until
from tests.data.test_datamodule import module, take, train
from tests.shards import samples, write_shard, write_shards


def cached(store: Store) -> list[Path]:
    return [p for p in Path(str(store.cache)).glob("*-*") if p.suffix == ".tar"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_connection_costs_no_sample(
    tmp_path: Path, serve: Any, store: Store, workers: int
) -> None:
    write_shards(tmp_path / "data", [4] * 30)
    server = serve(tmp_path / "data", failing=0.2)
    urls = f"{server.url}/{{0000..0029}}.tar"
    data = module(train=urls, num_workers=workers, epoch_samples=120, store=store, shuffle=20)
    assert sorted(take(train(data), 30)) == [f"{i:05d}" for i in range(120)]
    assert sum(server.failed.values()) >= 2


def test_a_shard_is_fetched_once_for_all_readers(tmp_path: Path, serve: Any, store: Store) -> None:
    path = write_shards(tmp_path / "data", [10])[0]
    server = serve(tmp_path / "data")
    threads = [
        threading.Thread(target=store.open, args=(f"{server.url}/0000.tar",)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests["/0000.tar"] == 1
    assert [p.read_bytes() for p in cached(store)] == [Path(path).read_bytes()]


def test_what_is_not_there_is_skipped_and_counted(tmp_path: Path, serve: Any, store: Store) -> None:
    write_shards(tmp_path / "data", [8, 8])
    server = serve(tmp_path / "data")
    index = tmp_path / "index.json"
    write_index(index, {f"{server.url}/{i:04d}.tar": 8 for i in range(3)})
    loader = train(module(train=str(index), epoch_samples=16, store=store, max_bad=0.5))
    assert sorted(take(loader, 4)) == [f"{i:05d}" for i in range(16)]
    take(loader, 1)
    assert set(loader.skipped) == {"sample of a damaged or vanished shard"}
    assert server.requests["/0002.tar"] <= 2  # a 404 is an answer: no further tries
    with pytest.raises(Unreachable, match="not fetched after 2 tries"):
        Store(cache=store.cache, timeout=0.2, retries=1).open("http://127.0.0.1:9/a.tar")


def test_counts_of_remote_shards(tmp_path: Path, serve: Any, store: Store) -> None:
    write_shards(tmp_path / "data", [3, 5])
    (tmp_path / "data/0001_stats.json").write_text('{"successes": 5, "count": 9}')
    server = serve(tmp_path / "data")
    urls = f"{server.url}/{{0000..0001}}.tar"
    counts, faults = counted(named(urls, "data.train", store), "data.train", store)
    assert list(counts.values()) == [3, 5] and not faults
    assert server.requests["/0001.tar"] == 0  # the statistics told
    (tmp_path / "data/index.json").write_text('{"lgpl_index": 1, "shards": {"0000.tar": 3}}')
    assert named(f"{server.url}/index.json", "data.train", store) == {f"{server.url}/0000.tar": 3}
    assert count_samples(f"{server.url}/gone.tar", store)[0] == 0


def test_the_longest_unused_make_room(tmp_path: Path, serve: Any) -> None:
    paths = write_shards(tmp_path / "data", [10] * 4)
    size = Path(paths[0]).stat().st_size
    server = serve(tmp_path / "data")
    store = Store(cache=str(tmp_path / "cache"), cache_gb=2.5 * size / 1e9)
    for number in (0, 1, 0, 2):
        store.open(f"{server.url}/{number:04d}.tar")
        time.sleep(0.02)
    assert {p.name.split("-")[1] for p in cached(store)} == {"0000.tar", "0002.tar"}


def test_a_shard_deleted_while_it_is_read_stays_readable(
    tmp_path: Path, serve: Any, store: Store
) -> None:
    write_shards(tmp_path / "data", [10])
    reading = read_shard(f"{serve(tmp_path / 'data').url}/0000.tar", store)
    keys = [next(reading)["__key__"]]
    for path in cached(store):
        path.unlink()
    keys += [raw["__key__"] for raw in reading]
    assert keys == [f"{i:05d}" for i in range(10)]


def test_killed_while_it_fetches(tmp_path: Path, serve: Any, store: Store) -> None:
    write_shards(tmp_path / "data", [10])
    server = serve(tmp_path / "data", failing=1.0)
    server.rng.choice = lambda _: "stall"  # type: ignore[method-assign]
    url = f"{server.url}/0000.tar"
    code = f"from lgpl.data.store import Store; Store(cache={store.cache!r}).open({url!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: any(Path(str(store.cache)).glob("*.partial")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not cached(store)
    server.failing = 0.0
    assert store.open(url).read() == (tmp_path / "data/0000.tar").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path, serve: Any, small_disk: Path) -> None:
    """Shards that do not fit together are read in turn; one that never fits is skipped."""
    (tmp_path / "data").mkdir()
    for shard in range(10):
        content = samples(8, 8 * shard)
        for sample in content:
            sample["png"] = bytes(4000 if shard < 9 else 100_000)
        write_shard(tmp_path / f"data/{shard:04d}.tar", content)
    assert (tmp_path / "data/0000.tar").stat().st_size * 9 > 700 * 1024
    server = serve(tmp_path / "data")
    index = tmp_path / "index.json"
    write_index(index, {f"{server.url}/{i:04d}.tar": 8 for i in range(9)})
    store = Store(cache=str(small_disk), retries=2)
    loader = train(module(train=str(index), epoch_samples=72, store=store))
    assert sorted(take(loader, 18)) == [f"{i:05d}" for i in range(72)]
    damage = count_samples(f"{server.url}/0009.tar", store)[1]
    assert damage and "the cache's disk is full" in damage
    write_index(index, {f"{server.url}/{i:04d}.tar": 8 for i in (0, 9)})
    loader = train(module(train=str(index), epoch_samples=72, store=store, max_bad=0.9))
    assert len(take(loader, 4)) == 16
    assert loader.skipped["sample of a damaged or vanished shard"] >= 8


def test_a_cache_that_cannot_be_written(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "file").write_text("no folder")
    write_shards(tmp_path / "data", [8])
    url = f"{serve(tmp_path / 'data').url}/0000.tar"
    damage = count_samples(url, Store(cache=str(tmp_path / "file")))[1]
    assert damage and str(tmp_path / "file") in damage


def test_pipes_run_only_where_they_are_allowed(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "data", [8])[0]
    with pytest.raises(UserError, match=r"would run a shell command .* data.store.allow_pipe"):
        train(module(train=f"pipe:cat {path}"))
    store = Store(cache=str(tmp_path / "cache"), allow_pipe=True, retries=0)
    loader = train(module(train=f"pipe:cat {path}", store=store, epoch_samples=8))
    assert sorted(take(loader, 2)) == [f"{i:05d}" for i in range(8)]
    number, damage = count_samples("pipe:cat /nowhere", store)
    assert number == 0 and damage and "status 1" in damage


def test_names_that_are_quoted(tmp_path: Path, serve: Any, store: Store) -> None:
    folder = tmp_path / "data/été 1"
    folder.mkdir(parents=True)
    write_shard(folder / "a b.tar", samples(3))
    url = serve(tmp_path / "data").url
    assert len(list(read_shard(f"{url}/été 1/a b.tar?token=x&y=%20", store))) == 3
    assert len(list(read_shard(f"{url}/%C3%A9t%C3%A9%201/a%20b.tar", store))) == 3


def test_what_comes_next_is_fetched_meanwhile(tmp_path: Path, serve: Any, store: Store) -> None:
    write_shards(tmp_path / "data", [8] * 3)
    server = serve(tmp_path / "data")
    index = tmp_path / "index.json"
    write_index(index, {f"{server.url}/{i:04d}.tar": 8 for i in range(3)})
    loader = train(module(train=str(index), epoch_samples=24, store=store))
    first = next(iter(loader))
    assert first["key"][0] == "00000"
    wait_until(lambda: bool(server.requests["/0001.tar"]))
    assert server.requests["/0001.tar"] == 1 and not server.requests["/0002.tar"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retries": -1}, "data.store.retries: -1 is below 0"),
        ({"timeout": 0}, "data.store.timeout: 0 is below"),
        ({"cache_gb": -1}, "data.store.cache_gb: -1 is below 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Store(**options)
