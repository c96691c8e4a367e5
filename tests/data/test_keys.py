"""Shards that lgpl writes can be unpacked anywhere, whatever keys the samples came with."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lgpl.data.shards import read_shard
from lgpl.data.writer import ShardWriter, clean_extension, clean_key


def written(path: Path, keys: list[str], names: tuple[str, ...] = ("txt", "cls")) -> list[str]:
    """Keys of a shard as they are read back."""
    writer = ShardWriter(path)
    for number, key in enumerate(keys):
        writer.write(key, dict.fromkeys(names, b"%d" % number))
    writer.close()
    found = list(read_shard(str(path)))
    # Each sample is read back as one of its own, with its own members.
    assert [set(raw.values()) - {raw["__key__"], str(path)} for raw in found] == [
        {b"%d" % number} for number in range(len(keys))
    ]
    return [raw["__key__"] for raw in found]


def unpacked(path: Path, folder: Path) -> set[str]:
    """Names of the files that Python's own filter unpacks, all of which it must accept."""
    before = {p for p in folder.parent.rglob("*") if not p.is_relative_to(folder)}
    folder.mkdir()
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
        count = len(tar.getmembers())
    assert before == {p for p in folder.parent.rglob("*") if not p.is_relative_to(folder)}
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert len(files) <= count
    return files


@pytest.mark.parametrize(
    ("key", "cleaned"),
    [
        ("00000", "00000"),
        ("n01440764_x y-1", "n01440764_x y-1"),
        ("www.site.org/a/größe 狐", "www.site.org/a/größe 狐"),
        ("..", "_"),
        ("../../etc/passwd", "_/_/etc/passwd"),
        ("a/../../b", "a/_/_/b"),
        ("/etc/passwd", "etc/passwd"),
        ("//host/share", "host/share"),
        ("./a", "a"),
        ("a/./b", "a/b"),
        (".", "_"),
        ("", "_"),
        ("a/", "a/_"),
        ("..\\..\\b", "______b"),
        ("C:\\b", "C__b"),
        ("C:/b", "C_/b"),
        ("0.5", "0_5"),
        ("a\x00b\nc\x1b[2Jd\x7fe\x85f", "a_b_c_[2Jd_e_f"),
        ("a\ud800b", "a_b"),
        ("~/a", "~/a"),
    ],
)
def test_keys(tmp_path: Path, key: str, cleaned: str) -> None:
    assert clean_key(key) == cleaned == clean_key(cleaned)
    assert written(tmp_path / "a.tar", [key]) == [cleaned]
    assert unpacked(tmp_path / "a.tar", tmp_path / "out") == {f"{cleaned}.txt", f"{cleaned}.cls"}


def test_keys_too_long_for_a_path(tmp_path: Path) -> None:
    keys = ["x" * 300, "x" * 299 + "y", "狐" * 100, "a/" * 600 + "b", "x" * 200, "../" * 2000]
    found = written(tmp_path / "a.tar", keys)
    assert len(set(found)) == 6 and found[4] == keys[4]
    assert len(unpacked(tmp_path / "a.tar", tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("txt", "txt"),
        ("short.text.npy", "short.text.npy"),
        ("", "x"),
        (".", "."),
        ("../../x", ".._.._x"),
        ("a\\b\n", "a_b_"),
        ("__key__", "x__key__"),
    ],
)
def test_extensions(tmp_path: Path, name: str, cleaned: str) -> None:
    assert clean_extension(name) == cleaned
    written(tmp_path / "a.tar", ["k"], (name,))
    assert unpacked(tmp_path / "a.tar", tmp_path / "out") == {f"k.{cleaned}"}


def test_extensions_too_long_keep_their_end() -> None:
    one, two = clean_extension("a" * 300 + ".text.npy"), clean_extension("b" * 300 + ".text.npy")
    assert one != two and one.endswith(".text.npy") and len(one) < 50


def test_neighbours_stay_two_samples(tmp_path: Path) -> None:
    """Sample by sample, and where the one between them was skipped."""
    keys = ["a", "a", "a", "a_2", "0.1", "0.2", "0_1", "../x", "_/x", "b", "a", "b"]
    assert written(tmp_path / "a.tar", keys) == [
        "a", "a_2", "a", "a_2", "0_1", "0_2", "0_1", "_/x", "_/x_2", "b", "a", "b"
    ]  # fmt: skip


def test_no_file_is_where_another_has_a_folder(tmp_path: Path) -> None:
    keys = ["a", "a.txt/b", "a.txt/c", "d.txt/e", "d", "d", "f/g", "f/g.txt/h.cls/i"]
    found = written(tmp_path / "a.tar", keys)
    assert found[0] == "a" and found[3] == "d.txt/e" and found[4] != "d"
    assert len(unpacked(tmp_path / "a.tar", tmp_path / "out")) == 2 * len(keys)


LETTERS = st.sampled_from([*"ab./\\:_~ \0\n", "..", "/..", "../", "狐", "\ud800", "C:", ".txt/"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    keys=st.lists(st.lists(LETTERS, max_size=8).map("".join) | st.text(max_size=300), max_size=8),
    names=st.lists(
        st.lists(LETTERS, max_size=3).map("".join) | st.text(max_size=80), min_size=1, max_size=2
    ),
)
def test_any_keys(keys: list[str], names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        assert len(written(path, keys, tuple(names))) == len(keys)
        unpacked(path, Path(folder) / "out")
