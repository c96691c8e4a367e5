"""From a checkpoint and requests to images: one way for Python, commands, metrics and servers."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.inference.drawing import Drawer as Drawer
    from lgpl.inference.drawing import Request as Request
    from lgpl.inference.drawing import draw_in_turn as draw_in_turn
    from lgpl.inference.drawing import draw_into as draw_into
    from lgpl.inference.drawing import requests_for as requests_for
    from lgpl.inference.model import Generator as Generator
    from lgpl.inference.model import Tokenizer as Tokenizer
    from lgpl.inference.model import load_generator as load_generator
    from lgpl.inference.model import usable_device as usable_device
    from lgpl.inference.sinks import ImageFolder as ImageFolder
    from lgpl.inference.sinks import ImageList as ImageList

DTYPES = {"float32": "float32", "bf16": "bfloat16"}  # what options call them -> torch's names

__getattr__ = lazily(
    __name__,
    {
        "drawing": ("Drawer", "Request", "draw_in_turn", "draw_into", "requests_for"),
        "model": ("Generator", "Tokenizer", "load_generator", "usable_device"),
        "sinks": ("ImageFolder", "ImageList"),
    },
)
