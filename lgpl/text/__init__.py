"""Captions and prompts, and captions to features."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.text.captions import clean
    from lgpl.text.encoder import TextEncoder

__getattr__ = lazily(__name__, captions=("clean",), encoder=("TextEncoder",))
