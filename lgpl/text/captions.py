"""Caption cleaning, the same for training captions and for prompts."""

from __future__ import annotations

import html
import re
import unicodedata

TAG = re.compile(r"</?[a-zA-Z!][^<>]{0,200}>")
URL = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
FILE_NAME = re.compile(r"\b\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?)\b", re.IGNORECASE)
SPACE = re.compile(r"\s+")


def clean(caption: str) -> str:
    """A web caption as plain text: no markup, addresses, image file names or doubled space.

    Letters, case and punctuation stay as they are.
    """
    text = html.unescape(html.unescape(caption))  # web captions are often escaped twice
    text = unicodedata.normalize("NFKC", text)
    for noise in (TAG, URL, FILE_NAME):
        text = noise.sub(" ", text)
    return SPACE.sub(" ", text).strip()
