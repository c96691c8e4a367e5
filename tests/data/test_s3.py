"""Shards in a real S3 server on loopback."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.index import count_samples, counted, named
from lgpl.data.store import Store
from tests.data.test_datamodule import module, take, train
from tests.shards import write_shards

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """s3fs on a bucket `shards` with three shards of eight samples."""
    import s3fs

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # its buckets outlive a server
    s3fs.S3FileSystem.clear_instance_cache()  # it knows the server of the test before
    s3 = s3fs.S3FileSystem()
    s3.mkdir("shards")
    for path in write_shards(tmp_path / "data", [8, 8, 8]):
        s3.put(path, f"shards/{Path(path).name}")
    yield s3
    running.stop()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(cache=str(tmp_path / "cache"), timeout=10, retries=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_bucket(bucket: Any, store: Store, workers: int) -> None:
    shards = "s3://shards/{0000..0002}.tar"
    loader = train(module(train=shards, num_workers=workers, epoch_samples=24, store=store))
    assert sorted(take(loader, 6)) == [f"{i:05d}" for i in range(24)]


def test_index_and_statistics_in_a_bucket(bucket: Any, store: Store) -> None:
    bucket.pipe("shards/index.json", json.dumps({"lgpl_index": 1, "shards": {"0001.tar": 8}}))
    assert named("s3://shards/index.json", "data.train", store) == {"s3://shards/0001.tar": 8}
    bucket.pipe("shards/0002_stats.json", b'{"successes": 5}')
    shards: dict[str, int | None] = dict.fromkeys(f"s3://shards/000{i}.tar" for i in (0, 2))
    assert list(counted(shards, "data.train", store)[0].values()) == [8, 5]


def test_what_a_bucket_does_not_have(bucket: Any, store: Store) -> None:
    for url in ("s3://shards/gone.tar", "s3://nowhere/0000.tar"):
        number, damage = count_samples(url, store)
        assert number == 0 and damage and "cannot be read" in damage
