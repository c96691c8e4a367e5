"""Decoding real bytes, and refusing bad ones by a cause."""

from __future__ import annotations

import io
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.codes import CodeLayout
from lgpl.data import ShardDataModule
from lgpl.data.codecs import open_image
from lgpl.data.decode import BadSample, Field, SampleDecoder, collate
from lgpl.data.transforms import center_crop, normalize, to_image, to_uint8
from lgpl.errors import UserError
from lgpl.text.encoder import left_pad
from tests.shards import image_bytes


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def decode(fields: list[Field], raw: dict[str, bytes], **limits: Any) -> dict[str, Any]:
    decoder = SampleDecoder(fields, image_size=(16, 16), **limits)
    return decoder({"__key__": "k", "__shard__": "s", **raw}, random.Random(0))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_image_is_the_centre(kind: str) -> None:
    data = image_bytes(1, (40, 32), kind)
    image = decode(["image"], {kind.replace("jpeg", "jpg"): data})["image"]
    assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    assert torch.equal(image, to_uint8(center_crop(open_image(data), (16, 16))))


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("size", [(64, 16), (16, 64), (5, 40), (16, 16)])
def test_image_is_whole_on_white(size: tuple[int, int], augment: bool) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 0, 0)).save(buffer, "png")
    image = decode(["image"], {"png": buffer.getvalue()}, fit="pad", augment=augment)["image"]
    assert image.shape == (3, 16, 16)
    width, height = (round(side * 16 / max(size)) for side in size)
    left, top = (16 - width) // 2, (16 - height) // 2
    expected = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    expected[0, top : top + height, left : left + width] = 200
    expected[1:, top : top + height, left : left + width] = 0
    assert torch.equal(image, expected)


def test_views_are_crops() -> None:
    with pytest.raises(UserError, match="must be crop, got pad"):
        ShardDataModule(fit="pad", ten_crop=(1.1,))


def test_transparent_is_white() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(buffer, "png")
    assert (decode(["image"], {"png": buffer.getvalue()})["image"] == 255).all()


def test_augmentation_repeats_by_its_rng_and_differs_between_them() -> None:
    decoder = SampleDecoder(["image"], image_size=(16, 16), augment=True)
    raw = {"__key__": "k", "__shard__": "s", "jpg": image_bytes(3)}
    a, b, c = (decoder(raw, random.Random(seed))["image"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_tensor_and_image_round_trip() -> None:
    image = Image.open(io.BytesIO(image_bytes(5, kind="png")))
    assert to_image(normalize(to_uint8(image))).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("fields", "raw", "cause"),
    [
        (["image"], {"txt": b"a"}, "without its image"),
        (["caption"], {"jpg": b""}, "without its caption"),
        (["image"], {"jpg": b"not an image"}, "does not decode"),
        (["image"], {"jpg": image_bytes(1)[:200]}, "does not decode"),
        (["caption"], {"txt": b"\xff\xfe\xfa"}, "not UTF-8"),
        (["caption"], {"txt": b" <b></b> "}, "empty caption"),
        (["class"], {"cls": b"10"}, "class outside 0 to 9"),
        (["class"], {"cls": b"-1"}, "class outside 0 to 9"),
        (["class"], {"cls": b"cat"}, "class that is no number"),
        (["codes"], {"codes.npy": npy(np.full((2, 2), 64, np.uint16))}, "codes outside 0 to 63"),
        (["codes"], {"codes.npy": npy(np.full((2, 2), -1, np.int64))}, "codes outside 0 to 63"),
        (
            ["codes"],
            {"codes.npy": npy(np.zeros((2, 3), np.uint16))},
            "layout 2x3 where the model's is 2x2",
        ),
        (
            ["codes"],
            {"codes.npy": npy(np.zeros((1, 2, 2, 2), np.uint16))},
            "layout 2x2x2 where the model's is 2x2",
        ),
        (
            ["codes"],
            {"codes.npy": npy(np.zeros((3, 2, 2), np.uint16))},
            "do not say whether the first dimension is views or depth",
        ),
        (["codes"], {"codes.npy": npy(np.zeros((2, 2)))}, "codes that are no integers"),
        (["codes"], {"codes.npy": pickle.dumps([1])}, "no .npy array"),
        (["codes"], {"codes.npy": b"PK\x03\x04 no zip"}, "no .npy array"),
        (["codes"], {"codes.npy": npy(np.zeros((0, 2), np.uint16))}, "an empty one"),
        (["codes"], {"codes.npy": npy(np.array([{}], dtype=object))}, "no .npy array"),
        (
            ["text"],
            {"text.npy": npy(np.zeros((3, 5), np.float16))},
            "5 wide where the model takes 4",
        ),
        (["text"], {"text.npy": npy(np.zeros(3, np.float16))}, "no floats"),
    ],
)
def test_bad_samples_by_cause(fields: list[Field], raw: dict[str, bytes], cause: str) -> None:
    limits = {
        "layout": CodeLayout(2, 2),
        "codebook_size": 64,
        "num_classes": 10,
        "text_features": 4,
    }
    with pytest.raises(BadSample, match=cause):
        decode(fields, raw, **limits)


@pytest.mark.parametrize("depth", [1, 2])
def test_codes_are_one_view_by_their_layout(depth: int) -> None:
    layout = CodeLayout(3, 4, depth)
    stored = np.arange(5 * layout.codes, dtype=np.uint32).reshape(5, depth, 3, 4) + 2**16
    raw = {"codes.npy": npy(stored)}
    views = [torch.from_numpy(view.astype(np.int64).reshape(layout.shape)) for view in stored]
    first = decode(["codes"], raw, layout=layout)["codes"]
    assert torch.equal(first, views[0]) and first.shape == layout.shape
    open_layout = decode(["codes"], raw)["codes"]
    assert torch.equal(open_layout, first)
    drawn = SampleDecoder(["codes"], (16, 16), augment=True, layout=layout)
    found = [drawn({"__key__": "k", **raw}, random.Random(i))["codes"] for i in range(60)]
    assert {int(codes.flatten()[0]) for codes in found} == {int(v.flatten()[0]) for v in views}
    assert all(any(torch.equal(codes, view) for view in views) for codes in found)


def test_arrays_in_any_order_of_their_bytes() -> None:
    """As numpy saves a transposed array, or one of a machine of the other kind."""
    array = np.arange(6, dtype=np.float16).reshape(3, 2)
    for other in (np.asfortranarray(array), array.astype(">f4")):
        data = io.BytesIO()
        np.save(data, other)
        decoder = SampleDecoder(["text"], (16, 16))
        raw = {"__key__": "k", "text.npy": data.getvalue()}
        assert torch.equal(decoder(raw, random.Random(0))["text"], torch.tensor(array).float())


def test_a_caption_with_a_byte_order_mark() -> None:
    """As Windows' editors write it."""
    raw = {"__key__": "k", "txt": "\ufeffa cat".encode()}
    assert SampleDecoder(["caption"], (16, 16))(raw, random.Random(0))["caption"] == "a cat"


def test_collate_pads_text_on_the_left() -> None:
    features = [torch.ones(2, 3), torch.ones(5, 3)]
    batch, lengths = left_pad(features, 4)
    assert lengths.tolist() == [2, 4]
    assert batch[..., 0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    made = collate([{"key": "a", "class": 1, "text": f} for f in features], text_length=6)
    assert made["class"].tolist() == [1, 1] and made["text"].shape == (2, 6, 3)
    assert made["text_lengths"].tolist() == [2, 5] and made["key"] == ["a", "a"]
