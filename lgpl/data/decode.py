"""Bytes -> sample: image, caption, class, codes, text features; nothing that executes."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lgpl.codes import CodeLayout, ImageSize
from lgpl.data import members, transforms
from lgpl.data.codecs import open_image
from lgpl.data.filters import Filter
from lgpl.data.members import IMAGE_EXTENSIONS, JSON_CAPTION, BadSample, Raw, guarded, member
from lgpl.text.captions import Style, clean
from lgpl.text.encoder import left_pad

Field = Literal["image", "caption", "class", "codes", "text"]
Fit = Literal["crop", "pad"]
Sample = dict[str, Any]
Shapes = dict[str, str]  # what has a shape -> the shape, both in the words of messages

LARGEST_LABEL = 2**63 - 1  # that a batch's int64 holds
MOST_CODES = 2**20  # of a sample, and text features; no model takes more, but for nothing checks
MOST_FEATURES = 2**24


@dataclass
class SampleDecoder:
    """Decodes the fields a model wants and holds them against what it can take; None: no limit."""

    fields: Sequence[Field]  # a sample that lacks one of them is bad
    image_size: ImageSize  # of the crop
    # Random crop and, where `flip`, a horizontal flip instead of the centre crop; one of several
    # captions, and of several crops' codes, instead of the first.
    augment: bool = False
    flip: bool = True
    fit: Fit = "crop"  # or `pad`: the whole image on white, where it is no square, say
    # Captions (`txt`, `short.txt`, `json:KEY`, `first-line:txt`): how often each is taken.
    captions: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})
    caption_style: Style = "plain"  # of the text encoder, see `read_caption`
    ten_crop: Sequence[float] = ()  # without `augment`: ten views at each of these scales, not one
    crop: str = transforms.CENTER_CROP  # without `augment`, where `fit` says so; see `CROPS`
    filter: Filter = field(default_factory=Filter)  # which sound samples are wanted
    layout: CodeLayout | None = None  # of an image's codes
    codebook_size: int | None = None  # that codes must be below
    num_classes: int | None = None  # that classes must be below
    text_features: int | None = None  # width

    @cached_property
    def members(self) -> frozenset[str]:
        """Extensions of all members that are looked at; a reader needs no others."""
        fixed = {"image": IMAGE_EXTENSIONS, "class": ("cls",), "codes": ("codes.npy",)}
        names = {name for f in self.fields for name in fixed.get(f, ())}
        if "text" in self.fields:
            names |= {members.features_name(caption) for caption in self.captions}
        if "caption" in self.fields or self.filter.caption_length:
            names |= {members.caption_member(caption) for caption in self.captions}
        if self.filter.json or (self.filter.reads_size and "image" not in self.fields):
            names.add("json")
        return frozenset(names)

    @cached_property
    def open_shapes(self) -> tuple[Field, ...]:
        """Fields whose shape the model leaves open, but which a batch holds in one shape."""
        limits: dict[Field, Any] = {"codes": self.layout, "text": self.text_features}
        return tuple(f for f in self.fields if f in limits and limits[f] is None)

    def shapes(self, sample: Sample) -> Shapes:
        """What all samples of a batch must have in common, where the model leaves it open."""
        shapes = {}
        if "codes" in self.open_shapes:
            shapes["codes of"] = "x".join(map(str, sample["codes"].shape))
        if "text" in self.open_shapes:
            shapes["text features of width"] = str(sample["text"].shape[1])
        return shapes

    @guarded()
    def __call__(self, raw: Raw, rng: random.Random) -> Sample:
        """Decode one sample: BadSample where a member is missing, broken or out of range, Unwanted
        where the filter leaves it out. Samples of the same `open_shapes` can be collated."""
        sample: Sample = {"key": raw["__key__"]}
        self._filter(raw)
        caption = self._choose_caption(raw, rng)
        # The features of a list of captions are those of its first.
        drawn = rng if self.augment and "text" not in self.fields else None
        text = None  # of the caption, once it has been drawn
        if self.filter.caption_length:
            text = members.read_caption(raw, caption, drawn, self.caption_style)
            self.filter.check_caption(clean(text, self.caption_style))
        for name in self.fields:
            if name == "image":
                sample["image"] = self._image(member(raw, name, IMAGE_EXTENSIONS), rng)
            elif name == "caption":
                read = members.read_caption
                sample["caption"] = text or read(raw, caption, drawn, self.caption_style)
            elif name == "class":
                sample["class"] = self._class(member(raw, name, ("cls",)))
            elif name == "codes":
                sample["codes"] = self._codes(member(raw, name, ("codes.npy",)), rng)
            elif name == "text":
                sample["text"] = self._text(member(raw, name, (members.features_name(caption),)))
        return sample

    def _filter(self, raw: Raw) -> None:
        if self.filter.json:
            self.filter.check_json(members.read_json(raw))
        if self.filter.reads_size and "image" in self.fields:
            data = member(raw, "image", IMAGE_EXTENSIONS)
            self.filter.check_size(*transforms.header_size(data))
        elif self.filter.reads_size:
            self.filter.check_size(*members.read_size(members.read_json(raw)))

    def _choose_caption(self, raw: Raw, rng: random.Random) -> str:
        """One of the captions that the sample has; the first where nothing is to vary."""
        names, wanted = list(self.captions), {"caption", "text"} & set(self.fields)
        caption = names[0]
        if len(names) > 1 and wanted:
            there = [
                name
                for name in names
                if ("text" not in wanted or members.features_name(name) in raw)
                and ("caption" not in wanted or _has_caption(raw, name))
            ]
            weights = [self.captions[name] for name in there]
            if self.augment and any(weights):
                (caption,) = rng.choices(there, weights)
            elif there:
                caption = there[0]
        return caption

    def _image(self, data: bytes, rng: random.Random) -> Tensor:
        if self.augment:
            if self.fit == "pad":
                image = transforms.pad(open_image(data), self.image_size)
            else:
                image = transforms.random_crop(data, self.image_size, rng)
            pixels = transforms.to_uint8(image)
            return pixels.flip(-1) if self.flip and rng.random() < 0.5 else pixels
        image = open_image(data)
        if self.fit == "pad":
            return transforms.to_uint8(transforms.pad(image, self.image_size))
        if not self.ten_crop:
            return transforms.to_uint8(transforms.CROPS[self.crop](image, self.image_size))
        views = [transforms.ten_crops(image, self.image_size, scale) for scale in self.ten_crop]
        return torch.stack([transforms.to_uint8(view) for view in itertools.chain(*views)])

    def _class(self, data: bytes) -> int:
        try:
            label = int(data)
        except ValueError as error:
            raise BadSample("class that is no number") from error
        last = LARGEST_LABEL if self.num_classes is None else self.num_classes - 1
        if not 0 <= label <= last:
            raise BadSample(f"class outside 0 to {last}")
        return label

    def _codes(self, data: bytes, rng: random.Random) -> Tensor:
        """One view's codes of the array [views, depth, rows, columns] or [rows, columns]."""
        codes = members.read_array(data, "codes")
        if codes.ndim == 3:
            said = f"codes {members.describe(codes)} that do not say whether the first dimension is"
            raise BadSample(f"{said} views or depth: store [views, depth, rows, columns]")
        if codes.ndim not in (2, 4) or codes.dtype.kind not in "iu":
            said = "codes that are no integers [views, depth, rows, columns] or [rows, columns]"
            raise BadSample(f"{said} but {members.describe(codes)}")
        if codes.ndim == 4:
            codes = codes[rng.randrange(len(codes)) if self.augment and len(codes) > 1 else 0]
        *depth, rows, columns = codes.shape
        layout = CodeLayout(rows, columns, *depth)
        if self.layout is not None and layout != self.layout:
            raise BadSample(f"codes of layout {layout} where the model's is {self.layout}")
        if codes.size > MOST_CODES:
            raise BadSample(f"codes of {members.describe(codes)}, more than {MOST_CODES}")
        codes = codes.astype(np.int64)  # uint64 beyond it becomes negative
        last = LARGEST_LABEL if self.codebook_size is None else self.codebook_size - 1
        if codes.min() < 0 or codes.max() > last:
            raise BadSample(f"codes outside 0 to {last}")
        return torch.from_numpy(codes.reshape(layout.shape))

    def _text(self, data: bytes) -> Tensor:
        features = members.read_array(data, "text features")
        said, wanted = members.describe(features), self.text_features
        if features.ndim != 2 or features.dtype.kind != "f":
            raise BadSample(f"text features that are no floats [length, width] but {said}")
        if wanted is not None and (width := features.shape[1]) != wanted:
            raise BadSample(f"text features {width} wide where the model takes {wanted}")
        if features.size > MOST_FEATURES:
            raise BadSample(f"text features of {said}, more than {MOST_FEATURES}")
        with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
            features = features.astype(np.float32)
        if not np.isfinite(features).all():
            raise BadSample("text features that are not finite")
        return torch.from_numpy(features)


def _has_caption(raw: Raw, name: str) -> bool:
    _, whole = members.split_name(name)
    if not whole.startswith(JSON_CAPTION):
        return whole in raw
    try:
        value = members.read_json(raw).get(whole.removeprefix(JSON_CAPTION))
    except BadSample:
        return False
    texts = value if isinstance(value, list) else []
    return isinstance(value, str) or any(isinstance(text, str) and text.strip() for text in texts)


def check_shapes(shapes: Shapes, first: Shapes) -> None:
    """Raises BadSample for a sample that fits into no batch with the first one."""
    for what, shape in shapes.items():
        if shape != first.get(what, shape):
            raise BadSample(f"{what} {shape} where the first sample's are {first[what]}")


def collate(samples: Sequence[Sample], text_length: int | None = None) -> dict[str, Any]:
    """Samples, at least one and all with the same fields, as one batch: `key` and `caption` as
    lists; `image` [B, 3, H, W] or [B, views, 3, H, W], uint8, see `normalize`; `class` [B]; `codes`
    [B, *layout.shape]; `text` [B, text_length, D] left-padded with `text_lengths` [B], by default
    as long as the longest."""
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name == "text":
            length = text_length or max(map(len, values))
            batch["text"], batch["text_lengths"] = left_pad(values, length)
        else:
            batch[name] = default_collate(values)
    return batch
