"""`lgpl data show`: what shards hold, in figures and on a contact sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from PIL import Image, ImageOps
from tqdm import tqdm

from lgpl.atomic import atomic_file
from lgpl.commands.data.summary import Summary
from lgpl.data.index import named
from lgpl.data.members import IMAGE_EXTENSIONS, BadSample, Raw, read_caption
from lgpl.data.shards import Shard
from lgpl.data.store import Store
from lgpl.data.transforms import open_image
from lgpl.errors import UserError
from lgpl.image_files import grid

OPENED = 32  # shards at the most; a remote one is fetched whole
WIDTH = 22  # characters of a figure's name
PICTURES, TILE = 40, 128  # on the sheet, and pixels of each


def parser() -> ArgumentParser:
    p = ArgumentParser(
        description="Show what shards hold: figures of some of the samples (least / median / "
        "largest), spread evenly over the shards, and a contact sheet."
    )
    p.add_argument(
        "shards", nargs="+", metavar="SHARDS", help="paths, braces, globs, URLs or index files"
    )
    p.add_argument("--samples", type=int, default=2000, help="looked at, at the most")
    p.add_argument("--out", help="contact sheet to write, such as sheet.png")
    p.add_class_arguments(Store, "store")
    return p


def run(options: Namespace) -> None:
    out = Path(options.out) if options.out else None
    if out and _format(out) not in Image.SAVE:
        raise UserError(f"--out: {out} has no ending of a picture, such as .png.")
    if options.samples < 1:
        raise UserError(f"--samples: {options.samples} is below 1.")
    store = Store(**options.store.as_dict())
    paths = list(named(options.shards, "SHARDS", store))
    shards = [Shard(path, store) for path in _spread(paths, OPENED)]
    places = _spread(
        [(shard, place) for shard in shards for place in range(len(shard))], options.samples
    )
    summary, tiles = Summary(), []
    for shard in shards:
        if shard.damage:
            summary.fault(f"shard: {shard.damage}", shard.path)
    pictured = set(_spread(range(len(places)), PICTURES))
    for number, (shard, place) in enumerate(tqdm(places, unit="sample", leave=False)):
        try:
            raw = shard[place]
        except BadSample as error:
            summary.unreadable(shard.keys[place], shard.path, str(error))
            continue
        if summary.add(raw) and out and number in pictured:
            tiles += tile(raw)

    held = sum(map(len, shards))
    size = sum(_size(store, shard.path) for shard in shards if len(shard))
    of = f"{len(shards)} of {len(paths)}, spread evenly" if len(paths) > OPENED else len(paths)
    print(f"{'shards':<{WIDTH}}{of}: {size / 1e6:.1f} MB")
    rest = "all looked at" if len(places) == held else f"{len(places)} looked at, spread evenly"
    print(f"{'samples':<{WIDTH}}{held}, {rest}")
    for name, text in summary.lines():
        print(f"{name:<{WIDTH}}{text}".rstrip())
    if out:
        sheet(out, tiles)


def _format(out: Path) -> str | None:
    return Image.registered_extensions().get(out.suffix.lower())


def _size(store: Store, path: str) -> int:
    with store.open(path) as file:
        return os.fstat(file.fileno()).st_size


def _spread(items: Sequence, number: int) -> list:
    """So many of the items, evenly from first to last, or all where there are no more."""
    places = np.linspace(0, len(items) - 1, min(number, len(items))).astype(int)
    return [items[place] for place in places]


def tile(raw: Raw) -> list[tuple[Image.Image, str]]:
    """A sample's picture and what is written under it; nothing where it has none."""
    data = [raw[name] for name in IMAGE_EXTENSIONS if name in raw]
    text = raw["__key__"]
    if "txt" in raw:
        text = read_caption(raw, "txt")
    elif "cls" in raw:
        text = f"class {int(raw['cls'])}"
    size = (TILE, TILE)
    return [(ImageOps.pad(open_image(d), size, color="white"), text) for d in data[:1]]


def sheet(out: Path, tiles: list[tuple[Image.Image, str]]) -> None:
    """Write the contact sheet.

    Raises:
        UserError: there are no pictures, or the file cannot be written.
    """
    if not tiles:
        raise UserError("--out: no sound picture in the samples that were looked at.")
    pictures, captions = zip(*tiles, strict=True)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            grid(list(pictures), list(captions)).save(file, _format(out))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror or error}).") from error
    print(f"{'contact sheet':<{WIDTH}}{out}")
