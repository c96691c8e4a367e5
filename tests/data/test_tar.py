"""Tables of tar files as other programs write them, and of damaged ones."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from webdataset import TarWriter

from lgpl.data.tar import Table

NAMES = ["00000", "a/b/00001", "é" * 20, "n" * 150, "folder/" * 20 + "x"]


def table(path: Path) -> Table:
    with open(path, "rb") as file:
        found = Table(file.fileno())
        len(found)
    return found


def content(path: Path) -> dict[str, dict[str, bytes]]:
    """Every sample's members, cut out of the file by the table alone."""
    found, data = table(path), path.read_bytes()
    assert found.damage is None
    return {
        found.key(i): {name: data[o : o + size] for name, (o, size) in found.members(i).items()}
        for i in range(len(found))
    }


def add(tar: tarfile.TarFile, name: str, data: bytes, **more: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("time", [0, 1234.5])
def test_as_python_writes_them(tmp_path: Path, form: int, time: float) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(NAMES):
            add(tar, f"{name}.jpg", bytes([number]) * (700 * number), mtime=time)
            add(tar, f"{name}.TXT", name.encode(), mtime=time)
    assert content(path) == {
        name: {"jpg": bytes([number]) * (700 * number), "txt": name.encode()}
        for number, name in enumerate(NAMES)
    }


def test_as_ustar_splits_long_names(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, NAMES[-1] + ".cls", b"3")
    assert content(path) == {NAMES[-1]: {"cls": b"3"}}


def test_as_webdataset_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with TarWriter(str(path)) as tar:
        tar.write({"__key__": "0.5", "txt": "a", "codes.npy": b"x"})
        tar.write({"__key__": "b", "cls": 3})
    assert content(path) == {"0": {"5.txt": b"a", "5.codes.npy": b"x"}, "b": {"cls": b"3"}}


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_as_gnu_tar_writes_them(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "in/some/folder"
    folder.mkdir(parents=True)
    for name in ("one.jpg", "one.txt", "two.jpg"):
        (folder / name).write_bytes(name.encode() * 300)
    (folder / "zlink.jpg").symlink_to("one.jpg")
    path = tmp_path / "a.tar"
    command = ["tar", f"--format={form}", "--sort=name", "-cf", str(path), "-C", str(tmp_path)]
    subprocess.run([*command, "in"], check=True)
    found = content(path)
    assert list(found) == ["in/some/folder/one", "in/some/folder/two"]
    assert found["in/some/folder/one"]["txt"] == b"one.txt" * 300


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", b"picture")
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            add(tar, "a.png", b"", type=kind, linkname="/etc/passwd")
        add(tar, "README", b"no sample")
        add(tar, "a.txt", b"caption")
        add(tar, "../../etc/b.txt", b"a name, never a path")
        add(tar, ".hidden", b"")
    found = content(path)
    assert found.pop("a") == {"jpg": b"picture", "txt": b"caption"}
    assert found == {"../../etc/b": {"txt": b"a name, never a path"}, "": {"hidden": b""}}


def test_sizes_in_base_256(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", b"12345")
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    mend(data, 0)
    path.write_bytes(data)
    assert content(path) == {"a": {"jpg": b"12345"}}


def mend(data: bytearray, offset: int) -> None:
    """Make the checksum of a header right again."""
    header = data[offset : offset + 512]
    header[148:156] = b" " * 8
    data[offset + 148 : offset + 156] = b"%06o\0 " % sum(header)


@pytest.mark.parametrize("cut", [1, 100, 512, 700, 1100, 2000, 3000, 5000])
def test_cut_anywhere_gives_whole_samples_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            add(tar, f"{number}.jpg", b"j" * 600)
            add(tar, f"{number}.txt", b"t")
    os.truncate(path, cut)
    found = table(path)
    assert found.damage and "cut off" in found.damage
    assert len(found) == cut // (512 + 1024 + 512 + 512 + 512)
    assert all(set(found.members(i)) == {"jpg", "txt"} for i in range(len(found)))


@pytest.mark.parametrize("size", [b"00000000000x", b"77777777777\0", b"\x80" + b"\xff" * 11])
def test_absurd_sizes(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "0.jpg", b"whole")
        add(tar, "1.jpg", b"lost")
        add(tar, "2.jpg", b"behind")
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = size
    mend(data, 1024)
    path.write_bytes(data)
    found = table(path)
    assert found.damage and len(found) <= 1


def test_headers_are_read_as_far_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(50):
            add(tar, f"{number}.jpg", b"")
    with open(path, "rb") as file:
        found = Table(file.fileno())
        assert found.reach(3) and found.seen == 5 and found.key(3) == "3"
        assert not found.reach(50) and len(found) == 50
