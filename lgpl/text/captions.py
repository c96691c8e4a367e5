"""Captions and prompts: how both are cleaned, how a file of prompts is read."""

import html
import re
import unicodedata
from pathlib import Path

from lgpl.errors import UserError, as_user_error

TAG = re.compile(r"</?[a-zA-Z!][^<>]{0,200}>")
URL = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
FILE_NAME = re.compile(r"\b\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?)\b", re.IGNORECASE)
SPACE = re.compile(r"\s+")


def clean(caption: str) -> str:
    """A web caption as plain text: no markup, addresses, image file names or doubled space;
    letters, case and punctuation stay as they are."""
    text = html.unescape(html.unescape(caption))  # web captions are often escaped twice
    text = unicodedata.normalize("NFKC", text)
    for noise in (TAG, URL, FILE_NAME):
        text = noise.sub(" ", text)
    return SPACE.sub(" ", text).strip()


def read_lines(path: str) -> list[str]:
    """The prompts of a text file, one a line; raises a UserError where there are none."""
    with as_user_error(f"prompts: {path} cannot be read as text", OSError, ValueError):
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise UserError(f"prompts: {path} holds no prompts; write one a line.")
    return lines
