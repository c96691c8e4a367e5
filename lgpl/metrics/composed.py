"""Composed emoji: small scenes whose content is known exactly. One to four emoji of `data/emoji`,
in their own colours or in one, stand in the cells of a grid; `data/recipes/composed_emoji.py` makes
them. A scene is read by comparing each cell with every emoji that can stand there."""

import io
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from lgpl import shipped
from lgpl.errors import UserError
from lgpl.metrics import COMPOSED_EMOJI
from lgpl.metrics.geneval import Box, Objects

Tile = tuple[str, str | None]  # an emoji, and its color where it has a single one


CELL, CELLS = 32, 4  # pixels of a cell, cells of a row and of a column
SIDE = CELL * CELLS
EMOJI = {  # what captions call them -> their keys
    "dog": "1f436", "cat": "1f431", "frog": "1f438", "fish": "1f41f", "octopus": "1f419",
    "butterfly": "1f98b", "turtle": "1f422", "tree": "1f332", "cactus": "1f335",
    "mushroom": "1f344", "banana": "1f34c", "pizza": "1f355", "cookie": "1f36a", "car": "1f697",
    "rocket": "1f680", "guitar": "1f3b8", "key": "1f511", "umbrella": "2602", "crown": "1f451",
    "star": "2b50", "heart": "2764", "house": "1f3e0", "bell": "1f514", "camera": "1f4f7",
}  # fmt: skip
COLORS = {
    "red": (220, 40, 40),
    "yellow": (240, 200, 20),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (150, 60, 190),
}
WHITE = 255.0
OPAQUE = 0.35  # share of full contrast to white from which a pixel takes a colour whole
EMPTY = 12.0  # root mean square of a cell's difference to white, below which nothing stands in it
UNLIKE = 0.5  # of an emoji's difference to its mean color: a cell that differs more shows none
PLAIN = 0.5  # an emoji has no single colour where its own ones explain it so much better


class Placed(NamedTuple):
    """An emoji in a cell, counted in rows from the top left; no color: its own ones."""

    name: str
    cell: int
    color: str | None = None


def box_of(cell: int) -> Box:
    """Where a cell lies."""
    row, column = divmod(cell, CELLS)
    left, top = column * CELL, row * CELL
    return Box(left, top, left + CELL, top + CELL)


def compose(scene: Sequence[Placed]) -> Image.Image:
    """The image of a scene, on white."""
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    for placed in scene:
        pixels = tiles()[placed.name, placed.color]
        row, column = divmod(placed.cell, CELLS)
        tile = Image.fromarray(pixels.round().astype(np.uint8))
        canvas.paste(tile, (column * CELL, row * CELL))
    return canvas


@cache
def tiles() -> dict[Tile, np.ndarray]:
    """Every emoji in its own colours and in each single one, float32 [CELL, CELL, 3] in 0..255."""
    found: dict[Tile, np.ndarray] = {}
    for shard in shipped.shards("data/emoji/*.tar.gz"):
        with tarfile.open(shard) as tar:
            members = {member.name: member for member in tar}
            for name, key in EMOJI.items():
                if (member := members.get(f"{key}.webp")) and (file := tar.extractfile(member)):
                    image = Image.open(io.BytesIO(file.read())).convert("RGB")
                    small = image.resize((CELL, CELL), Image.Resampling.LANCZOS)
                    found[name, None] = np.asarray(small, np.float32)
    for name in EMOJI:
        for color, rgb in COLORS.items():
            found[name, color] = _tinted(found[name, None], rgb)
    return found


def _tinted(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """All that is not white in shades of one colour."""
    light = pixels @ np.array([0.299, 0.587, 0.114], np.float32) / WHITE
    opaque = np.minimum((1 - pixels.min(-1) / WHITE) / OPAQUE, 1)[..., None]
    shaded = np.minimum(np.array(color, np.float32) * (0.45 + 0.75 * light[..., None]), WHITE)
    return (shaded * opaque + WHITE * (1 - opaque)).astype(np.float32)


class Reading(NamedTuple):
    """What stands in a scene."""

    objects: Objects
    colors: dict[Box, str]  # of those in a single one

    def colors_of(self, name: str, boxes: Sequence[Box]) -> list[str]:
        return [self.colors.get(box, "its own colours") for box in boxes]


def read(image: Image.Image, where: str = "the image") -> Reading:
    """What stands in the cells of a scene, by the nearest tile; a UserError where the image has
    another size than scenes have."""
    if image.size != (SIDE, SIDE):
        size = f"{image.width}x{image.height}"
        raise UserError(f"{where} is {size}; {COMPOSED_EMOJI} has images of {SIDE}x{SIDE} pixels.")
    pixels = np.asarray(image.convert("RGB"), np.float32)
    cells = pixels.reshape(CELLS, CELL, CELLS, CELL, 3).swapaxes(1, 2).reshape(CELLS**2, -1)
    known, own, keys = _flat()
    # |x - t|² of all pairs.
    errors = (cells**2).sum(1)[:, None] - 2 * cells @ known.T + (known**2).sum(1)
    unlike = errors / own
    found: list[tuple[float, int, str, str | None]] = []
    for cell in np.flatnonzero(((cells - WHITE) ** 2).mean(1) > EMPTY**2).tolist():
        best = int(errors[cell].argmin())
        if unlike[cell, best] < UNLIKE:
            name = keys[best][0]
            mine = {c: errors[cell, i] for i, (n, c) in enumerate(keys) if n == name}
            plain = mine.pop(None)
            color = min(mine, key=lambda c: mine[c])
            is_plain = plain < PLAIN * mine[color]
            found.append((float(unlike[cell, best]), cell, name, None if is_plain else color))
    objects: dict[str, list[Box]] = defaultdict(list)
    colors = {}
    for _, cell, name, color in sorted(found, key=lambda one: one[:2]):  # the likest first
        objects[name].append(box_of(cell))
        if color is not None:
            colors[box_of(cell)] = color
    return Reading(objects, colors)


@cache
def _flat() -> tuple[np.ndarray, np.ndarray, list[Tile]]:
    """Every tile as a row, how far it is from its mean color (squared), and which it is."""
    every = np.stack(list(tiles().values()))
    own = ((every - every.mean((1, 2), keepdims=True)) ** 2).sum((1, 2, 3))
    return every.reshape(len(every), -1), own, list(tiles())
