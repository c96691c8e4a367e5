"""The cache folder: whose it is, what in it is believed, and what is deleted."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.cache import ABANDONED, RECORD, ShardCache
from lgpl.data.index import named
from lgpl.data.store import Store, Unreachable
from lgpl.errors import UserError
from tests.shards import write_shards

HOUR_AGO = time.time() - 2 * ABANDONED


@pytest.fixture
def fetched(tmp_path: Path, serve: Any, store: Store) -> tuple[Any, str, Path, bytes]:
    """A server, a URL that was fetched from it, where that is kept, and its bytes."""
    path = write_shards(tmp_path / "data", [3])[0]
    server = serve(tmp_path / "data")
    url = f"{server.url}/0000.tar"
    store.open(url).close()
    return server, url, kept(tmp_path / "cache")[0], Path(path).read_bytes()


def kept(folder: Path) -> list[Path]:
    """Shards with a record beside them."""
    return sorted(p for p in folder.iterdir() if p.with_name(p.name + RECORD).exists())


def written(file: Any) -> str:
    file.write(b"x" * 1000)
    return '"tag"'


# whose names


USERS_OWN = [
    "my-own-photos.tar",
    "0123456789abcdef-0000.tar",  # as caches were once named
    f"{'0' * 32}-0000.tar",
    f"{'a' * 64}-0000.tar",
    "notes-old.txt",
    "a-b.partial",
    "a-b.lock",
    f"{'0' * 32}-0000.tar.lock",
    "0000.tar.0123456789ab.partial",
]


def test_only_its_own_files_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = ShardCache(folder, gigabytes=0.0)
    cache.make()
    for name in USERS_OWN:
        (folder / name).write_bytes(b"x" * 1000)
        os.utime(folder / name, (HOUR_AGO, HOUR_AGO))
    (folder / "my-folder").mkdir()
    (folder / "my-link").symlink_to(tmp_path)
    for number in range(3):
        cache.add(f"http://host/{number}.tar", written)
    assert len(kept(folder)) == 1
    assert set(USERS_OWN) < set(os.listdir(folder)) and (folder / "my-folder").is_dir()
    assert (folder / "my-link").is_symlink()


def test_links_and_folders_of_its_names_are_left_when_room_is_made(tmp_path: Path) -> None:
    folder, target = tmp_path / "cache", tmp_path / "target"
    target.write_bytes(b"x" * 1000)
    cache = ShardCache(folder, gigabytes=0.0)
    cache.make()
    cache.add("http://host/0.tar", written)
    (own,) = kept(folder)
    own.unlink()
    own.symlink_to(target)
    cache.add("http://host/1.tar", written)
    assert own.is_symlink() and target.read_bytes() == b"x" * 1000
    own.unlink()
    own.mkdir()
    cache.add("http://host/2.tar", written)
    assert own.is_dir() and len(kept(folder)) == 2


def test_what_killed_processes_left_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = ShardCache(folder, gigabytes=1.0)
    cache.make()
    cache.add("http://host/0.tar", written)
    (own,) = kept(folder)
    old, new = (folder / f"{own.name}.{digit * 12}.partial" for digit in "01")
    alone = folder / f"{'f' * 32}-x.tar{RECORD}"
    for path in (old, new, alone):
        path.write_bytes(b"half")
    for path in (old, alone):
        os.utime(path, (HOUR_AGO, HOUR_AGO))
    cache.add("http://host/1.tar", written)
    assert not old.exists() and not alone.exists() and new.exists() and len(kept(folder)) == 2


# whose folder


def test_the_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "lgpl" / "shards"
    before = os.umask(0)
    try:
        ShardCache(folder, 1.0).make()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (folder.parent.stat().st_mode | folder.parent.parent.stat().st_mode) & 0o022


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_others_can_write_to_is_refused(
    tmp_path: Path, mode: int, linked: bool
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    named_folder = folder
    if linked:
        named_folder = tmp_path / "link"
        named_folder.symlink_to(folder)
    store = Store(cache=str(named_folder), retries=0)
    says = f"data.store.cache: {named_folder} has mode {mode:o}, .* `chmod 700 {named_folder}`.$"
    with pytest.raises(UserError, match=says):
        store.open("http://127.0.0.1:9/a.tar")
    with pytest.raises(UserError, match=says):  # and before any worker is started
        named("http://127.0.0.1:9/{0..3}.tar", "data.train", store)
    assert not list(folder.iterdir())
    folder.chmod(0o755)  # read by others, but written by none
    with pytest.raises(Unreachable, match="not fetched"):
        store.open("http://127.0.0.1:9/a.tar")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to give files away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(UserError, match=r"data.store.cache: .*theirs belongs to another user"):
        Store(cache=str(tmp_path / "theirs")).open("http://127.0.0.1:9/a.tar")


def test_the_command_says_so_in_one_line(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    said = fails("data", "check", "http://127.0.0.1:9/a.tar", "--store.cache", f"{tmp_path}/shared")
    assert said.startswith(f"data.store.cache: {tmp_path}/shared has mode 777")


# what is believed


def planted(path: Path, kind: str, target: Path) -> None:
    path.unlink()
    if kind == "link":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(target.with_name("nowhere"))
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_bytes(b"")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "truncated":
        path.write_bytes(target.read_bytes()[:700])
    elif kind == "longer":
        path.write_bytes(target.read_bytes() + b"x")
    elif kind == "theirs":
        path.write_bytes(target.read_bytes())
        os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    "kind", ["link", "dangling", "folder", "pipe", "truncated", "longer", "theirs", "gone"]
)
@pytest.mark.parametrize("record", [False, True])
def test_what_is_not_as_it_was_fetched_is_fetched_again(
    tmp_path: Path, store: Store, fetched: Any, kind: str, record: bool
) -> None:
    if kind == "theirs" and os.geteuid() != 0:
        pytest.skip("needs the right to give files away")
    server, url, place, data = fetched
    target = tmp_path / "target.tar"
    target.write_bytes(data)  # the very content: it is not followed to, whatever it holds
    path = place.with_name(place.name + RECORD) if record else place
    planted(path, kind, target)
    with store.open(url) as file:
        assert file.read() == data
    assert server.requests["/0000.tar"] == 2 and target.read_bytes() == data
    assert not path.is_symlink() and path.is_file() and kept(tmp_path / "cache") == [place]
    store.open(url).close()
    assert server.requests["/0000.tar"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"url": "0" * 64}, {"size": 1}, {"size": "10240"}, {"size": None}, {"lgpl_cached_shard": 2},
        "[]", "[" * 4000, "", '{"size": 1e999}', "null", "\xff",
    ],
)  # fmt: skip
def test_a_record_of_something_else(
    tmp_path: Path, store: Store, fetched: Any, change: dict[str, Any] | str
) -> None:
    server, url, place, data = fetched
    path = place.with_name(place.name + RECORD)
    record = json.loads(path.read_text())
    assert record["size"] == len(data) and record["etag"].strip('"')
    text = change if isinstance(change, str) else json.dumps(record | change)
    path.write_text(text, "latin-1")
    assert store.open(url).read() == data and server.requests["/0000.tar"] == 2
    assert json.loads(path.read_text()) == record


def test_no_secret_of_a_url_is_written_down(tmp_path: Path, serve: Any, store: Store) -> None:
    write_shards(tmp_path / "data", [3])
    port = serve(tmp_path / "data").server_address[1]
    store.open(f"http://me:secret1@127.0.0.1:{port}/0000.tar?signature=secret2").close()
    (place,) = kept(tmp_path / "cache")
    text = place.name + place.with_name(place.name + RECORD).read_text()
    assert "secret" not in text and place.name.endswith("-0000.tar")


@pytest.mark.parametrize("ending", [".lock", ".partial", RECORD])
def test_links_are_not_written_through(
    tmp_path: Path, store: Store, fetched: Any, ending: str
) -> None:
    _, url, place, data = fetched
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    place.unlink()
    trap = place.with_name(place.name + ending)
    trap.unlink(missing_ok=True)
    trap.symlink_to(target)
    assert store.open(url).read() == data
    assert target.read_bytes() == b"precious"


def test_partial_files_have_names_that_nobody_foresees(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1.0)
    cache.make()
    seen = set()

    def copy(file: Any) -> None:
        seen.update(path.name for path in cache.folder.glob("*.partial"))

    for _ in range(2):
        cache.add("http://host/0.tar", copy)
    assert len(seen) == 2 and not list(cache.folder.glob("*.partial"))


def reads(url: str, data: Path, cache: Path, first: int) -> None:
    store = Store(cache=str(cache), cache_gb=0.0)
    for number in range(first, first + 40):
        name = f"{number % 4:04d}.tar"
        assert store.open(f"{url}/{name}").read() == (data / name).read_bytes()


def test_several_processes_with_room_for_one_shard(tmp_path: Path, serve: Any) -> None:
    """Each deletes what the others fetched, and all read what they ask for."""
    write_shards(tmp_path / "data", [3] * 4)
    url = serve(tmp_path / "data").url
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=reads, args=(url, tmp_path / "data", tmp_path / "cache", first))
        for first in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
