"""`lgpl data show`: what shards hold: counts and sizes (least / median / largest) of some of the
samples, spread evenly over the shards, and a contact sheet; with a tokenizer, the images of codes
and how many of its codes occur."""

import os
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jsonargparse import Namespace
from PIL import Image, ImageOps

from lgpl.checkpoints import add_trust
from lgpl.commands.data.members import by_cause, causes_of, faults, is_read, names
from lgpl.commands.parsing import ArgumentParser, require_positive
from lgpl.data import members
from lgpl.data.codecs import open_header, open_image
from lgpl.data.index import named
from lgpl.data.members import IMAGE_EXTENSIONS, BadSample, Raw
from lgpl.data.shards import Shard
from lgpl.data.store import Store
from lgpl.errors import UserError
from lgpl.image_files import grid, image_path, save
from lgpl.progress import Bar

OPENED = 32  # shards at the most; a remote one is fetched whole
WIDTH = 22  # characters of a row's name
CAPTIONS = 5  # that are given word for word
LONGEST_SHOWN = 200  # characters of each
KINDS = 20  # of one thing that are given one by one
IMAGES, TILE = 40, 128  # on the sheet, and pixels of each


def add_arguments(p: ArgumentParser) -> None:
    p.add_argument("--samples", type=int, default=2000, help="looked at, at the most")
    p.add_argument("--out", help="contact sheet to write, such as sheet.png")
    tokenizer = "checkpoint of the tokenizer of code shards: decodes them for the sheet"
    p.add_argument("--tokenizer", help=tokenizer)
    add_trust(p)


def run(options: Namespace) -> None:
    require_positive(options, "samples")
    out = image_path(options.out) if options.out else None
    store = Store(**options.store.as_dict())
    paths = list(named(options.shards, "SHARDS", store))
    viewer = None
    if options.tokenizer is not None:
        from lgpl.commands.data.codes import CodeViewer  # with all that loads a model

        viewer = CodeViewer(options.tokenizer, options.trust)
        viewer.check(_evenly(paths, OPENED), store)
    shards = [Shard(path, store) for path in _evenly(paths, OPENED)]
    held = [(shard, place) for shard in shards for place in range(len(shard))]
    places = _evenly(held, options.samples)
    summary, tiles = Summary(), []
    summary.broken += [(shard.path, f"shard: {shard.damage}") for shard in shards if shard.damage]
    shown = set(_evenly(range(len(places)), IMAGES))
    for number, (shard, place) in enumerate(Bar(places, unit="sample", leave=False)):
        try:
            raw = shard[place]
        except BadSample as error:
            summary.broken.append((f"{shard.keys[place]} in {shard.path}", str(error)))
            continue
        if not summary.add(raw):
            continue
        is_shown = out is not None and number in shown
        try:
            image = viewer.add(raw, is_shown) if viewer else None
        except BadSample as error:
            summary.broken.append((f"{raw['__key__']} in {raw['__shard__']}", str(error)))
            continue
        tiles += tile(raw, image) if is_shown else []

    size = sum(_size(store, shard.path) for shard in shards if len(shard))
    of = f"{len(shards)} of {len(paths)}, spread evenly" if len(paths) > OPENED else len(paths)
    looked = len(places)
    rest = "all looked at" if looked == len(held) else f"{looked} looked at, spread evenly"
    rows = [("shards", f"{of}: {size / 1e6:.1f} MB"), ("samples", f"{len(held)}, {rest}")]
    if viewer is not None:
        rows.append(("codebook", viewer.line()))
    for name, text in (*rows, *summary.lines()):
        print(f"{name:<{WIDTH}}{text}".rstrip())
    if out:
        if not tiles:
            said = "no sound image in the samples that were looked at"
            raise UserError(f"--out: {said}; of codes give --tokenizer.")
        images, captions = zip(*tiles, strict=True)
        save(grid(list(images), list(captions)), out)
        print(f"{'contact sheet':<{WIDTH}}{out}")


def _size(store: Store, path: str) -> int:
    with store.open(path) as file:
        return os.fstat(file.fileno()).st_size


def _evenly(items: Sequence, number: int) -> list:
    """So many of the items, evenly from first to last, or all where there are no more."""
    places = np.linspace(0, len(items) - 1, min(number, len(items))).astype(int)
    return [items[place] for place in places]


def tile(raw: Raw, decoded: Image.Image | None = None) -> list[tuple[Image.Image, str]]:
    """A sample's image, or that of its codes, and what is written under it; nothing where it has
    none."""
    images = [decoded] if decoded else [open_image(raw[n]) for n in IMAGE_EXTENSIONS if n in raw]
    text = raw["__key__"]
    if "txt" in raw:
        text = members.read_caption(raw, "txt")
    elif "cls" in raw:
        text = f"class {int(raw['cls'])}"
    return [(ImageOps.pad(image, (TILE, TILE), color="white"), text) for image in images[:1]]


class Summary:
    """What samples hold: of each kind how many."""

    def __init__(self) -> None:
        self.formats: Counter[str] = Counter()  # of the images
        self.sizes: list[tuple[int, int]] = []  # width and height of each image, pixels
        self.captions: dict[str, list[str]] = defaultdict(list)  # by member, cleaned
        self.classes: Counter[int] = Counter()
        self.others: dict[str, Counter[str]] = defaultdict(Counter)  # by the name of the row
        self.broken: list[tuple[str, str]] = []  # where samples are, and what is wrong with them

    def add(self, raw: Raw) -> bool:
        """Take up a sample and say whether it is sound; of a broken one only the causes count."""
        causes = faults(raw) or causes_of(self._take, raw)
        self.broken += [(f"{raw['__key__']} in {raw['__shard__']}", cause) for cause in causes]
        return not causes

    def _take(self, raw: Raw) -> None:
        for name in names(raw):
            if name in IMAGE_EXTENSIONS:
                image = open_header(raw[name])
                self.formats[str(image.format)] += 1
                self.sizes.append(image.size)
            elif name == "cls":
                self.classes[int(raw[name])] += 1
            elif name == "json":
                for key in members.read_json(raw):
                    self.others["JSON keys"][key] += 1
            elif not is_read(name):
                self.others["never read"][f".{name}"] += 1
            elif name.endswith(".npy"):
                array = members.read_array(raw[name], name)
                self.others[f".{name}"][f"{array.dtype} {list(array.shape)}"] += 1
            else:
                self.captions[name].append(members.read_caption(raw, name))

    def lines(self) -> Iterator[tuple[str, str]]:
        """Each row's name and its text."""
        if self.sizes:
            widths, heights = zip(*self.sizes, strict=True)
            yield "images", _counts(self.formats)
            yield "  width", f"{_spread(widths)} px"
            yield "  height", f"{_spread(heights)} px"
            yield "  shorter side", f"{_spread(map(min, self.sizes))} px"
        for name, captions in self.captions.items():
            yield f"captions .{name}", f"{len(captions)}, {_spread(map(len, captions))} characters"
            for text in random.Random(0).sample(captions, min(CAPTIONS, len(captions))):
                yield "", f"“{shortened(text)}”"
        if self.classes:
            yield "classes", f"{len(self.classes)}, {min(self.classes)} to {max(self.classes)}"
            yield "  samples of each", _counts(dict(sorted(self.classes.items())))
        for name, kinds in self.others.items():
            yield name, _counts(kinds)
        yield "broken", "" if self.broken else "nothing"
        for number, cause in by_cause(self.broken):
            yield "", f"{number}: {cause}"


def shortened(text: str) -> str:
    """A text in one line, and no longer than that can be read."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_SHOWN else f"{line[:LONGEST_SHOWN].rstrip()}…"


def _spread(values: Iterable[int]) -> str:
    values = sorted(values)
    return f"{values[0]} / {statistics.median(values):g} / {values[-1]}"


def _counts(kinds: Mapping[Any, int]) -> str:
    """Few kinds one by one; of many how often the rarest, the middle and the commonest is."""
    if len(kinds) > KINDS:
        return f"{_spread(kinds.values())} of each of {len(kinds)}"
    return ", ".join(f"{kind} ({number})" for kind, number in kinds.items())
