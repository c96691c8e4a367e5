"""Bytes of a sample's members -> what they hold: text, JSON, arrays; nothing that executes.
Whatever is wrong with a member becomes a `BadSample` here, so that no sample ends a run."""

import functools
import io
import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from lgpl.errors import UserError
from lgpl.text.captions import Style, clean, first_line, first_sentence

Raw = dict[str, Any]  # extension -> bytes, and "__key__", "__shard__"

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
JSON_CAPTION = "json:"  # before the key of a caption that stands in the JSON
# Before the name of a caption, a part of which is a caption of its own.
PARTS = {"first-sentence": first_sentence, "first-line": first_line}
LONGEST_HEADER = 4096  # bytes of an .npy file's header that are looked at
LARGEST_JSON = 4 * 2**20  # bytes; parsed it takes twenty times as many
LONGEST_CAPTION = 10_000  # characters
MOST_PIXELS_A_SIDE = 2**31


class BadSample(ValueError):
    """A sample that is skipped and counted; the message is the cause, without the sample's name."""


class Unwanted(Exception):
    """A sound sample that the filter leaves out; the message is the cause."""


@contextmanager
def guarded() -> Iterator[None]:
    """Whatever is raised inside, save `Unwanted` and `UserError`, is the sample's fault and becomes
    a `BadSample`, foreseen or not."""
    try:
        yield
    except (BadSample, Unwanted, UserError):
        raise
    except Exception as error:  # a codec's, or memory that an absurd member asks for
        raise BadSample(f"sample that does not decode ({type(error).__name__})") from error


def split_name(caption: str) -> tuple[str, str]:
    """`first-line` and `txt` of `first-line:txt`; the first is empty for a whole caption."""
    part, _, whole = caption.partition(":")
    return (part, whole) if part in PARTS else ("", caption)


def caption_member(caption: str) -> str:
    """The member that a caption stands in, by its name in `data.captions`."""
    whole = split_name(caption)[1]
    return "json" if whole.startswith(JSON_CAPTION) else whole


def check_caption_names(captions: Sequence[str]) -> None:
    """Raises a UserError for a name that `data.captions` cannot have."""
    for name in captions:
        start, colon, _ = split_name(name)[1].partition(":")
        if colon and f"{start}:" != JSON_CAPTION:
            known = f"txt, NAME.txt or json:KEY, {': or '.join(PARTS)}: may stand before it"
            raise UserError(f"data.captions: {name!r} is none of {known}.")


def features_name(caption: str) -> str:
    """The member that holds the text features of a caption: `text.npy` for `txt`, `short.text.npy`
    for `short.txt` and for `json:short`, `first-line.text.npy` for `first-line:txt`."""
    part, whole = split_name(caption)
    is_json = whole.startswith(JSON_CAPTION)
    name = whole.removeprefix(JSON_CAPTION) if is_json else whole[:-3]
    return ".".join(filter(None, (part, name.strip("."), "text.npy")))


def member(raw: Raw, what: str, extensions: Sequence[str]) -> bytes:
    """The first of these members that the sample has."""
    for extension in extensions:
        if extension in raw:
            return raw[extension]
    raise BadSample(f"sample without its {what} (.{' .'.join(extensions)})")


def fields_without(cause: str, fields: Sequence[str]) -> str:
    """What to give where `member` found that a field is missing, as a sentence; else nothing."""
    missing = [name for name in fields if cause.startswith(f"sample without its {name} (")]
    rest = [name for name in fields if name not in missing]
    if not missing or not rest:
        return ""
    return f" Where no {missing[0]} is needed, give --data.fields '[{', '.join(rest)}]'."


def read_json(raw: Raw) -> dict[str, Any]:
    """The object in `KEY.json`; Python's parser also takes NaN, which img2dataset writes."""
    data = member(raw, "JSON", ("json",))
    if len(data) > LARGEST_JSON:
        raise BadSample(f"JSON of more than {LARGEST_JSON} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("JSON that does not parse") from error
    if not isinstance(values, dict):
        raise BadSample("JSON that is no object")
    return values


def check_finite(value: Any) -> None:
    """Refuse NaN, infinities, and integers as large as those; other types pass."""
    too_large = isinstance(value, int) and value.bit_length() > 1023
    if too_large or (isinstance(value, float) and not math.isfinite(value)):
        raise BadSample("JSON with a number that no float64 holds, such as NaN or Infinity")


def read_size(values: dict[str, Any]) -> tuple[int, int]:
    """Width and height of the image by the JSON beside it, pixels."""
    width, height = values.get("width"), values.get("height")
    if width is None or height is None:
        raise BadSample("JSON without the image's width and height")
    check_finite(width)
    check_finite(height)
    try:
        width, height = int(width), int(height)
    except (TypeError, ValueError):
        width = height = 0
    if not (0 < width < MOST_PIXELS_A_SIDE and 0 < height < MOST_PIXELS_A_SIDE):
        raise BadSample("JSON in which the image's width and height are no pixels")
    return width, height


def read_caption(
    raw: Raw, name: str, rng: random.Random | None = None, style: Style = "plain"
) -> str:
    """The caption of a sample by its name in `data.captions`: cleaned, or in another style as it
    stands, since the text encoder cleans it. Of a list in the JSON one at random, without `rng` the
    first, where what is empty or no text does not count."""
    part, whole = split_name(name)
    ready = functools.partial(_ready, part=part, style=style)
    if not whole.startswith(JSON_CAPTION):
        try:
            text = member(raw, "caption", (whole,)).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadSample("caption that is not UTF-8") from error
        return ready(text)
    key = whole.removeprefix(JSON_CAPTION)
    value = read_json(raw).get(key)
    if isinstance(value, str):
        check_text(value)
        return ready(value)
    if value is None:
        raise BadSample(f"JSON without the caption {key!r}")
    if not isinstance(value, list):
        raise BadSample(f"JSON whose {key!r} is neither a text nor a list of texts")
    texts = [text for text in value if isinstance(text, str)]
    while texts:
        text = texts.pop(rng.randrange(len(texts)) if rng else 0)
        check_text(text)
        if text.strip() and (caption := ready(text, may_be_empty=True)):
            return caption
    raise BadSample(f"JSON without a text in the list of captions {key!r}")


def _ready(text: str, part: str, style: Style, may_be_empty: bool = False) -> str:
    if len(text) > LONGEST_CAPTION:
        raise BadSample(f"caption of more than {LONGEST_CAPTION} characters")
    text = PARTS[part](text) if part else text.strip()
    try:
        caption = clean(text, style)
    except UserError:  # a package is missing
        raise
    except ValueError as error:  # such as a character reference of thousands of digits
        raise BadSample("caption that cannot be cleaned of markup") from error
    if not caption and not may_be_empty:
        raise BadSample("empty caption")
    return caption if style == "plain" or not caption else text


def check_text(text: str) -> None:
    """Refuse half a character, which JSON can hold and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadSample("JSON with a lone surrogate, half a character, in a text") from error


def read_array(data: bytes, what: str) -> np.ndarray:
    """The array of an .npy file of numbers, a view of the bytes; an empty one is refused."""
    try:
        dtype, shape, order, start = _npy_header(data[:LONGEST_HEADER].partition(b"\n")[0])
        array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order=order)
    except Exception as error:  # numpy parses the header as Python, with all that may fail there
        raise BadSample(f"{what} that are no .npy array of numbers") from error
    if array.size == 0:
        raise BadSample(f"{what} that are no .npy array or an empty one")
    return array


@functools.lru_cache(64)  # numpy takes longer for one than all the rest of a code sample does
def _npy_header(line: bytes) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"], int]:
    """Type, shape, order and beginning of the data, by the header that ends with this line."""
    stream, npy = io.BytesIO(line + b"\n"), np.lib.format
    is_first = npy.read_magic(stream) == (1, 0)
    read = npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.kind not in "iuf" or any(n < 0 for n in shape):
        raise ValueError("not an array of numbers")
    return dtype, shape, "F" if fortran else "C", len(line) + 1


def describe(array: np.ndarray) -> str:
    return f"{array.dtype} {'x'.join(map(str, array.shape))}"
