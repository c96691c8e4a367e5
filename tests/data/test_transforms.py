"""Images as they are found, decoded, cropped and turned into tensors."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from lgpl.data.codecs import MAX_PIXELS, open_image
from lgpl.data.transforms import (
    TEN_CROP_SCALES,
    center_crop,
    normalize,
    random_crop,
    ten_crops,
    to_image,
    to_uint8,
)

# An astronaut (NASA, public domain), 512 x 512, and a cup of coffee (Rachel Michetti, CC0),
# 600 x 400: photographs of scikit-image as JPEGs of quality 90.
PHOTOGRAPHS = Path(__file__).parent / "photographs"
SIDE = 48
LOSSLESS: dict[str, Any] = {"webp": {"lossless": True}, "png": {}, "gif": {}}


def photograph(width: int = SIDE, height: int = SIDE) -> Image.Image:
    with Image.open(PHOTOGRAPHS / "astronaut.jpg") as image:
        return image.resize((width, height), Image.Resampling.LANCZOS)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: of depths that Pillow does not write, of sizes that no memory holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def difference(a: Any, b: Any) -> np.ndarray:
    return np.abs(np.asarray(a, float) - np.asarray(b, float))


def ycck() -> bytes:
    """A JPEG whose Adobe segment says YCCK: Pillow writes CMYK, so the planes are prepared."""
    inverted = Image.eval(photograph(), lambda value: 255 - value).convert("YCbCr")
    planes = [Image.eval(plane, lambda value: 255 - value) for plane in inverted.split()]
    black = Image.new("L", inverted.size, 0)
    data = bytearray(encode(Image.merge("CMYK", [*planes, black]), "jpeg", quality=95))
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    data[adobe + 11] = 2
    return bytes(data)


def grey16() -> tuple[bytes, Image.Image]:
    values = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    expected = Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    return encode(Image.fromarray(values), "png"), expected


def rgb16() -> tuple[bytes, Image.Image]:
    values = (np.asarray(photograph(), int) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return png(SIDE, SIDE, 16, 2, rows), photograph()


def palette(transparent: bool) -> tuple[bytes, Image.Image]:
    image = photograph().quantize(32)
    seen = image.convert("RGB")
    if not transparent:
        return encode(image, "png"), seen
    index = image.getpixel((0, 0))
    array = np.array(seen)
    array[np.asarray(image) == index] = 255
    return encode(image, "png", transparency=index), Image.fromarray(array)


def moving(kind: str) -> tuple[bytes, Image.Image]:
    first, second = photograph().quantize(32).convert("RGB"), Image.new("RGB", (SIDE, SIDE), "red")
    return encode(first, kind, save_all=True, append_images=[second], **LOSSLESS[kind]), first


def lossless(image: Image.Image) -> tuple[bytes, Image.Image]:
    return encode(image, "png"), image.convert("RGB")


def seen_through(mode: str, kind: str) -> tuple[bytes, Image.Image]:
    """An image whose left half is transparent."""
    image = photograph().convert(mode)
    seen = image.convert("RGB")
    left = (0, 0, SIDE // 2, SIDE)
    seen.paste("white", left)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, left)
    image.putalpha(alpha)
    return encode(image, kind, **LOSSLESS[kind]), seen


def jpeg(mode: str = "RGB", **options: Any) -> tuple[bytes, Image.Image]:
    image = photograph().convert(mode)
    return encode(image, "jpeg", quality=95, **options), image.convert("RGB")


IMAGES: dict[str, Callable[[], tuple[bytes, Image.Image]]] = {
    "jpeg": lambda: jpeg(subsampling=0),
    "progressive jpeg": lambda: jpeg(subsampling=0, progressive=True),
    "grey jpeg": lambda: jpeg("L"),
    "cmyk jpeg": lambda: jpeg("CMYK"),
    "ycck jpeg": lambda: (ycck(), photograph()),
    "16-bit grey png": grey16,
    "16-bit rgb png": rgb16,
    "1-bit png": lambda: lossless(photograph().convert("1")),
    "grey png": lambda: lossless(photograph().convert("L")),
    "grey and alpha png": lambda: seen_through("LA", "png"),
    "rgba png": lambda: seen_through("RGBA", "png"),
    "rgba webp": lambda: seen_through("RGBA", "webp"),
    "palette png": lambda: palette(transparent=False),
    "palette png with a transparent colour": lambda: palette(transparent=True),
    "moving gif": lambda: moving("gif"),
    "moving webp": lambda: moving("webp"),
    "moving png": lambda: moving("png"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_shows_what_it_shows(name: str) -> None:
    data, expected = IMAGES[name]()
    image = open_image(data)
    assert image.mode == "RGB"
    assert difference(image, expected).mean() <= (3 if "jpeg" in name else 0)
    # The whole image as a training crop: the same colours by the other way.
    crop = random_crop(data, (SIDE, SIDE), random.Random(0), largest=1)
    assert crop.mode == "RGB" and difference(crop, image).max() == 0


# What a viewer does to the stored rows and columns, by the EXIF standard's table.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_followed(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = TURNS[orientation]
    long, square = (encode(photograph(SIDE, height), kind, exif=exif) for height in (32, SIDE))
    stored = Image.open(io.BytesIO(long)).convert("RGB")
    assert difference(open_image(long), turn(np.asarray(stored))).max() == 0
    crop = random_crop(square, (SIDE, SIDE), random.Random(0), largest=1)
    assert difference(crop, open_image(square)).max() == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File Read")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01"]
)
def test_broken_exif_does_not_spoil_a_whole_image(exif: bytes) -> None:
    assert difference(open_image(encode(photograph(), "png", exif=exif)), photograph()).max() == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        encode(Image.new("F", (9, 9), 0.5), "tiff"),
        encode(Image.new("RGB", (9, 9)), "bmp"),
        encode(Image.new("RGB", (9, 9)), "ppm"),
    ],
    ids=["empty", "text", "eps", "float tiff", "bmp", "ppm"],
)
def test_other_formats_are_not_even_tried(data: bytes) -> None:
    refused(data, "does not decode: none of JPEG, PNG, WEBP, GIF")


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_images_are_refused(kind: str, share: float) -> None:
    data = encode(photograph(), kind)
    refused(data[: int(len(data) * share)], "does not decode")


def test_damage_after_the_header_has_its_cause() -> None:
    refused(encode(photograph(), "jpeg")[:-100], "does not decode: damaged$")


def jpeg_bomb() -> bytes:
    data = bytearray(encode(photograph(), "jpeg"))
    start = data.index(b"\xff\xc0")  # start of frame: length, precision, height, width
    data[start + 5 : start + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        png(MAX_PIXELS // 1000, 1001, 8, 2, b""),  # above the limit, below Pillow's warning
        png(10_000, 10_000, 8, 2, b""),  # Pillow warns
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),  # Pillow raises
        jpeg_bomb(),
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + encode(photograph(), "gif")[10:],
    ],
    ids=["png above the limit", "png of 100 megapixels", "largest png", "jpeg", "gif"],
)
def test_bombs_are_refused_by_their_header(data: bytes) -> None:
    refused(data, f"does not decode: more than {MAX_PIXELS} pixels")


def refused(data: bytes, cause: str) -> None:
    for read in (open_image, lambda data: random_crop(data, (8, 8), random.Random(0))):
        with pytest.raises(ValueError, match=cause):
            read(data)


SIZES = [(160, 120), (121, 163), (100, 37), (96, 96), (40, 30)]


@pytest.mark.parametrize("width, height", [*SIZES, (250, 331), (517, 262)])
def test_centre_crop_has_the_pixels_of_adms(width: int, height: int) -> None:
    """Halvings by averages, each rounded, then bicubic, then the middle: to the bit."""
    image, size = photograph(width, height), 64
    left = image
    while min(left.size) >= 128:
        left = left.resize((left.width // 2, left.height // 2), Image.Resampling.BOX)
    scaled = tuple(round(side * size / min(left.size)) for side in left.size)
    pixels = np.asarray(left.resize(scaled, Image.Resampling.BICUBIC))
    y, x = ((side - size) // 2 for side in pixels.shape[:2])
    assert (
        difference(center_crop(image, (size, size)), pixels[y : y + size, x : x + size]).max() == 0
    )


def test_centre_crop_of_a_multiple_is_a_mean_of_squares() -> None:
    image = photograph(512, 512)
    fields = np.asarray(image, float).reshape(64, 8, 64, 8, 3).mean((1, 3))
    assert (
        difference(center_crop(image, (64, 64)), fields).max() <= 3
    )  # six roundings of at most a half


@pytest.mark.parametrize("width, height", [*SIZES, (700, 500), (500, 700), (64, 96), (193, 128)])
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_oblong_crops_cover_the_size_and_no_more(
    width: int, height: int, size: tuple[int, int]
) -> None:
    """A wave over the image tells how it was scaled and which part was kept."""
    y, x = np.mgrid[:height, :width] + 0.5
    image = Image.fromarray(np.stack([255 * x / width, 255 * y / height, 0 * x], -1).astype("u1"))
    ratio = max(size[0] / height, size[1] / width)
    rows, columns = (np.arange(side) + 0.5 - side / 2 for side in size)
    across = 255 * (0.5 + columns / (width * ratio))[None, :].repeat(size[0], 0)
    down = 255 * (0.5 + rows / (height * ratio))[:, None].repeat(size[1], 1)
    crop = np.asarray(center_crop(image, size), float)
    assert crop.shape == (*size, 3)
    inner = np.s_[3:-3, 3:-3]
    assert difference(crop[..., 0], across)[inner].max() < 6
    assert difference(crop[..., 1], down)[inner].max() < 6
    data = encode(image, "png")
    for seed in range(8):
        crop = np.asarray(random_crop(data, size, random.Random(seed)), float)
        assert crop.shape == (*size, 3)
        scale = 255 / (width * ratio), 255 / (height * ratio)  # brightness from pixel to pixel
        found = np.diff(crop[..., 0], axis=1).mean(), np.diff(crop[..., 1], axis=0).mean()
        assert all(0.75 * s < f < 1.05 * s + 0.02 for s, f in zip(scale, found, strict=True))
    views = ten_crops(image, size, 1.1)
    assert len(views) == 10 and {view.size for view in views} == {size[::-1]}
    assert difference(np.asarray(views[5])[:, ::-1], views[0]).max() == 0


@pytest.mark.parametrize("width, height", SIZES)
def test_random_crop_is_scaling_the_short_side_then_cropping(width: int, height: int) -> None:
    data, size = encode(photograph(width, height), "png"), 48
    for seed in range(8):
        rng = random.Random(seed)
        short = rng.randint(size, round(size * 1.25))
        scaled = tuple(
            max(short, round(side * short / min(width, height))) for side in (width, height)
        )
        left, top = (rng.randint(0, side - size) for side in scaled)
        whole = open_image(data).resize(scaled, Image.Resampling.BICUBIC)
        expected = whole.crop((left, top, left + size, top + size))
        crop = random_crop(data, (size, size), random.Random(seed))
        assert difference(crop, expected).max() <= 2  # rounding, twice


def test_random_crop_lies_everywhere() -> None:
    data = encode(photograph(SIDE + 2, SIDE), "png")
    image = open_image(data)
    places = {image.crop((left, 0, left + SIDE, SIDE)).tobytes() for left in range(3)}
    crops = {
        random_crop(data, (SIDE, SIDE), random.Random(seed), 1).tobytes() for seed in range(40)
    }
    assert crops == places


def test_a_line_of_pixels_needs_no_gigapixel() -> None:
    data = encode(Image.new("RGB", (20_000, 1), "teal"), "png")
    crops = (
        center_crop(open_image(data), (256, 256)),
        random_crop(data, (256, 256), random.Random(0)),
    )
    assert all(crop.getcolors() == [(256 * 256, (0, 128, 128))] for crop in crops)


def drafted_and_full(
    data: bytes, size: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """How far the training crop is from the same crop of the image decoded in full."""
    drafted = random_crop(data, (size, size), random.Random(seed))
    with monkeypatch.context() as patch:
        patch.setattr(JpegImageFile, "draft", lambda *_: None)
        full = random_crop(data, (size, size), random.Random(seed))
    return difference(drafted, full)


@pytest.mark.parametrize(
    "name, size, mean, most",
    [  # the photograph is decoded at 1/8 or 1/4, 1/4 or 1/2, 1/2 of its side
        ("astronaut", 64, 1.2, 16),
        ("astronaut", 128, 1.0, 20),
        ("astronaut", 200, 2.0, 44),
        ("coffee", 64, 1.5, 32),
        ("coffee", 128, 1.2, 28),
    ],
)
def test_drafted_pixels_stay_near_those_of_a_full_decode(
    name: str, size: int, mean: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (PHOTOGRAPHS / f"{name}.jpg").read_bytes()
    differences = [drafted_and_full(data, size, seed, monkeypatch) for seed in range(16)]
    assert all(0 < d.mean() <= mean and d.max() <= most for d in differences)


@pytest.mark.parametrize("width, height", [(511, 387), (387, 515)])
def test_a_draft_moves_nothing(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waves show what a photograph hides: moved by a quarter of a pixel, they differ by 6."""
    y, x = np.mgrid[:height, :width]
    wave = 127.5 + 120 * np.sin(x * np.pi / 16) * np.sin(y * np.pi / 16)
    data = encode(Image.fromarray(wave.round().astype(np.uint8)), "jpeg", quality=98)
    for seed in range(16):
        assert drafted_and_full(data, 150, seed, monkeypatch).max() <= 4


def test_evaluation_decodes_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def draft(*_: object) -> None:
        raise AssertionError("drafted")

    data = (PHOTOGRAPHS / "astronaut.jpg").read_bytes()
    monkeypatch.setattr(JpegImageFile, "draft", draft)
    with Image.open(io.BytesIO(data)) as stored:
        assert difference(open_image(data), stored).max() == 0


@pytest.mark.parametrize("scale", TEN_CROP_SCALES)
@pytest.mark.parametrize("width, height", [(700, 500), (400, 900)])
def test_ten_crops(width: int, height: int, scale: float) -> None:
    image, size = photograph(width, height), 256
    side = {1.1: 281, 1.05: 268}[scale]  # LlamaGen cuts 281.6 and 268.8 off
    square = np.asarray(center_crop(image, (side, side)))
    far, middle = side - size, (side - size) // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]  # top, left
    five = [square[top : top + size, left : left + size] for top, left in corners]
    views = ten_crops(image, (size, size), scale)
    assert len(views) == 10
    for view, expected in zip(views, [*five, *(a[:, ::-1] for a in five)], strict=True):
        assert view.size == (size, size) and difference(view, expected).max() == 0


def all_values() -> Image.Image:
    return Image.merge("RGB", [Image.linear_gradient("L")] * 3)


def test_tensors_are_of_minus_one_to_one() -> None:
    image = all_values()
    tensor = normalize(to_uint8(image))
    assert tensor.shape == (3, 256, 256) and tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    column = tensor[0, :, 0]
    assert torch.equal(column, -column.flip(0)) and column[-1] == 1
    torch.testing.assert_close(column.double(), torch.arange(256).double() / 127.5 - 1)
    assert to_image(tensor).tobytes() == image.tobytes()


def test_normalize_gives_a_batch_the_bits_of_its_images() -> None:
    images = [photograph(), photograph().transpose(Image.Transpose.ROTATE_90)]
    pixels = torch.stack([to_uint8(image) for image in images])
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, 3, SIDE, SIDE)
    before = pixels.clone()
    assert torch.equal(normalize(pixels), torch.stack([normalize(p) for p in pixels]))
    assert torch.equal(pixels, before)


@pytest.mark.gpu
def test_normalize_gives_the_same_bits_on_a_gpu() -> None:
    pixels = to_uint8(all_values())
    assert torch.equal(normalize(pixels.cuda()).cpu(), normalize(pixels))
