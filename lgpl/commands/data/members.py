"""What the members of a sample are to lgpl, and what is wrong with them."""

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lgpl.data import members
from lgpl.data.decode import Field, SampleDecoder, Shapes, check_shapes
from lgpl.data.members import IMAGE_EXTENSIONS, BadSample, Raw

CODES, FEATURES = "codes.npy", "text.npy"
FIELDS: dict[str, Field] = {name: "image" for name in IMAGE_EXTENSIONS}
FIELDS |= {"cls": "class", CODES: "codes"}
PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")  # webdataset's own decoders execute them


def names(raw: Raw) -> list[str]:
    """Extensions of a sample's members."""
    return [name for name in raw if not name.startswith("__")]


def is_read(name: str) -> bool:
    """Whether any field reads such a member."""
    return name == "json" or decoder(name) is not None


def is_pickle(name: str) -> bool:
    return name.rpartition(".")[2] in PICKLES


def faults(raw: Raw, first: dict[str, Shapes] | None = None) -> list[str]:
    """What is wrong with a sample: every member that a run could read is decoded as in a run, and
    the causes are those that its log would give. With the shapes of the `first` samples by member,
    to which those of a new member are added, also what fits into no batch with them."""
    first = {} if first is None else first
    found = []
    for name in names(raw):
        if is_pickle(name):
            found.append(f"a pickle (.{name}), which lgpl never opens and others would execute")
        elif name == "json":
            found += _json_faults(raw)
        else:
            found += causes_of(_decode, raw, name, first)
    if not any(name in raw for name in (*IMAGE_EXTENSIONS, CODES)):
        found.append("neither image nor codes")
    return found


def _decode(raw: Raw, name: str, first: dict[str, Shapes]) -> None:
    decode = decoder(name)
    if decode is not None:
        sample = decode({"__key__": raw["__key__"], name: raw[name]}, random.Random(0))
        shapes = decode.shapes(sample)  # those that the model leaves open
        check_shapes(shapes, first.setdefault(name, shapes))


def causes_of(read: Callable[..., Any], *args: Any) -> list[str]:
    """Why a call fails: one cause, or none where it does not."""
    try:
        with members.guarded():
            read(*args)
    except BadSample as error:
        return [str(error)]
    return []


def by_cause(broken: Sequence[tuple[str, str]]) -> list[tuple[int, str]]:
    """How often each cause occurs, the commonest first, and the cause with the first place that has
    it; of pairs of a place, such as a file or a key, and what is wrong there."""
    first = {cause: place for place, cause in reversed(broken)}
    counts = Counter(cause for _, cause in broken)
    return [(n, f"{cause}, such as {first[cause]}") for cause, n in counts.most_common()]


@functools.lru_cache(1000)
def decoder(name: str) -> SampleDecoder | None:
    """What decodes a member other than JSON; None where no field reads it."""
    field, caption = FIELDS.get(name), "txt"
    if f".{name}".endswith(f".{FEATURES}"):
        field, caption = "text", name.removesuffix(FEATURES) + "txt"
    elif f".{name}".endswith(".txt"):
        field, caption = "caption", name
    return field and SampleDecoder((field,), image_size=(1, 1), captions={caption: 1.0})


def _json_faults(raw: Raw) -> list[str]:
    """What a run may stumble over, whichever keys it reads; each cause once."""
    if unreadable := causes_of(members.read_json, raw):
        return unreadable
    values, found = members.read_json(raw), []
    for value in _inside(values):
        check = members.check_text if isinstance(value, str) else members.check_finite
        found += causes_of(check, value)
    if values.get("width") is not None and values.get("height") is not None:
        found += causes_of(members.read_size, values)
    return list(dict.fromkeys(found))


def _inside(value: Any) -> Iterator[Any]:
    """All keys and values of a JSON value, however deep."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        else:
            yield value
