"""How the codes of an image are laid out; without torch, for who only reads options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lgpl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ImageSize = tuple[int, int]  # height and width, pixels


@dataclass(frozen=True)
class CodeLayout:
    """Rows and columns of places, with `depth` codes at each; a 1-D tokenizer has one row.

    Codes are [B, rows, columns], or [B, depth, rows, columns] where the depth is above 1. A
    generator takes them flat, place by place in raster order, the codes of a place together.
    """

    rows: int
    columns: int
    depth: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.depth) < 1:
            raise UserError(f"layout: rows, columns and depth must be at least 1, got {self}.")

    @property
    def places(self) -> int:
        return self.rows * self.columns

    @property
    def codes(self) -> int:
        return self.places * self.depth

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's codes."""
        grid = (self.rows, self.columns)
        return grid if self.depth == 1 else (self.depth, *grid)

    def flatten(self, codes: Tensor) -> Tensor:
        """Codes [B, *shape] as [B, codes]."""
        by_depth = codes.reshape(len(codes), self.depth, self.places)
        return by_depth.transpose(1, 2).flatten(1)

    def unflatten(self, codes: Tensor) -> Tensor:
        """Codes [B, codes] as [B, *shape]."""
        by_place = codes.view(len(codes), self.places, self.depth)
        return by_place.transpose(1, 2).reshape(len(codes), *self.shape)

    def places_of(self, drawn: Tensor) -> Tensor:
        """Places [B, rows, columns] all of whose codes are among the drawn ones [B, codes]."""
        return drawn.view(len(drawn), self.rows, self.columns, self.depth).all(-1)

    def shown_at(self, partial: int, known: int = 0) -> list[int]:
        """After how many drawn places an image is shown that is shown so often before it is whole:
        after whole rows, as far as there are several, unless so many places are `known` before."""
        unit = self.columns if self.rows > 1 and not known else 1
        units = (self.places - known) // unit
        shown = {round(units * (i + 1) / (partial + 1)) for i in range(partial)}
        return sorted(known + unit * n for n in shown & {*range(1, units)})

    def __str__(self) -> str:
        """`16x16`, or `16x16x4` with a depth."""
        depth = f"x{self.depth}" if self.depth > 1 else ""
        return f"{self.rows}x{self.columns}{depth}"


def to_image_size(given: int | Sequence[int], name: str = "image_size") -> ImageSize:
    """Height and width of a side, or of both; raises UserError, which calls them `name`."""
    sides = (given, given) if isinstance(given, int) else tuple(given)
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or min(sides) < 1:
        raise UserError(f"{name} must be a side, or height and width, >= 1 pixel, got {given}.")
    return sides


def in_pixels(size: ImageSize) -> str:
    """`WIDTHxHEIGHT`."""
    return f"{size[1]}x{size[0]}"
