"""Damaged shards of every kind: samples are skipped and counted, nothing crashes, hangs or runs.

First random damage to whole shards, then whatever hypothesis finds for members and for headers.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lgpl.codes import CodeLayout
from lgpl.commands.data.check import check_shard
from lgpl.commands.data.members import faults
from lgpl.commands.data.show import Summary
from lgpl.data.decode import Field, SampleDecoder, collate
from lgpl.data.filters import Filter, JsonCondition
from lgpl.data.members import BadSample, Unwanted
from lgpl.data.order import Span
from lgpl.data.shards import Shard, read_shard
from lgpl.data.store import Store
from lgpl.data.streams import ReadRequest, Samples
from tests.data.test_tar import block, inside, mend, octal, table
from tests.shards import image_bytes, write_shard

FIELDS = ("image", "caption", "class", "codes", "text")
KINDS = ("jpeg", "png", "webp")


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def seeds(folder: Path) -> list[bytes]:
    """Whole shards to damage, one of them compressed."""
    trap = pickle.dumps(Trap(folder / "executed"))
    shards = []
    for number, kind in enumerate(KINDS):
        content = [
            {
                "__key__": f"{i:03d}",
                kind.replace("jpeg", "jpg"): image_bytes(i, (24, 20), kind),
                "txt": f"image {i}".encode(),
                "cls": b"%d" % i,
                "codes.npy": npy(np.full((2, 2), i, np.uint16)),
                "text.npy": npy(np.zeros((3, 4), np.float16)),
                "json": json.dumps({"width": 24, "height": 20, "score": i}).encode(),
                "pkl": trap,
                "pth": trap,
                "pyd": trap,
            }
            for i in range(4)
        ]
        content[3]["codes.npy"] = npy(np.array([Trap(folder / "executed")], dtype=object))
        shards.append(Path(write_shard(folder / f"{number}.tar", content)).read_bytes())
    return [*shards, gzip.compress(shards[0])]


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def drop(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 100, 512, 5000))]


def repeat(data: bytearray, rng: random.Random) -> None:
    start = 512 * rng.randrange(max(1, len(data) // 512))
    data[start:start] = data[start : start + 512 * rng.randrange(1, 9)]


def swap(data: bytearray, rng: random.Random) -> None:
    a, b = (512 * rng.randrange(max(1, len(data) // 512)) for _ in range(2))
    data[a : a + 512], data[b : b + 512] = data[b : b + 512], data[a : a + 512]


def overwrite(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start : start + rng.choice((1, 4, 64, 600))] = rng.randbytes(rng.choice((1, 4, 64, 600)))


def header(data: bytearray, rng: random.Random) -> None:
    """A field of a header that is found right: the checksum is mended."""
    headers = [i for i in range(0, len(data) - 512, 512) if data[i + 257 : i + 262] == b"ustar"]
    if not headers:
        return flip(data, rng)
    at = rng.choice(headers)
    first, last = rng.choice(((0, 100), (124, 136), (156, 157), (157, 257), (345, 500)))
    values = (
        lambda n: rng.randbytes(n),
        lambda n: b"\x80" + rng.randbytes(n - 1) if n > 1 else b"x",
        lambda n: (b"%o" % rng.randrange(2**30)).rjust(n, b"0")[:n],
        lambda n: rng.choice((b"x", b"g", b"L", b"K", b"S", b"5", b"2")) * n,
    )
    data[at + first : at + last] = rng.choice(values)(last - first)
    mend(data, at)


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip, cut, drop, repeat, swap, overwrite, header),
)


def read(path: Path) -> Counter[str]:
    """All samples of a shard as training and validation read them; gives what became of them."""
    wanted = Filter(min_side=8, json={"score": JsonCondition(min=0)})
    found: Counter[str] = Counter()
    shard = Shard(str(path), Store())
    number = len(shard)
    shard.close()
    for augment in (True, False):
        decoder = SampleDecoder(
            FIELDS, (16, 16), augment=augment, filter=wanted, codebook_size=64,
            layout=CodeLayout(2, 2), num_classes=10, text_features=4,
        )  # fmt: skip
        samples = Samples([str(path)], decoder, Store())
        places = np.arange(number + 1)  # and one that is not there
        chunk = samples[ReadRequest(Span(np.zeros_like(places), np.zeros_like(places), places))]
        assert len(chunk.good) + len(chunk.skipped) == number + 1
        if chunk.batch is not None:
            assert chunk.batch["image"].shape[1:] == (3, 16, 16)
        found.update(cause for cause, _ in chunk.skipped)
        found["good"] += len(chunk.good)
    return found


def fuzz(folder: Path, count: int) -> Counter[str]:
    whole = seeds(folder)
    total: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        rng = random.Random(number)
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 1, 2, 5))):
            if data:
                rng.choice(MUTATIONS)(data, rng)
        path = folder / "mutated.tar"
        path.write_bytes(data)
        begin = time.perf_counter()
        total += read(path)
        slowest = max(slowest, time.perf_counter() - begin)
    assert not (folder / "executed").exists()
    assert slowest < 10, f"one mutation took {slowest:.1f} s"
    return total


def check(found: Counter[str], count: int) -> None:
    print(dict(found.most_common()))
    assert found["good"] > count  # most damage leaves something
    assert found["sample of a damaged or vanished shard"] >= 2 * count
    for cause in ("image that does not decode", "codes that are no", "sample without its"):
        assert any(name.startswith(cause) for name in found)


def test_hundreds_of_mutations(tmp_path: Path) -> None:
    check(fuzz(tmp_path, 400), 400)


@pytest.mark.slow
def test_ten_thousand_mutations(tmp_path: Path) -> None:
    check(fuzz(tmp_path, 10_000), 10_000)


def test_the_trap_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_program_in_an_image_is_not_run(tmp_path: Path) -> None:
    """Pillow would hand PostScript to Ghostscript."""
    target = tmp_path / "executed"
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({target}) (w) file\n".encode()
    shard = write_shard(tmp_path / "a.tar", [{"__key__": "a", "jpg": program}])
    samples = Samples([shard], SampleDecoder(("image",), (8, 8)), Store())
    one = np.zeros(1, np.int64)
    chunk = samples[ReadRequest(Span(one, one, one))]
    ((cause, _),) = chunk.skipped
    assert cause.startswith("image that does not decode") and not target.exists()


# Whatever hypothesis finds: members

Members = dict[str, bytes]


def text_of_numbers() -> st.SearchStrategy[bytes]:
    odd = st.sampled_from(["Infinity", "-Infinity", "NaN", "1e999", str(10**400), "1" * 4400])
    number = st.integers(-(2**70), 2**70).map(str) | st.floats().map(repr) | odd
    return number.map(str.encode)


def json_of_anything() -> st.SearchStrategy[bytes]:
    letters = st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=())
    scalar = st.none() | st.booleans() | st.floats() | st.integers() | st.text(letters, max_size=9)
    value = scalar | st.just(10**400) | st.lists(scalar, max_size=2)
    keys = st.sampled_from(["width", "height", "score", "alt"]) | st.text(letters, max_size=4)
    return st.dictionaries(keys, value, max_size=5).map(lambda found: json.dumps(found).encode())


def arrays() -> st.SearchStrategy[bytes]:
    kinds = st.sampled_from(["u1", "<u2", ">u2", "i8", "u8", "f2", "f4", ">f8", "?", "c8", "S3"])
    shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)

    def made(kind: str, shape: tuple[int, ...], data: bytes) -> bytes:
        dtype = np.dtype(kind)
        return npy(np.resize(np.frombuffer(data * dtype.itemsize, dtype), shape))

    return st.builds(made, kinds, shapes, st.binary(min_size=1, max_size=8))


def images() -> st.SearchStrategy[bytes]:
    def damaged(kind: str, size: tuple[int, int], place: float, byte: int) -> bytes:
        data = bytearray(image_bytes(1, size, kind))
        data[int(place * (len(data) - 1))] ^= byte
        return bytes(data)

    size = st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.just((3000, 1))
    place = st.floats(0, 1, exclude_max=True)
    return st.builds(damaged, st.sampled_from([*KINDS, "gif"]), size, place, st.integers(0, 255))


def members() -> st.SearchStrategy[Members]:
    anything = st.binary(max_size=40)
    text = st.text(max_size=20).map(str.encode)
    return st.fixed_dictionaries(
        {},
        optional={
            "jpg": images() | anything,
            "webp": images() | anything,
            "cls": text_of_numbers() | anything,
            "codes.npy": arrays() | anything,
            "text.npy": arrays() | anything,
            "txt": text | anything | text_of_numbers().map(b"&#%b;".__mod__),
            "json": json_of_anything() | anything,
            "__key__": anything,
            "": anything,
        },
    )


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(found=st.lists(members(), max_size=4), augment=st.booleans())
def test_any_members(found: list[Members], augment: bool) -> None:
    """A run goes on past them, and `check` lists each cause that a run gives."""
    raws = [{"__key__": str(i), "__shard__": "s"} | raw for i, raw in enumerate(found)]
    fields: tuple[Field, ...] = ("image", "caption", "class", "codes", "text")
    for field in fields:
        decoder = SampleDecoder((field,), (8, 8), augment=augment)
        by_alt = SampleDecoder(
            (field,), (8, 8), captions={"json:alt": 1.0}, filter=Filter(min_side=4)
        )
        scored = SampleDecoder(
            (field,), (8, 8), filter=Filter(json={"score": JsonCondition(min=1)})
        )
        for raw in raws:
            for decode in (decoder, by_alt, scored):
                try:
                    collate([decode(dict(raw), random.Random(0))])
                except Unwanted:
                    pass
                except BadSample as error:
                    lacks = "without" in str(error)  # a field that another run does not read
                    assert lacks or str(error) in faults(raw), (raw, faults(raw))
    summary = Summary()
    sound = [summary.add(raw) for raw in raws]
    assert all(sound) == (not summary.broken) and list(summary.lines())


# and headers


def headers() -> st.SearchStrategy[bytes]:
    """Headers whose checksum is right."""
    number = st.binary(max_size=12) | st.integers(0, 2000).map(octal)
    number |= st.binary(min_size=11, max_size=11).map(b"\x80".__add__)
    kind = st.sampled_from([b"0", b"7", b"x", b"g", b"L", b"K", b"5", b"S"]) | st.binary(max_size=1)
    name = st.binary(max_size=100) | st.sampled_from([b"a.jpg", b"a.cls", b"../b.jpg", b"/c.txt"])
    return st.builds(block, name, kind, number, st.binary(max_size=600))


def extended() -> st.SearchStrategy[bytes]:
    """Long names and pax records, right and wrong ones."""
    length = st.integers(-1, 40).map(str) | st.sampled_from(["9" * 30, "१४", "1" * 4301, ""])
    value = st.text(max_size=12).map(str.encode)
    record = st.builds(lambda n, v: n.encode() + b" path=" + v + b"\n", length, value)
    records = st.lists(record, max_size=3).map(b"".join) | st.binary(max_size=40)
    kind = st.sampled_from([b"x", b"g", b"L", b"K"])
    return st.builds(lambda k, r: block(b"name", k, octal(len(r)), r), kind, records)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(blocks=st.lists(headers() | extended(), max_size=6), end=st.sampled_from([0, 512, 1024]))
def test_any_headers(blocks: list[bytes], end: int) -> None:
    """The shard ends early at the most, and no member lies outside of the file."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(b"".join(blocks) + bytes(end))
        file.flush()
        inside(table(Path(file.name)), os.path.getsize(file.name))
        assert all(isinstance(raw["__key__"], str) for raw in read_shard(file.name))
        check_shard((file.name, None), Store())


def test_python_reads_what_the_table_reads(tmp_path: Path) -> None:
    """The blocks above are headers: without damage both find the same."""
    path = tmp_path / "a.tar"
    record = b"18 path=long.jpg\n\n"
    path.write_bytes(
        block(b"name", b"x", octal(len(record)), record)
        + block(b"a.jpg", b"0", octal(5), b"whole")
        + bytes(1024)
    )
    with tarfile.open(path) as tar:
        assert [member.name for member in tar] == ["long.jpg\n"]
    found = table(path)
    assert found.keys[0] == "long" and found.damage is None
