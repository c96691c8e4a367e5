"""Figures of samples: pictures, captions, classes, arrays, and what is broken."""

from __future__ import annotations

import io
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lgpl.commands.data.members import faults, is_read, names
from lgpl.data.members import (
    IMAGE_EXTENSIONS,
    BadSample,
    Raw,
    guarded,
    read_array,
    read_caption,
    read_json,
)
from lgpl.data.transforms import FORMATS

CAPTIONS = 5  # that are given word for word
KINDS = 20  # of one thing that are given one by one


@dataclass
class Summary:
    """What samples hold.

    Attributes:
        samples: how many there were.
        formats: of the pictures.
        sizes: width and height of each picture, pixels.
        captions: of each member, cleaned as for a text encoder.
        classes: samples of each.
        arrays: type and shape of each, by member.
        keys: of the JSON objects.
        unread: samples with a member that no field reads.
        broken: samples by cause.
        such_as: one of them for each cause.
    """

    samples: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    classes: Counter[int] = field(default_factory=Counter)
    arrays: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    keys: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    such_as: dict[str, str] = field(default_factory=dict)

    def add(self, raw: Raw) -> bool:
        """Take up a sample and say whether it is sound; of a broken one only the causes count."""
        self.samples += 1
        causes = faults(raw)
        if not causes:
            try:
                with guarded():
                    self._take(raw)
            except BadSample as error:
                causes = [str(error)]
        for cause in causes:
            self.fault(cause, f"{raw['__key__']} in {raw['__shard__']}")
        return not causes

    def unreadable(self, key: str, shard: str, cause: str) -> None:
        """Take up a sample that cannot be read at all."""
        self.samples += 1
        self.fault(cause, f"{key} in {shard}")

    def fault(self, cause: str, where: str) -> None:
        self.broken[cause] += 1
        self.such_as.setdefault(cause, where)

    def _take(self, raw: Raw) -> None:
        for name in names(raw):
            self._member(name, raw)

    def _member(self, name: str, raw: Raw) -> None:
        if name in IMAGE_EXTENSIONS:
            with Image.open(io.BytesIO(raw[name]), formats=FORMATS) as image:
                self.formats[str(image.format)] += 1
                self.sizes.append(image.size)
        elif name == "cls":
            self.classes[int(raw[name])] += 1
        elif name == "json":
            self.keys.update(list(read_json(raw)))
        elif not is_read(name):
            self.unread[f".{name}"] += 1
        elif name.endswith(".npy"):
            array = read_array(raw[name], name)
            self.arrays[name][f"{array.dtype} {list(array.shape)}"] += 1
        else:
            self.captions[name].append(read_caption(raw, name))

    def lines(self) -> Iterator[tuple[str, str]]:
        """Each figure's name and what it is."""
        if self.sizes:
            widths, heights = zip(*self.sizes, strict=True)
            yield "pictures", _counts(self.formats)
            yield "  width", f"{_spread(widths)} px"
            yield "  height", f"{_spread(heights)} px"
            yield "  shorter side", f"{_spread(map(min, self.sizes))} px"
        for name, captions in self.captions.items():
            yield f"captions .{name}", f"{len(captions)}, {_spread(map(len, captions))} characters"
            for text in random.Random(0).sample(captions, min(CAPTIONS, len(captions))):
                yield "", f"“{text}”"
        if self.classes:
            yield "classes", f"{len(self.classes)}, {min(self.classes)} to {max(self.classes)}"
            yield "  samples of each", _counts(dict(sorted(self.classes.items())))
        for name, kinds in self.arrays.items():
            yield f".{name}", _counts(kinds)
        if self.keys:
            yield "JSON keys", _counts(self.keys)
        if self.unread:
            yield "never read", _counts(self.unread)
        yield "broken", "" if self.broken else "nothing"
        for cause, number in self.broken.most_common():
            yield "", f"{number}: {cause}, such as {self.such_as[cause]}"


def _spread(values: Iterable[int]) -> str:
    values = sorted(values)
    return f"{values[0]} / {statistics.median(values):g} / {values[-1]}"


def _counts(kinds: Mapping[Any, int]) -> str:
    """Few kinds one by one; of many how often the rarest, the middle and the commonest is."""
    if len(kinds) > KINDS:
        return f"{_spread(kinds.values())} of each of {len(kinds)}"
    return ", ".join(f"{kind} ({number})" for kind, number in kinds.items())
