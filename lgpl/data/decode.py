"""Bytes -> sample: image, caption, class, codes, text features; nothing that executes."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from lgpl.data.shards import Raw
from lgpl.data.transforms import center_crop, normalize, open_image, random_crop, to_uint8
from lgpl.text.captions import clean

Field = Literal["image", "caption", "class", "codes", "text"]
Sample = dict[str, Any]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MEMBERS: dict[str, tuple[str, ...]] = {
    "image": IMAGE_EXTENSIONS,
    "caption": ("txt",),
    "class": ("cls",),
    "codes": ("codes.npy",),
    "text": ("text.npy",),
}


class BadSample(ValueError):
    """A sample that is skipped and counted; the message is the cause, without the sample's name."""


@dataclass
class Decoder:
    """Decodes the fields a model wants and holds them against what it can take.

    Attributes:
        fields: what to decode; a sample that lacks one of them is bad.
        image_size: side of the square crop, pixels.
        augment: random crop and, where `flip`, a horizontal flip instead of the centre crop.
        flip: see `augment`.
        grid: rows and columns of the codes; None takes any.
        codebook_size: codes must be below; None for no check.
        num_classes: classes must be below; None for no check.
        text_features: width of the text features; None takes any.
    """

    fields: Sequence[Field]
    image_size: int
    augment: bool = False
    flip: bool = True
    grid: tuple[int, int] | None = None
    codebook_size: int | None = None
    num_classes: int | None = None
    text_features: int | None = None

    def __call__(self, raw: Raw, rng: random.Random) -> Sample:
        """Decode one sample.

        Raises:
            BadSample: a member is missing, broken or out of range.
        """
        sample: Sample = {"key": raw["__key__"]}
        for field in self.fields:
            data = _member(raw, field)
            if field == "image":
                sample["image"] = self._image(data, rng)
            elif field == "caption":
                sample["caption"] = self._caption(data)
            elif field == "class":
                sample["class"] = self._class(data)
            elif field == "codes":
                sample["codes"] = self._codes(data)
            elif field == "text":
                sample["text"] = self._text(data)
        return sample

    def _image(self, data: bytes, rng: random.Random) -> Tensor:
        try:
            if self.augment:
                crop = random_crop(data, self.image_size, rng)
            else:
                crop = center_crop(open_image(data), self.image_size)
        except ValueError as error:
            raise BadSample(str(error)) from error
        pixels = to_uint8(crop)
        if self.augment and self.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return normalize(pixels)

    def _caption(self, data: bytes) -> str:
        try:
            caption = clean(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadSample("caption that is not UTF-8") from error
        if not caption:
            raise BadSample("empty caption")
        return caption

    def _class(self, data: bytes) -> int:
        try:
            label = int(data)
        except ValueError as error:
            raise BadSample("class that is no number") from error
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            raise BadSample(f"class outside 0 to {(self.num_classes or 2**63) - 1}")
        return label

    def _codes(self, data: bytes) -> Tensor:
        codes = _array(data, "codes")
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


def _member(raw: Raw, field: str) -> bytes:
    for extension in MEMBERS[field]:
        if extension in raw:
            return raw[extension]
    raise BadSample(f"sample without its {field} (.{' .'.join(MEMBERS[field])})")


def _array(data: bytes, what: str) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise BadSample(f"{what} that are no .npy array") from error
    if not isinstance(array, np.ndarray) or array.size == 0:
        raise BadSample(f"{what} that are no .npy array or an empty one")
    return array


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
        `key` and `caption` as lists; `image` [B, 3, H, W]; `class` [B]; `codes` [B, rows, columns];
        `text` [B, text_length, D] left-padded with `text_lengths` [B].
    """
    batch: dict[str, Any] = {}
    for field in samples[0]:
        values = [sample[field] for sample in samples]
        if field == "text":
            batch["text"], batch["text_lengths"] = left_pad(
                values, text_length or max(len(value) for value in values)
            )
        elif isinstance(values[0], Tensor):
            batch[field] = torch.stack(values)
        elif isinstance(values[0], int):
            batch[field] = torch.tensor(values)
        else:
            batch[field] = values
    return batch
