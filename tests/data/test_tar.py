"""Tables of tar files as other programs write them, and of damaged ones."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
from webdataset import TarWriter

from lgpl.data.members import BadSample
from lgpl.data.shards import Shard
from lgpl.data.store import Store
from lgpl.data.tar import MOST_MEMBERS, Table

NAMES = ["00000", "a/b/00001", "é" * 20, "n" * 150, "folder/" * 20 + "x"]


def table(path: Path) -> Table:
    with open(path, "rb") as file:
        found = Table(file.fileno())
        len(found)
    return found


def content(path: Path) -> dict[str, dict[str, bytes]]:
    """Every sample's members, read by the table alone."""
    with open(path, "rb") as file:
        found = Table(file.fileno())
        samples = {
            found.keys[i]: {name: found.content(*at) for name, at in found.members(i).items()}
            for i in range(len(found))
        }
    assert found.damage is None
    return samples


def by_tarfile(path: Path) -> dict[str, dict[str, bytes]]:
    """The same by Python's tarfile, whatever the order of the members."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            if info.isreg() or info.islnk():
                folder, _, base = info.name.rpartition("/")
                stem, dot, extension = base.partition(".")
                file = tar.extractfile(info)
                assert file is not None and dot
                key = f"{folder}/{stem}" if folder else stem
                samples.setdefault(key, {})[extension.lower()] = file.read()
    return samples


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
        for hidden in ("._a.jpg", ".hidden", "./.cache/a.jpg", "x/._c.txt", "..d.txt"):
            add(tar, hidden, b"no data")
            add(tar, f"{len(hidden)}/c.txt", b"c")
        add(tar, "./e.jpg", b"e")
        add(tar, "./._e.txt", b"no data")
        add(tar, "./e.txt", b"e")
    found = content(path)
    assert found.pop("a") == {"jpg": b"image", "txt": b"caption"}
    assert found.pop("../../etc/b") == {"txt": b"a name, never a path"}
    assert found.pop("./e") == {"jpg": b"e", "txt": b"e"}
    assert set(found) == {"7/c", "14/c", "9/c"}


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


def files(folder: Path) -> Path:
    """Samples as a tar program finds them on a disk: with holes, second names, odd letters."""
    (folder / "deep" / ("n" * 120)).mkdir(parents=True)
    for i in range(4):
        (folder / f"{i}.txt").write_bytes(b"%d" % i * (i * 700))
        with open(folder / f"{i}.npy", "wb") as file:
            file.write(b"head")
            file.seek(200_000 * i, os.SEEK_CUR)
            file.write(b"tail")
        os.link(folder / f"{i}.txt", folder / f"{i}.second.txt")
    (folder / "deep" / ("n" * 120) / "long.txt").write_bytes(b"a long name")
    for letter in (b"\xe0", b"\xe1", b"\xe8", b"\xe9"):
        for kind in (b"jpg", b"txt"):
            with open(
                os.path.join(os.fsencode(folder), b"caf" + letter + b"." + kind), "wb"
            ) as file:
                file.write(letter + kind)
    return folder


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax"])
@pytest.mark.parametrize("more", [[], ["--sparse"], ["--sparse", "--sparse-version=0.1"]])
def test_as_gnu_tar_writes_files(tmp_path: Path, form: str, more: list[str]) -> None:
    path, source = tmp_path / "a.tar", files(tmp_path / "in")
    names = sorted(os.listdir(os.fsencode(source)))
    command = ["tar", "-C", source, f"--format={form}", "-cf", path, *more, *names]
    subprocess.run(command, check=True)
    found, expected = content(path), by_tarfile(path)
    assert len(found) == len(expected) == 9
    assert sorted(map(str, found.values())) == sorted(map(str, expected.values()))
    assert found["3"]["npy"] == (source / "3.npy").read_bytes()
    assert found["3"]["second.txt"] == found["3"]["txt"] == b"3" * 2100


def test_as_gnu_tar_writes_backups(tmp_path: Path) -> None:
    """With the lists of its folders, of a kind that no other program writes."""
    path, source = tmp_path / "a.tar", files(tmp_path / "in")
    state = tmp_path / "state"
    command = ["tar", "-C", source, f"--listed-incremental={state}", "--sort=name", "-cf", path]
    subprocess.run([*command, "."], check=True)
    assert b"D" in {path.read_bytes()[156:157]}
    assert content(path)["./3"]["npy"] == (source / "3.npy").read_bytes()


def test_names_that_are_not_utf8_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for letter in "àáèé":
            add(tar, f"caf{letter}.jpg", letter.encode())
            add(tar, f"caf{letter}.txt", letter.encode())
    assert list(content(path).values()) == [{"jpg": c.encode(), "txt": c.encode()} for c in "àáèé"]
    assert next(iter(content(path))) == r"caf\xe0"  # fit for any log


def test_checksums_as_signed_programs_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "é.txt", b"old")
    data = bytearray(path.read_bytes())
    signed = sum(b - 256 * (b > 127) for b in data[:148] + data[156:512]) + 8 * 32
    data[148:156] = b"%06o\0 " % signed
    path.write_bytes(data)
    assert content(path) == by_tarfile(path) == {"é": {"txt": b"old"}}


def test_sizes_in_pax_records(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "a.txt", b"12345", pax_headers={"size": "5"})
        add(tar, "b.txt", b"67890")
    data = path.read_bytes()
    size = b"%011o\0" % 5
    header = data.index(b"a.txt\0", 1024)
    broken = bytearray(data)
    broken[header + 124 : header + 136] = b"%011o\0" % 0  # as where it does not fit
    checksum = sum(broken[header : header + 148] + broken[header + 156 : header + 512]) + 8 * 32
    broken[header + 148 : header + 156] = b"%06o\0 " % checksum
    assert size in data
    path.write_bytes(broken)
    assert content(path) == by_tarfile(path) == {"a": {"txt": b"12345"}, "b": {"txt": b"67890"}}


def test_what_lies_behind_the_end_mark_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.txt", b"a")
    data = path.read_bytes()
    path.write_bytes(data * 2)
    found = table(path)
    assert found.keys == ["a"] and found.damage is not None
    assert found.damage == "more behind its end mark at byte 1024, as of two tars joined"
    path.write_bytes(data + bytes(10**6))
    assert table(path).damage is None


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.txt", "a.TXT", "b.txt"):
            add(tar, name, name.encode())
    found = table(path)
    assert [found.repeated(i) for i in (0, 1)] == [["txt"], []]


def test_absurd_sparse_members(tmp_path: Path) -> None:
    """Whatever a header of a sparse file or a link claims, the table ends or goes on."""
    path, source = tmp_path / "a.tar", files(tmp_path / "in")
    command = ["tar", "-C", source, "--format=gnu", "--sparse", "-cf", path, "0.txt", "3.npy"]
    subprocess.run(command, check=True)
    data = path.read_bytes()
    header = data.index(b"3.npy")
    rng = random.Random(0)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            broken[header + rng.randrange(100, 512)] = rng.randrange(256)
        summed = broken[header : header + 148] + broken[header + 156 : header + 512]
        broken[header + 148 : header + 156] = b"%06o\0 " % (sum(summed) + 8 * 32)
        path.write_bytes(broken)
        found = table(path)
        for i in range(len(found)):
            for _, size in found.members(i).values():
                assert 0 <= size < 2**63
        with closing(Shard(str(path), Store())) as shard:
            for i in range(len(shard)):
                with suppress(BadSample):
                    shard.read(i)


def test_hard_links_lead_to_what_tarfile_finds(tmp_path: Path) -> None:
    """By the exact name of any member before: one in capitals or hidden, one of no sample, the
    latest of its name, and also where a link that leads nowhere comes first."""

    def link(tar: tarfile.TarFile, name: str, to: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.LNKTYPE, to
        tar.addfile(info)

    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link(tar, "0.jpg", "nowhere")
        for name in (".pool/x.jpg", "pool", "1.JPG", "1.jpg", "2.txt"):
            add(tar, name, name.encode())
        for i, to in enumerate([".pool/x.jpg", "pool", "1.JPG", "./2.txt", "3.jpg"]):
            link(tar, f"{i + 3}.jpg", to)
    expected = ["1.jpg", ".pool/x.jpg", "pool", "1.JPG", "2.txt", ".pool/x.jpg"]
    found = content(path)
    assert [found[key].get("jpg", b"").decode() for key in "134567"] == expected


def test_large_attributes_in_pax_headers(tmp_path: Path) -> None:
    """As those of macOS' files."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "a.txt", b"a", pax_headers={"SCHILY.xattr.com.apple.ResourceFork": "x" * 10**6})
        add(tar, "b.txt", b"b")
    assert content(path) == {"a": {"txt": b"a"}, "b": {"txt": b"b"}}


@pytest.mark.parametrize(
    "start", [b"PK\3\4" * 999, b"<!DOCTYPE html>" * 99, b"version https://git-lfs"]
)
def test_what_is_no_tar_says_so(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(start)
    damage = table(path).damage
    said = "no tar, plain or as .gz, .bz2, .xz or .zst: it begins with"
    assert damage and f"{said} {start[:16]!r}" in damage
