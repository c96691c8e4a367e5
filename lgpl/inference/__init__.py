"""From a checkpoint and requests to images: one way for Python, commands, metrics and servers."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.inference.drawing import (
        Drawer,
        Request,
        draw_in_turn,
        draw_into,
        requests_for,
        share_of,
    )
    from lgpl.inference.model import Generator, Tokenizer, load_generator, usable_device
    from lgpl.inference.sinks import GenEvalFolder, GridFolder, ImageFolder, ImageList

DTYPES = {"float32": "float32", "bf16": "bfloat16"}  # what options call them -> torch's names

__getattr__ = lazily(
    __name__,
    drawing=("Drawer", "Request", "draw_in_turn", "draw_into", "requests_for", "share_of"),
    model=("Generator", "Tokenizer", "load_generator", "usable_device"),
    sinks=("GenEvalFolder", "GridFolder", "ImageFolder", "ImageList"),
)
