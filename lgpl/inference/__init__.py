"""From a checkpoint and requests to pictures: one way for Python, commands, metrics and servers."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.inference.drawing import Drawer, draw_in_turn, draw_into, paint
    from lgpl.inference.load import load_generator, usable_device
    from lgpl.inference.model import Model, Tokenizer
    from lgpl.inference.request import Request, requests_for
    from lgpl.inference.sinks import PictureFolder, Pictures

__all__ = [
    "DTYPES",
    "Drawer",
    "Model",
    "PictureFolder",
    "Pictures",
    "Request",
    "Tokenizer",
    "draw_in_turn",
    "draw_into",
    "load_generator",
    "paint",
    "requests_for",
    "usable_device",
]

DTYPES = {"float32": "float32", "bf16": "bfloat16"}  # what options call them -> torch's names

__getattr__ = lazily(
    __name__,
    {
        "Drawer": "lgpl.inference.drawing",
        "Model": "lgpl.inference.model",
        "PictureFolder": "lgpl.inference.sinks",
        "Pictures": "lgpl.inference.sinks",
        "Request": "lgpl.inference.request",
        "Tokenizer": "lgpl.inference.model",
        "draw_in_turn": "lgpl.inference.drawing",
        "draw_into": "lgpl.inference.drawing",
        "load_generator": "lgpl.inference.load",
        "paint": "lgpl.inference.drawing",
        "requests_for": "lgpl.inference.request",
        "usable_device": "lgpl.inference.load",
    },
)
