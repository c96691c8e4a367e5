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

from lgpl.data.tar import MOST_MEMBERS, Table

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
        found.keys[i]: {name: data[o : o + size] for name, (o, size) in found.members(i).items()}
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
        add(tar, "a.jpg", b"image")
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            add(tar, "a.png", b"", type=kind, linkname="/etc/passwd")
        add(tar, "README", b"no sample")
        add(tar, "a.txt", b"caption")
        add(tar, "../../etc/b.txt", b"a name, never a path")
        add(tar, ".hidden", b"")
    found = content(path)
    assert found.pop("a") == {"jpg": b"image", "txt": b"caption"}
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
        assert found.reach(3) and len(found.keys) == 5 and found.keys[3] == "3"
        assert not found.reach(50) and len(found) == 50


def block(name: bytes, kind: bytes, size: bytes, data: bytes = b"") -> bytes:
    """A header with any bytes as its size, and what follows it."""
    header = bytearray(512)
    header[: len(name)], header[124 : 124 + len(size)] = name, size
    header[156:157], header[257:265] = kind, b"ustar\x0000"
    mend(header, 0)
    return bytes(header) + data + bytes(-len(data) % 512)


def octal(number: int) -> bytes:
    return b"%011o\0" % number


END = bytes(1024)
WHOLE = block(b"0.jpg", b"0", octal(5), b"whole")
RECORDS = [
    b"1" * 4301 + b" path=a.jpg\n",
    b"0 path=a.jpg\n",
    b"00 path=a.jpg\n",
    b"3 path=a.jpg\n",
    b"-14 path=a.jpg\n",
    b"+14 path=a.jpg\n",
    b"1_4 path=a.jpg\n",
    b"99 path=a.jpg\n",
    b"9999999999999999999999 path=a.jpg\n",
    "१४ path=a.jpg\n".encode(),
    "¹⁴ path=a.jpg\n".encode(),
    b" path=a.jpg\n",
    b"path=a.jpg",
    b"12 path=a.jpg\n",
    b"\xff\xff\xff",
    b"14",
    b"14 ",
]


@pytest.mark.parametrize("records", RECORDS, ids=lambda records: repr(records[:12]))
def test_pax_records_that_are_none(tmp_path: Path, records: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(
        WHOLE * 2
        + block(b"x", b"x", octal(len(records)), records)
        + block(b"1.jpg", b"0", octal(4), b"lost")
        + END
    )
    found = table(path)
    assert found.damage and "no pax header at byte 2560" in found.damage
    # What comes before the damage counts, but for the sample that may have lost members.
    assert len(found) == 0 and not list(found.keys)


@pytest.mark.parametrize("kind", [b"0", b"7", b"x", b"g", b"L", b"K", b"5", b"2", b"S", b"?"])
@pytest.mark.parametrize(
    "size",
    [
        b"\x80" + b"\x7f" + bytes(10), b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0",
        b"+7777777777\0", b"7" * 12, b"9" * 12, b" " * 12, bytes(12), b"\0" + b"7" * 11,
        b"0x10", b"0o17", b"1_0_0", "١٢".encode(), b"\x80" + bytes(3) + b"\x80" + bytes(7),
        b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7,
    ],
)  # fmt: skip
def test_numbers_of_any_kind(tmp_path: Path, kind: bytes, size: bytes) -> None:
    """2**63 and more, negative ones, none at all: an early end, or a member inside of the file."""
    path = tmp_path / "a.tar"
    path.write_bytes(WHOLE + block(b"1.jpg", kind, size, b"x") + WHOLE + END)
    inside(table(path), path.stat().st_size)


def inside(found: Table, end: int) -> None:
    for sample in range(len(found)):
        for offset, size in found.members(sample).values():
            assert 512 <= offset <= offset + size <= end


def test_a_sample_of_very_many_members(tmp_path: Path) -> None:
    """Its table stays small, and the samples behind it are found."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(MOST_MEMBERS):
            add(tar, f"a.{number}", b"")
        for number in range(20_000):
            add(tar, f"b.{number}", b"")
        add(tar, "c.jpg", b"c")
    found = table(path)
    assert [found.keys[i] for i in range(len(found))] == ["a", "b", "c"]
    assert found.crowded == {1} and found.damage is None
    assert len(found.members(0)) == MOST_MEMBERS == len(found.members(1))
    assert set(found.members(2)) == {"jpg"}
