"""Damaged shards of every kind: samples are skipped and counted, nothing crashes, hangs or runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lgpl.data.decode import Decoder
from lgpl.data.filters import Condition, Filter
from lgpl.data.order import Span
from lgpl.data.shards import Shard
from lgpl.data.store import Store
from lgpl.data.streams import Request, Samples
from tests.data.test_tar import mend
from tests.shards import picture, write_shard

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
                kind.replace("jpeg", "jpg"): picture(i, (24, 20), kind),
                "txt": f"picture {i}".encode(),
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
    wanted = Filter(min_side=8, json={"score": Condition(min=0)})
    found: Counter[str] = Counter()
    shard = Shard(str(path), Store())
    number = len(shard)
    shard.close()
    for augment in (True, False):
        decoder = Decoder(
            FIELDS, 16, augment=augment, filter=wanted, grid=(2, 2), codebook_size=64,
            num_classes=10, text_features=4,
        )  # fmt: skip
        samples = Samples([str(path)], decoder, Store())
        places = np.arange(number + 1)  # and one that is not there
        chunk = samples[Request(Span(np.zeros_like(places), np.zeros_like(places), places))]
        assert len(chunk.good) + chunk.skipped.total() == number + 1
        if chunk.batch is not None:
            assert chunk.batch["image"].shape[1:] == (3, 16, 16)
        found += chunk.skipped
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
    for cause in ("picture that does not decode", "codes that are no", "sample without its"):
        assert any(name.startswith(cause) for name in found)


def test_hundreds_of_mutations(tmp_path: Path) -> None:
    check(fuzz(tmp_path, 400), 400)


@pytest.mark.slow
def test_ten_thousand_mutations(tmp_path: Path) -> None:
    check(fuzz(tmp_path, 10_000), 10_000)


def test_the_trap_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_program_in_a_picture_is_not_run(tmp_path: Path) -> None:
    """Pillow would hand PostScript to Ghostscript."""
    target = tmp_path / "executed"
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({target}) (w) file\n".encode()
    shard = write_shard(tmp_path / "a.tar", [{"__key__": "a", "jpg": program}])
    samples = Samples([shard], Decoder(("image",), 8), Store())
    one = np.zeros(1, np.int64)
    chunk = samples[Request(Span(one, one, one))]
    assert (
        next(iter(chunk.skipped)).startswith("picture that does not decode") and not target.exists()
    )
