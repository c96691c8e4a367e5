"""What the members of a sample are to lgpl, and what is wrong with them."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable

from lgpl.data.decode import IMAGE_EXTENSIONS, Decoder, Field
from lgpl.data.shards import Raw
from lgpl.data.transforms import open_image

CODES, FEATURES = "codes.npy", "text.npy"
PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")  # webdataset's own decoders execute them


def names(raw: Raw) -> list[str]:
    """Extensions of a sample's members."""
    return [name for name in raw if not name.startswith("__")]


def is_read(name: str) -> bool:
    """Whether any field reads such a member."""
    return name in IMAGE_EXTENSIONS or name == "json" or decoder(name) is not None


def is_pickle(name: str) -> bool:
    return name.rpartition(".")[2] in PICKLES


def faults(raw: Raw) -> list[str]:
    """What is wrong with a sample: causes, as the log of a run gives them.

    Every member that a run could read is decoded in full.
    """
    found = [cause for name in names(raw) if (cause := _fault(raw, name))]
    if not any(name in raw for name in (*IMAGE_EXTENSIONS, CODES)):
        found.append("neither picture nor codes")
    return found


def _fault(raw: Raw, name: str) -> str | None:
    if is_pickle(name):
        return f"a pickle (.{name}), which lgpl never opens and others would execute"
    if name in IMAGE_EXTENSIONS:
        return _cause(open_image, raw[name])
    if name == "json":
        return _json_fault(raw[name])
    decode = decoder(name)
    return None if decode is None else _cause(decode, raw, random.Random(0))


@functools.cache
def decoder(name: str) -> Decoder | None:
    """What decodes a member that is neither picture nor JSON; None where no field reads it."""
    field: Field
    if name == "cls":
        field, caption = "class", "txt"
    elif name == CODES:
        field, caption = "codes", "txt"
    elif f".{name}".endswith(f".{FEATURES}"):
        field, caption = "text", name.removesuffix(FEATURES) + "txt"
    elif f".{name}".endswith(".txt"):
        field, caption = "caption", name
    else:
        return None
    return Decoder((field,), image_size=1, captions={caption: 1.0})


def _cause(decode: Callable[..., object], *args: object) -> str | None:
    try:
        decode(*args)
    except ValueError as error:
        return str(error)
    return None


def _json_fault(data: bytes) -> str | None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return "JSON that does not parse"
    return None if isinstance(values, dict) else "JSON that is no object"
