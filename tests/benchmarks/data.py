"""Images a second from shards of photographs to batches [B, 3, 256, 256], against four peers.

    python -m tests.benchmarks.data [--images 700] [--repeats 3] [--parts images codes ...]

Every peer reads the same JPEGs (512 to 1024 px, from the photographs in scikit-image), scales the
short side to 256 up to 320 px, takes a random square and flips half of them. The arms alternate; a
figure is the median of the runs, without the start of the workers. The machine should do nothing
else.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from webdataset import TarWriter

from lgpl.data import ShardDataModule
from lgpl.data.index import write_index
from lgpl.data.loader import TrainLoader
from lgpl.data.shards import read_shard
from lgpl.data.transforms import normalize
from tests.benchmarks import photos

SIZE, BATCH = 256, 32
CODES: dict[str, Any] = {"fields": ["codes", "class"]}
Batches = Iterator[Any]


def full(image: Image.Image) -> Tensor:
    """What the peers do with an image: decode in full, scale, crop, flip."""
    image = image.convert("RGB")
    short = random.randint(SIZE, round(SIZE / 0.8))
    ratio = short / min(image.size)
    image = image.resize([max(short, round(s * ratio)) for s in image.size], Image.BICUBIC)  # type: ignore[arg-type]
    left, top = random.randint(0, image.width - SIZE), random.randint(0, image.height - SIZE)
    image = image.crop((left, top, left + SIZE, top + SIZE))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return tensor.float().div_(127.5).sub_(1)


def from_bytes(data: bytes) -> Tensor:
    return full(Image.open(io.BytesIO(data)))


def loader(shards: list[str], workers: int, **options: Any) -> TrainLoader:
    data = ShardDataModule(
        train=shards, image_size=SIZE, batch_size=BATCH, num_workers=workers, **options
    )
    data.setup("fit")
    return data.train_dataloader()


def lgpl(shards: list[str], workers: int, **options: Any) -> Batches:
    for batch in loader(shards, workers, **options):
        yield normalize(batch["image"]) if "image" in batch else batch["codes"]


def pillow(shards: list[str], workers: int) -> Batches:
    """The limit: a loop over bytes in memory that decodes and resizes, and no more."""
    images = [raw["jpg"] for shard in shards for raw in read_shard(shard)]
    while True:
        for first in range(0, len(images) - BATCH + 1, BATCH):
            batch = []
            for data in images[first : first + BATCH]:
                image = Image.open(io.BytesIO(data)).convert("RGB")
                ratio = SIZE / min(image.size)
                batch.append(image.resize([round(s * ratio) for s in image.size], Image.BICUBIC))  # type: ignore[arg-type]
            yield batch


def webdataset(shards: list[str], workers: int) -> Batches:
    import webdataset as wds

    pipeline = (
        wds.WebDataset(shards, shardshuffle=len(shards), resampled=False, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(full)
        .batched(BATCH, partial=False)
        .repeat()
    )
    for (images,) in wds.WebLoader(pipeline, batch_size=None, num_workers=workers):
        yield images


def datasets(shards: list[str], workers: int) -> Batches:
    import datasets as hf

    hf.disable_progress_bars()
    stream = hf.load_dataset(
        "webdataset", data_files={"train": shards}, split="train", streaming=True
    )
    stream = stream.select_columns(["jpg"]).cast_column("jpg", hf.Image(decode=False))
    stream = stream.shuffle(seed=0, buffer_size=1000).repeat(None)
    stream = stream.map(lambda row: {"image": from_bytes(row["jpg"]["bytes"])})
    stream = stream.select_columns(["image"]).with_format("torch")
    for batch in DataLoader(stream, batch_size=BATCH, num_workers=workers, drop_last=True):
        yield batch["image"]


def litdata(shards: list[str], workers: int) -> Batches:
    from litdata import StreamingDataLoader, StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Tensor:
            return from_bytes(super().__getitem__(index))

    folder = str(Path(shards[0]).parent / "litdata")
    images = Images(folder, shuffle=True)
    while True:
        yield from StreamingDataLoader(
            images, batch_size=BATCH, num_workers=workers, drop_last=True
        )


def write_litdata(shards: list[str]) -> None:
    """The same JPEGs as a data set of litdata."""
    from litdata.streaming.writer import BinaryWriter

    folder = Path(shards[0]).parent / "litdata"
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    images = (raw["jpg"] for shard in shards for raw in read_shard(shard))
    for index, data in enumerate(images):
        writer.add_item(index, data)
    writer.done()
    writer.merge()


def rate(batches: Batches, count: int) -> float:
    """Samples a second, from the first batch on."""
    next(batches)
    begin, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(batch)
        if seen >= count:
            break
    return seen / (time.perf_counter() - begin)


def images(folder: Path, images: int, repeats: int) -> None:
    shards = photos.write(folder / "photos", images, 100, seed=0)
    write_litdata(shards)
    arms: dict[str, Callable[[list[str], int], Batches]] = {
        "lgpl": lgpl,
        "Pillow, decode and resize": pillow,
        "webdataset": webdataset,
        "datasets": datasets,
        "litdata": litdata,
    }
    print(f"\n{'images/s, ' + str(SIZE) + ' px':28} {'workers':>7} {'median':>8} {'lgpl is':>8}")
    for workers in (1, 2):
        found: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(repeats):
            for name, arm in arms.items():
                if name.startswith("Pillow") and workers > 1:
                    continue  # one core, the limit of one worker
                found[name].append(rate(arm(shards, workers), images))
        ours = statistics.median(found["lgpl"])
        for name, rates in found.items():
            if rates:
                median = statistics.median(rates)
                print(f"{name:28} {workers:7} {median:8.1f} {ours / median:7.2f}x")


def codes(folder: Path, repeats: int) -> None:
    shards = [write_codes(folder / f"codes-{i}.tar", 4000) for i in range(10)]
    print(f"\n{'code shards, 16x16':28} {'workers':>7} {'samples/s':>9}")
    for workers in (0, 1, 2):
        rates = [rate(lgpl(shards, workers, **CODES), 40_000) for _ in range(repeats)]
        print(f"{'lgpl':28} {workers:7} {statistics.median(rates):9.0f}")


def write_codes(path: Path, count: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(0)
    with TarWriter(str(path), encoder=False, mtime=0) as tar:
        for i in range(count):
            array = io.BytesIO()
            np.save(array, rng.randint(0, 16384, (16, 16)).astype(np.uint16))
            key = f"{path.stem}-{i:06d}"
            tar.write({"__key__": key, "codes.npy": array.getvalue(), "cls": b"%d" % (i % 1000)})
    return str(path)


def many_shards(folder: Path, repeats: int) -> None:
    """Does a long list of shards cost more than a short one? They are links to ten real ones."""
    print(f"\n{'code samples, 400 a shard':28} {'samples/s':>9}")
    real = [write_codes(folder / "real" / f"{i}.tar", 400) for i in range(10)]
    counts = (10, 100, 1000, 10_000)
    for number in counts:
        (folder / f"of-{number}").mkdir()
        paths = [str(folder / f"of-{number}/{i:05d}.tar") for i in range(number)]
        for i, path in enumerate(paths):
            os.link(real[i % 10], path)
        write_index(folder / f"of-{number}/index.json", dict.fromkeys(paths, 400))
    found: dict[int, list[float]] = {number: [] for number in counts}
    for _ in range(repeats):
        for number in counts:
            batches = lgpl([str(folder / f"of-{number}/index.json")], 0, **CODES)
            found[number].append(rate(batches, 40_000))
    for number, rates in found.items():
        print(f"{number:>10} shards {statistics.median(rates):20.0f}")


def memory(folder: Path, images: int) -> None:
    """Of the stream itself: its batches are dropped as they come."""
    shards = photos.write(folder / "photos", images, 100, seed=0)
    print(f"\n{'passes':>10} {'memory of all processes, MB':>30}")
    batches = iter(loader(shards, 2))
    for number in range(21):
        for _ in itertools.islice(batches, images // BATCH):
            pass
        if number % 5 == 0:
            print(f"{number:10} {proportional_memory() / 1e6:30.0f}")


def proportional_memory() -> int:
    """Bytes of this process and its children; what they share is counted once."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    total = 0
    for pid in [str(os.getpid()), *children]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--repeats", type=int, default=3)
    parts = ["images", "codes", "shards", "memory"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "images" in options.parts:
            images(folder, options.images, options.repeats)
        if "codes" in options.parts:
            codes(folder, options.repeats)
        if "shards" in options.parts:
            many_shards(folder, options.repeats)
        if "memory" in options.parts:
            memory(folder, options.images)


if __name__ == "__main__":
    main()
