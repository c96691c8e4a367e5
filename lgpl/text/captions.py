"""Captions and prompts: how both are cleaned, how a file of prompts is read."""

import html
import re
import unicodedata
from pathlib import Path
from typing import Literal, get_args

from lgpl.errors import UserError, as_user_error
from lgpl.text import llamagen

Style = Literal["plain", "llamagen"]

TAG = re.compile(r"</?[a-zA-Z!][^<>]{0,200}>")
URL = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
FILE_ENDING = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?)\b", re.IGNORECASE)
SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")  # control characters as well
SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"'”’)\]]*(?=\s)|[。！？]+")


def clean(caption: str, style: Style = "plain") -> str:
    """A caption by one of the styles. `plain` is a web caption without markup, addresses, image
    file names or doubled space; letters, case and punctuation stay as they are. `llamagen` is what
    LlamaGen's text models were trained with. Raises a ValueError where markup cannot be read."""
    if style == "llamagen":
        return llamagen.clean(caption)
    text = html.unescape(html.unescape(caption))  # web captions are often escaped twice
    text = unicodedata.normalize("NFKC", text)
    for noise in (TAG, URL):
        text = noise.sub(" ", text)
    return SPACE.sub(" ", re.sub(r"\S+", lambda word: _without_file_name(word[0]), text)).strip()


def check_style(style: str) -> None:
    """Raises a UserError where there is no such style."""
    if style not in get_args(Style):
        raise UserError(f"captions must be {' or '.join(get_args(Style))}, got {style!r}")


def first_sentence(caption: str) -> str:
    """Up to the first mark that ends a sentence, with it; without one the whole caption."""
    text = caption.strip()
    end = SENTENCE_END.search(text)
    return text if end is None else text[: end.end()]


def first_line(caption: str) -> str:
    """The first line that is not blank."""
    return caption.strip().partition("\n")[0].strip()


def _without_file_name(word: str) -> str:
    """A word without the name of an image file in it: from its first letter to the last ending.

    One regular expression would look for an ending from every letter, for seconds where a language
    has no spaces.
    """
    *_, last = [None, *FILE_ENDING.finditer(word)]
    first = re.search(r"\w", word)
    if last is None or first is None or first.start() >= last.start():
        return word
    return f"{word[: first.start()]} {word[last.end() :]}"


def read_prompts(path: str) -> list[str]:
    """The prompts of a text file: prompt i is line i, and only the end may have empty lines.

    A UserError where the file cannot be read, holds no prompt, or has an empty line between two.
    """
    with as_user_error(f"prompts: {path} cannot be read as text", OSError, ValueError):
        text = Path(path).read_text(encoding="utf-8-sig")
    # Not by splitlines, for which a form feed or U+2028 inside a prompt ends a line.
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if lines == [""]:
        raise UserError(f"prompts: {path} holds no prompts; write one a line.")
    if "" in lines:
        where = f"line {lines.index('') + 1} of {path}"
        raise UserError(f"prompts: {where} is empty; each line is the prompt of an image.")
    return lines
