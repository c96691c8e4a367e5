"""Shards of JPEGs as they come from the web, made from the photographs inside scikit-image.

It is installed by requirements-benchmark.txt.
"""

from __future__ import annotations

import io
import json
import random
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset import TarWriter

# Those that come with the package itself: the others would be fetched on first use.
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SIDES = (512, 1024)  # of an image, pixels, at the least and at the most
QUALITY = 90
LARGEST_ZOOM = 1.25


def write(folder: Path, count: int, per_shard: int, seed: int) -> list[str]:
    """Write shards of photographs, each with a caption and its geometry.

    Args:
        folder: where `00000.tar`, `00001.tar`, ... are written.
        count: samples in all, of members jpg, txt and json.
        per_shard: samples of a shard; the last may hold fewer.
        seed: of the geometry; the same arguments give the same bytes.

    Returns:
        The paths of the shards.
    """
    photographs = {name: _photograph(name) for name in PHOTOGRAPHS}
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, count, per_shard):
        shards.append(str(folder / f"{first // per_shard:05d}.tar"))
        with TarWriter(shards[-1], encoder=False, mtime=0) as tar:
            for index in range(first, min(first + per_shard, count)):
                name = PHOTOGRAPHS[index % len(PHOTOGRAPHS)]
                # Of the index alone, so that a sample does not depend on how many there are.
                rng = random.Random(f"{seed} {index}")
                tar.write({"__key__": f"{index:08d}", **_sample(name, photographs[name], rng)})
    return shards


def _photograph(name: str) -> Image.Image:
    with (resources.files("skimage") / "data" / name).open("rb") as file:
        return Image.open(file).convert("RGB")


def _sample(name: str, photograph: Image.Image, rng: random.Random) -> dict[str, bytes]:
    width, height = rng.randint(*SIDES), rng.randint(*SIDES)
    cover = max(width / photograph.width, height / photograph.height)
    scale = cover * rng.uniform(1, LARGEST_ZOOM)
    left = rng.uniform(0, photograph.width - width / scale)
    top = rng.uniform(0, photograph.height - height / scale)
    box = (left, top, left + width / scale, top + height / scale)
    image = photograph.resize((width, height), Image.Resampling.BICUBIC, box)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=QUALITY)
    geometry: dict[str, Any] = {"photograph": name, "box": box, "width": width, "height": height}
    return {
        "jpg": jpeg.getvalue(),
        "txt": f"a photograph of {Path(name).stem.replace('_', ' ')}, {width} by {height}".encode(),
        "json": json.dumps(geometry).encode(),
    }
