"""Sound images are read whatever their metadata, in sRGB, and none takes more than some seconds."""

import io
import random
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lgpl.data.codecs import open_image, open_layers
from lgpl.data.members import BadSample
from lgpl.data.transforms import random_crop

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PHOTOGRAPH = Path(__file__).parent / "photographs/astronaut.jpg"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, row: bytes, *more: bytes) -> bytes:
    """Eight pixels a row, eight times, with more chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
    return SIGNATURE + header + b"".join(more) + pixels + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "right"),
    [
        (1, 0, b"\xf0", b"\0\1", (0, 0, 0)),
        (2, 0, b"\xaa\x55", b"\0\2", (85, 85, 85)),
        (4, 0, b"\x55\x55\xaa\xaa", b"\0\5", (170, 170, 170)),
        (8, 0, b"\x50" * 4 + b"\xa0" * 4, b"\0\x50", (160, 160, 160)),
        (16, 0, b"\x12\x34" * 4 + b"\xa0\xa0" * 4, b"\x12\x34", (160, 160, 160)),
        (8, 2, b"\1\2\3" * 4 + b"\xa0\0\0" * 4, b"\0\1\0\2\0\3", (160, 0, 0)),
        (16, 2, b"\1\2\3\4\5\6" * 4 + b"\xa0\0\0\0\0\0" * 4, b"\1\2\3\4\5\6", (160, 0, 0)),
    ],
)
def test_a_colour_that_is_transparent(
    depth: int, colour: int, row: bytes, clear: bytes, right: tuple[int, int, int]
) -> None:
    """The left half is of the colour that the file calls transparent, at every depth."""
    data = png(depth, colour, row, chunk(b"tRNS", clear))
    image = open_image(data)
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((7, 7)) == right
    crop = random_crop(data, (8, 8), random.Random(0), 1.0)
    assert crop.tobytes() == image.tobytes()


LARGE = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/>" + b" " * 2_000_000)
TEXT = chunk(b"tEXt", b"prompt\0a cat")


@pytest.mark.parametrize(
    "more",
    [
        chunk(b"iTXt", LARGE),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b" " * 3_000_000)),
        TEXT[:-1] + bytes([TEXT[-1] ^ 255]),  # a wrong checksum
        chunk(b"iTXt", b"no text"),
        chunk(b"zTXt", b"x\0\0no zlib"),
        chunk(b"tIME", b"?"),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(8_000_000))),
        chunk(b"iCCP", b"x\0\0no profile"),
        chunk(b"eXIf", b"MM\0*")[:-1] + b"\0",
        chunk(b"acTL", b"\0"),
    ],
    ids=range(10),
)
def test_metadata_do_not_spoil_pixels(more: bytes) -> None:
    row = bytes(range(24))
    for data in (png(8, 2, row, more), png(8, 2, row)[:-12] + more + chunk(b"IEND", b"")):
        assert open_image(data).tobytes() == row * 8


def test_a_photograph_with_damaged_pixels_is_refused() -> None:
    data = bytearray(encoded(Image.new("RGB", (64, 64), "red"), "png"))
    data[data.index(b"IDAT") + 8] ^= 255
    with pytest.raises(BadSample, match="damaged"):
        open_image(bytes(data))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
def test_a_damaged_beginning_is_no_other_format(kind: str) -> None:
    with pytest.raises(BadSample, match="does not decode: damaged"):
        open_image(encoded(Image.new("RGB", (64, 64), "red"), kind)[:20])


def test_many_scans_of_many_pixels_are_refused_at_once() -> None:
    whole = encoded(Image.new("L", (8000, 8000), 128), "jpeg", progressive=True, quality=50)
    last, end = whole.rfind(b"\xff\xda"), whole.rfind(b"\xff\xd9")
    bomb = whole[:end] + whole[last:end] * 500 + whole[end:]
    begin = time.perf_counter()
    for read in (open_image, lambda data: random_crop(data, (64, 64), random.Random(0))):
        with pytest.raises(BadSample, match=r"a JPEG of 5\d\d scans of 64000000 pixels"):
            read(bomb)
    assert time.perf_counter() - begin < 1


def test_no_warning_of_large_images() -> None:
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    data = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with warnings.catch_warnings(), pytest.raises(BadSample, match="more than 67108864 pixels"):
        warnings.simplefilter("error")
        open_image(data)


def lossless_jpeg(image: Image.Image) -> bytes:
    """By ITU T.81, annex H: differences to the pixel at the left, in codes of five bits."""
    values, bits = np.asarray(image).astype(int), []
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            before = line[x - 1] if x else values[y - 1][0] if y else 128
            difference = int(value - before)
            size = abs(difference).bit_length()
            bits.append(f"{size:05b}")
            if size:
                bits.append(
                    f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}"
                )
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    codes = bytes([0, 0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))  # id and counts, symbols
    frame = struct.pack(">BHHB3B", 8, image.height, image.width, 1, 1, 0x11, 0)

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([255, marker]) + struct.pack(">H", len(content) + 2) + content

    head = segment(0xC4, codes) + segment(0xC3, frame) + segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))
    return b"\xff\xd8" + head + data + b"\xff\xd9"


def test_a_lossless_jpeg_is_as_sound_in_training() -> None:
    with Image.open(PHOTOGRAPH) as photograph:
        image = photograph.convert("L").resize((64, 64))
    data = lossless_jpeg(image)
    assert open_image(data).getchannel("R").tobytes() == image.tobytes()
    crop = random_crop(data, (32, 32), random.Random(0), 1.0)
    expected = random_crop(encoded(image, "png"), (32, 32), random.Random(0), 1.0)
    assert crop.tobytes() == expected.tobytes()


def profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2."""
    table, content, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        tag += bytes(-len(tag) % 4)
        table += name + struct.pack(">II", offset + len(content), len(tag))
        content += tag
    size = offset + len(content)
    kind = b"mntr" if space == b"RGB " else b"prtr"
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, kind, space, connection)
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"\0\0\xf6\xd6\0\1\0\0\0\0\xd3\x2d" + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + content


def matrix_profile(red: tuple, green: tuple, blue: tuple, gamma: float) -> bytes:
    """Of a screen with these primaries, as XYZ under D50."""
    tags = {}
    for name, xyz in ((b"r", red), (b"g", green), (b"b", blue)):
        fixed = struct.pack(">3i", *(round(v * 65536) for v in xyz))
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + fixed
        tags[name + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags[b"wtpt"] = b"XYZ \0\0\0\0\0\0\xf6\xd6\0\1\0\0\0\0\xd3\x2d"
    return profile(b"RGB ", tags)


# Display P3's primaries under D50.
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def by_formula(colour: tuple[int, int, int]) -> np.ndarray:
    """A colour of Display P3 with gamma 2.2 in sRGB."""
    linear = np.array(P3).T @ (np.array(colour) / 255) ** 2.2
    out = np.linalg.inv(np.array(SRGB).T) @ linear
    out = out.clip(0, 1)
    return 255 * np.where(out <= 0.0031308, 12.92 * out, 1.055 * out ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("colour", [(200, 60, 40), (40, 180, 90), (128, 128, 128), (90, 60, 200)])
def test_a_wide_gamut_becomes_srgb(kind: str, colour: tuple[int, int, int]) -> None:
    options = {"jpeg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "png": {}}
    image = Image.new("RGB", (32, 48), colour)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    more = {"icc_profile": matrix_profile(*P3, 2.2), "exif": exif}
    data = encoded(image, kind, **options[kind], **more)
    found = open_image(data)
    assert found.size == (48, 32)
    assert np.abs(np.array(found.getpixel((9, 9))) - by_formula(colour)).max() <= 3
    crop = random_crop(data, (16, 16), random.Random(0))
    assert np.abs(np.array(crop.getpixel((9, 9))) - by_formula(colour)).max() <= 3


def test_alpha_stays_where_a_profile_is_used() -> None:
    image = Image.new("RGBA", (8, 8), (200, 60, 40, 0))
    image.paste((200, 60, 40, 255), (4, 0, 8, 8))
    found = open_image(encoded(image, "png", icc_profile=matrix_profile(*P3, 2.2)))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.array(found.getpixel((7, 7))) - by_formula((200, 60, 40))).max() <= 3


def test_srgb_itself_changes_no_bit() -> None:
    with Image.open(PHOTOGRAPH) as photograph:
        image = photograph.convert("RGB").resize((64, 64))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (own, b"no profile", own[:300], matrix_profile(*P3, 2.2)[:140]):
        assert open_image(encoded(image, "png", icc_profile=icc)).tobytes() == image.tobytes()


def cmyk_profile() -> bytes:
    """A printer whose inks darken: lightness by a table of sixteen corners."""
    corners = []
    for cyan in (0, 1):
        for magenta in (0, 1):
            for yellow in (0, 1):
                for black in (0, 1):
                    light = 255 * (1 - 0.3 * cyan) * (1 - 0.4 * magenta) * (1 - 0.1 * yellow)
                    light *= 0 if black else 1
                    a = 128 - 40 * cyan + 70 * magenta
                    b = 128 - 40 * cyan + 80 * yellow
                    corners.append(bytes([round(light), min(a, 255), min(b, 255)]))
    identity = bytes(range(256))
    one = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + one
    lut += identity * 4 + b"".join(corners) + identity * 3
    white = b"XYZ \0\0\0\0\0\0\xf6\xd6\0\1\0\0\0\0\xd3\x2d"
    return profile(b"CMYK", {b"A2B0": lut, b"wtpt": white}, b"Lab ")


def test_inks_become_srgb() -> None:
    image = Image.new("CMYK", (16, 16), (200, 30, 60, 20))
    icc = cmyk_profile()
    data = encoded(image, "jpeg", quality=100, icc_profile=icc)
    found = np.array(open_image(data).getpixel((8, 8)), float)
    expected = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )  # fmt: skip
    assert expected is not None
    assert np.abs(found - np.array(expected.getpixel((8, 8)))).max() <= 3
    naive = np.array(image.convert("RGB").getpixel((8, 8)), float)
    assert np.abs(found - naive).max() > 20


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_no_still_image(kind: str) -> None:
    """Which `open_image` takes the first frame of."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert open_image(data).size == (8, 8)
    with pytest.raises(BadSample, match="an animation, where one still image is wanted"):
        open_layers(data)
    assert open_layers(encoded(frames[0], kind)).size == (8, 8)
    for cut in (data[:-1] + b",", data[: len(data) // 2]):
        with pytest.raises(BadSample):
            open_layers(cut)


def test_transparency_is_kept_apart() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert open_layers(encoded(clear, "PNG")).getpixel((3, 3)) == (10, 20, 30, 0)
    assert open_image(encoded(clear, "PNG")).getpixel((3, 3)) == (255, 255, 255)
