"""Captions to features."""

from lgpl.text.captions import clean
from lgpl.text.encoder import TextEncoder

__all__ = ["TextEncoder", "clean"]
