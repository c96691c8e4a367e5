"""Shards and what stands beside them appear whole, or not at all."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import webdataset
from webdataset import TarWriter

from lgpl.callbacks.code_shards import CodeShardWriter, code_shard_name
from lgpl.cli import main
from lgpl.data.index import write_index
from lgpl.data.shards import read_shard
from lgpl.data.writer import ShardWriter, remove_left
from tests.commands.test_data_pack import class_folder, pack
from tests.shards import EMOJI_VAL, samples, write_shard


def test_names_of_code_shards() -> None:
    names = {
        "a/train-0000.tar.gz": "train-0000.tar",
        "https://host/a/train-0000.tar?sig=a/b.c": "train-0000.tar",
        "s3://bucket/a?b.tar": "a?b.tar",
    }
    assert {shard: code_shard_name(shard) for shard in names} == names


def test_a_shard_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/a.tar"
    writers = [ShardWriter(path), ShardWriter(path)]  # each in a file of its own
    for number, writer in enumerate(writers):
        writer.write("a", {"txt": b"%d" % number})
    assert len(os.listdir(path.parent)) == 2 and not path.exists()
    writers[0].close()
    assert [raw["txt"] for raw in read_shard(str(path))] == [b"0"]
    writers[1].discard()
    assert os.listdir(path.parent) == ["a.tar"]
    assert [raw["txt"] for raw in read_shard(str(path))] == [b"0"]


def test_bytes_are_those_of_webdataset(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.tar")
    with TarWriter(str(tmp_path / "b.tar"), encoder=False, mtime=0) as tar:
        for sample in samples(3):
            tar.write(sample)
            writer.write(sample.pop("__key__"), sample)
    writer.close()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.filterwarnings("error")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path / "a.tar")
    writer.write("a", {"txt": b"a"})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer._partial.file, "write", full, raising=False)
    with pytest.raises(OSError):
        writer.write("b", {"txt": bytes(10**5)})
    writer.discard()
    assert not os.listdir(tmp_path)


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    callback = CodeShardWriter(str(tmp_path))
    callback._writer = ShardWriter(tmp_path / "a.tar")
    callback.on_exception(None, None, KeyboardInterrupt())
    assert not os.listdir(tmp_path)
    CodeShardWriter(str(tmp_path)).on_exception(None, None, KeyboardInterrupt())


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """In a folder of many shards, too."""
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "a" / f"{i:05d}.tar" for i in range(3000)]
    ours, theirs = (f"{p}.0123456789ab.partial" for p in (paths[7], tmp_path / "a/other.tar"))
    for path in (ours, theirs):
        Path(path).write_bytes(b"")
    begin = time.process_time()
    remove_left([*paths, tmp_path / "b/none.tar"])
    assert os.listdir(tmp_path / "a") == [Path(theirs).name]
    assert time.process_time() - begin < 1


@pytest.fixture
def precious(tmp_path: Path) -> Any:
    """A file that links lead to, and that nobody may write through."""
    path = tmp_path / "precious"
    path.write_bytes(b"precious")
    yield path
    assert path.read_bytes() == b"precious"


def test_nothing_is_written_through_links(
    tmp_path: Path, precious: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folder(tmp_path / "in", {"a": 3})
    out = tmp_path / "out"
    out.mkdir()
    names = (".pack.json", "classes.txt", "train.json", "sheet.png")
    for name in (*names, *(f"{name}.partial" for name in (*names, "train-0.tar"))):
        (out / name).symlink_to(precious)
    pack(tmp_path / "in", out, "--val", 0)
    main(["data", "show", EMOJI_VAL, "--samples", "9", "--out", str(out / "sheet.png")])
    assert not any((out / name).is_symlink() for name in names)


def test_an_index_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, shard = tmp_path / "train.json", write_shard(tmp_path / "a.tar", samples(2))
    write_index(index, {shard: 2})
    before = index.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lgpl.atomic.os.replace", full)
    with pytest.raises(OSError):
        write_index(index, {shard: 3})
    assert index.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a.tar", "train.json"]


def test_webdataset_reads_what_lgpl_writes(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.tar")
    for i in range(3):
        writer.write(f"{i:03d}", {"jpg": b"image %d" % i, "txt": b"caption", "cls": b"%d" % i})
    writer.close()
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["000", "001", "002"]
    assert [(sample["jpg"], sample["cls"]) for sample in found][1] == (b"image 1", b"1")
