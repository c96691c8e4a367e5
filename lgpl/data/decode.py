"""Bytes -> sample: image, caption, class, codes, text features; nothing that executes."""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lgpl.data.filters import Filter
from lgpl.data.shards import Raw
from lgpl.data.transforms import (
    center_crop,
    image_size,
    open_image,
    random_crop,
    ten_crops,
    to_uint8,
)
from lgpl.text.captions import clean

Field = Literal["image", "caption", "class", "codes", "text"]
Sample = dict[str, Any]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LONGEST_HEADER = 4096  # bytes of an .npy file's header that are looked at
JSON_CAPTION = "json:"  # before the key of a caption that stands in the JSON


class BadSample(ValueError):
    """A sample that is skipped and counted; the message is the cause, without the sample's name."""


def features_name(caption: str) -> str:
    """The member that holds the text features of a caption: `text.npy` for `txt`, `short.text.npy`
    for `short.txt` and for `json:short`."""
    name = caption.removeprefix(JSON_CAPTION) if caption.startswith(JSON_CAPTION) else caption[:-3]
    return f"{name.rstrip('.')}.text.npy".lstrip(".")


@dataclass
class Decoder:
    """Decodes the fields a model wants and holds them against what it can take.

    Attributes:
        fields: what to decode; a sample that lacks one of them is bad.
        image_size: side of the square crop, pixels.
        augment: random crop and, where `flip`, a horizontal flip instead of the centre crop; one
            of several captions, and of several crops' codes, instead of the first.
        flip: see `augment`.
        captions: members that hold a caption (`txt`, `short.txt`, `json:KEY`), each with how often
            it is taken, in any unit.
        ten_crop: where nothing is to vary, ten views for each of these scales instead of one.
        filter: which sound samples are wanted.
        grid: rows and columns of the codes; None takes any.
        codebook_size: codes must be below; None for no check.
        num_classes: classes must be below; None for no check.
        text_features: width of the text features; None takes any.
    """

    fields: Sequence[Field]
    image_size: int
    augment: bool = False
    flip: bool = True
    captions: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})
    ten_crop: Sequence[float] = ()
    filter: Filter = field(default_factory=Filter)
    grid: tuple[int, int] | None = None
    codebook_size: int | None = None
    num_classes: int | None = None
    text_features: int | None = None

    @cached_property
    def members(self) -> frozenset[str]:
        """Extensions of all members that are looked at; a reader needs no others."""
        fixed = {"image": IMAGE_EXTENSIONS, "class": ("cls",), "codes": ("codes.npy",)}
        names = {name for f in self.fields for name in fixed.get(f, ())}
        if "text" in self.fields:
            names |= {features_name(caption) for caption in self.captions}
        if "caption" in self.fields or self.filter.caption_length:
            names |= {"json" if c.startswith(JSON_CAPTION) else c for c in self.captions}
        if self.filter.json or (self.filter.reads_size and "image" not in self.fields):
            names.add("json")
        return frozenset(names)

    def __call__(self, raw: Raw, rng: random.Random) -> Sample:
        """Decode one sample.

        Raises:
            BadSample: a member is missing, broken or out of range.
            Unwanted: the filter leaves the sample out.
        """
        sample: Sample = {"key": raw["__key__"]}
        self._filter(raw)
        caption = self._choose_caption(raw, rng)
        for name in self.fields:
            if name == "image":
                sample["image"] = self._image(_member(raw, name, IMAGE_EXTENSIONS), rng)
            elif name == "caption":
                sample["caption"] = read_caption(raw, caption)
            elif name == "class":
                sample["class"] = self._class(_member(raw, name, ("cls",)))
            elif name == "codes":
                sample["codes"] = self._codes(_member(raw, name, ("codes.npy",)), rng)
            elif name == "text":
                sample["text"] = self._text(_member(raw, name, (features_name(caption),)))
        return sample

    def _filter(self, raw: Raw) -> None:
        if self.filter.json:
            self.filter.check_json(_json(raw))
        if self.filter.reads_size:
            self.filter.check_size(*self._size(raw))

    def _size(self, raw: Raw) -> tuple[int, int]:
        """Width and height of the picture, by its header or else by the JSON beside it."""
        if "image" in self.fields:
            try:
                return image_size(_member(raw, "image", IMAGE_EXTENSIONS))
            except ValueError as error:
                raise BadSample(str(error)) from error
        values = _json(raw)
        try:
            return int(values["width"]), int(values["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadSample("JSON without the picture's width and height") from error

    def _choose_caption(self, raw: Raw, rng: random.Random) -> str:
        """One of the captions that the sample has; the first where nothing is to vary."""
        names = list(self.captions)
        wanted = {"caption", "text"} & set(self.fields)
        if len(names) == 1 or not wanted:
            caption = names[0]
        else:
            there = [
                name
                for name in names
                if ("text" not in wanted or features_name(name) in raw)
                and ("caption" not in wanted or _has_caption(raw, name))
            ]
            weights = [self.captions[name] for name in there]
            if not self.augment or not sum(weights):
                caption = there[0] if there else names[0]
            else:
                (caption,) = rng.choices(there, weights)
        if self.filter.caption_length:
            self.filter.check_caption(read_caption(raw, caption))
        return caption

    def _image(self, data: bytes, rng: random.Random) -> Tensor:
        try:
            if self.augment:
                pixels = to_uint8(random_crop(data, self.image_size, rng))
                return pixels.flip(-1) if self.flip and rng.random() < 0.5 else pixels
            image = open_image(data)
        except ValueError as error:
            raise BadSample(str(error)) from error
        if not self.ten_crop:
            return to_uint8(center_crop(image, self.image_size))
        views = [ten_crops(image, self.image_size, scale) for scale in self.ten_crop]
        return torch.stack([to_uint8(view) for view in itertools.chain(*views)])

    def _class(self, data: bytes) -> int:
        try:
            label = int(data)
        except ValueError as error:
            raise BadSample("class that is no number") from error
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            raise BadSample(f"class outside 0 to {(self.num_classes or 2**63) - 1}")
        return label

    def _codes(self, data: bytes, rng: random.Random) -> Tensor:
        codes = _array(data, "codes")
        if codes.ndim == 3:  # of several crops
            codes = codes[rng.randrange(len(codes)) if self.augment else 0]
        if codes.ndim != 2 or codes.dtype.kind not in "iu":
            raise BadSample(f"codes that are no integers [rows, columns] but {_describe(codes)}")
        if self.grid is not None and codes.shape != tuple(self.grid):
            raise BadSample(
                f"codes of {_describe(codes)} where the model's grid is {_by(self.grid)}"
            )
        if codes.min() < 0 or (
            self.codebook_size is not None and codes.max() >= self.codebook_size
        ):
            raise BadSample(f"codes outside 0 to {(self.codebook_size or 2**63) - 1}")
        return torch.from_numpy(codes.astype(np.int64))

    def _text(self, data: bytes) -> Tensor:
        features = _array(data, "text features")
        if features.ndim != 2 or features.dtype.kind != "f":
            raise BadSample(
                f"text features that are no floats [length, width] but {_describe(features)}"
            )
        if self.text_features is not None and features.shape[1] != self.text_features:
            raise BadSample(
                f"text features {features.shape[1]} wide where the model takes {self.text_features}"
            )
        return torch.from_numpy(features.astype(np.float32))


def _has_caption(raw: Raw, name: str) -> bool:
    if not name.startswith(JSON_CAPTION):
        return name in raw
    try:
        return isinstance(_json(raw).get(name.removeprefix(JSON_CAPTION)), str)
    except BadSample:
        return False


def read_caption(raw: Raw, name: str) -> str:
    """The cleaned caption of a sample by its name in `data.captions`.

    Raises:
        BadSample: there is none, or it is broken or empty.
    """
    if name.startswith(JSON_CAPTION):
        key = name.removeprefix(JSON_CAPTION)
        text = _json(raw).get(key)
        if not isinstance(text, str):
            raise BadSample(f"JSON without the caption {key!r}")
    else:
        try:
            text = _member(raw, "caption", (name,)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadSample("caption that is not UTF-8") from error
    caption = clean(text)
    if not caption:
        raise BadSample("empty caption")
    return caption


def _member(raw: Raw, what: str, extensions: Sequence[str]) -> bytes:
    for extension in extensions:
        if extension in raw:
            return raw[extension]
    raise BadSample(f"sample without its {what} (.{' .'.join(extensions)})")


def _json(raw: Raw) -> dict[str, Any]:
    try:
        values = json.loads(_member(raw, "JSON", ("json",)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample("JSON that does not parse") from error
    if not isinstance(values, dict):
        raise BadSample("JSON that is no object")
    return values


def _array(data: bytes, what: str) -> np.ndarray:
    """The array of an .npy file of numbers, a view of the bytes."""
    try:
        dtype, shape, start = _npy_header(data[:LONGEST_HEADER].partition(b"\n")[0])
        array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
    except Exception as error:  # numpy parses the header as Python, with all that may fail there
        raise BadSample(f"{what} that are no .npy array of numbers") from error
    if array.size == 0:
        raise BadSample(f"{what} that are no .npy array or an empty one")
    return array


@functools.lru_cache(64)
def _npy_header(line: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """Type, shape and beginning of the data, by the header that ends with this line.

    A shard's arrays share a few headers, and numpy's own reader takes longer for one than all
    the rest of a code sample.
    """
    stream = io.BytesIO(line + b"\n")
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else (np.lib.format.read_array_header_2_0)
    )
    shape, fortran, dtype = read(stream)
    if (fortran and len(shape) > 1) or dtype.kind not in "iuf":
        raise ValueError("not an array of numbers in C order")
    return dtype, shape, len(line) + 1


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {_by(array.shape)}"


def left_pad(features: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Text features of different lengths as one batch.

    Args:
        features: one [L, D] for each caption; of one longer than `length` the first are kept.
        length: number of positions.

    Returns:
        Features [B, length, D], zeros on the left, and lengths [B] (int64).
    """
    lengths = torch.tensor([min(len(f), length) for f in features])
    batch = features[0].new_zeros(len(features), length, features[0].shape[1])
    for row, f, n in zip(batch, features, lengths.tolist(), strict=True):
        row[length - n :] = f[:n]
    return batch, lengths


def collate(samples: Sequence[Sample], text_length: int | None = None) -> dict[str, Any]:
    """Samples as one batch.

    Args:
        samples: at least one, all with the same fields.
        text_length: positions of the text features; the longest of the batch by default.

    Returns:
        `key` and `caption` as lists; `image` [B, 3, H, W] or [B, views, 3, H, W], uint8, see
        `normalize`; `class` [B]; `codes` [B, rows, columns]; `text` [B, text_length, D] left-padded
        with `text_lengths` [B].
    """
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name == "text":
            batch["text"], batch["text_lengths"] = left_pad(
                values, text_length or max(len(value) for value in values)
            )
        elif isinstance(values[0], Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(values[0], int):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch
