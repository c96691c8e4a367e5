"""Codes -> PNG, also while codes are missing."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from lgpl.data.transforms import to_image
from lgpl.generator import GeneratorModule


class Painter:
    """Paints with the tokenizer of a generator.

    Args:
        module: a generator with its tokenizer.
    """

    def __init__(self, module: GeneratorModule) -> None:
        self.module, self.grid = module, module.model.grid
        blank = torch.zeros(1, *self.grid, dtype=torch.int64, device=module.device)
        self.height, self.width = module.decode(blank).shape[-2:]

    def png(self, codes: Tensor) -> bytes:
        """The picture of codes [rows, columns], one alone as offline; grey where rows lack."""
        image = self.module.decode(codes[None])[0]
        whole = image.new_zeros(3, self.height, self.width)
        whole[:, : image.shape[1]] = image
        buffer = io.BytesIO()
        to_image(whole).save(buffer, "PNG")
        return buffer.getvalue()

    def rows_shown(self, partial: int) -> list[int]:
        """After how many rows a picture is shown that is shown so often before it is whole; after
        each at the most."""
        rows = self.grid[0]
        shown = {round(rows * (i + 1) / (partial + 1)) for i in range(partial)}
        return sorted(shown & {*range(1, rows)})
