"""Codes -> PNG, also while codes are missing."""

from __future__ import annotations

import io

from torch import Tensor

from lgpl.data.transforms import to_image
from lgpl.generator import GeneratorModule


class Painter:
    """Paints with the tokenizer of a generator.

    Args:
        module: a generator with its tokenizer.
    """

    def __init__(self, module: GeneratorModule) -> None:
        self.module, self.layout = module, module.model.layout
        self.height, self.width = module.image_size

    def png(self, codes: Tensor, drawn: Tensor | None = None) -> bytes:
        """The image of codes [*layout.shape], one alone as offline.

        Args:
            drawn: [rows, columns], the places that are drawn; None where all are.
        """
        image = self.module.decode(codes[None], None if drawn is None else drawn[None])[0]
        buffer = io.BytesIO()
        to_image(image).save(buffer, "PNG")
        return buffer.getvalue()
