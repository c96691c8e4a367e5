"""Encoded images -> pixels in sRGB: whatever their metadata, and in bounded time and memory."""

import functools
import io
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageCms, ImageOps

from lgpl.data.members import BadSample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # no other decoder of Pillow's sees the bytes
MAX_PIXELS = 2**26  # more than a 61-megapixel camera's; 256 MiB once decoded
# Pixels of all scans of a progressive JPEG: some seconds. Cameras write about ten scans.
MOST_SCANNED = 2**32
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that make its pixels: texts and the like can be damaged, or larger than Pillow
# reads, while the pixels are sound.
PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"))
PNG_COLOURS = PNG_PIXELS | {b"iCCP", b"eXIf"}  # and those that say how to show them
GREYS = {"L;2": 85, "L;4": 17}  # of Pillow's raw modes: what a step of grey is scaled by
LARGEST_PROFILE = 4 * 2**20  # bytes
UNSEEN = 2  # of 255, the largest shift of a colour profile that is taken for sRGB itself


def open_image(data: bytes) -> Image.Image:
    """An RGB image decoded in full: the first frame, upright, in sRGB, transparent parts on white;
    a `BadSample` where it is of no format in `FORMATS`, damaged, of more than `MAX_PIXELS`, or
    would take too long."""
    return finish(decode(open_header(data)))


def open_header(data: bytes) -> Image.Image:
    """An image of which no pixel is decoded yet; raises as `open_image`."""
    image = _opened(data)
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise BadSample(f"image that does not decode: more than {MAX_PIXELS} pixels")
    scans = data.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 0
    if scans * pixels > MOST_SCANNED:
        raise BadSample(f"image that does not decode: a JPEG of {scans} scans of {pixels} pixels")
    return image


def decode(image: Image.Image) -> Image.Image:
    """The pixels of `open_header`'s image as RGB, or as RGBA where some may be transparent."""
    try:
        tiles = getattr(image, "tile", [])
        raw_mode = str(tiles[0][3]) if image.format == "PNG" and tiles else ""
        image.load()
        image = _in_eight_bits(image, raw_mode)
        mode = "RGBA" if image.has_transparency_data else "RGB"
        image = _in_srgb(image, mode)
        return image if image.mode == mode else image.convert(mode)
    except Exception as error:
        raise BadSample("image that does not decode: damaged") from error


def open_layers(data: bytes) -> Image.Image:
    """`open_image` of an image that does not move, as RGBA where some of it may be transparent;
    raises as it does, and for an animation."""
    image = open_header(data)
    try:
        moves = _moves(image, data)
    except Exception as error:  # Pillow reads on to find out
        raise BadSample("image that does not decode: damaged") from error
    if moves:
        raise BadSample("an animation, where one still image is wanted")
    return upright(decode(image))


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF says, in place."""
    with suppress(Exception):  # broken EXIF, while the pixels are whole
        ImageOps.exif_transpose(image, in_place=True)
    return image


def finish(image: Image.Image) -> Image.Image:
    """`decode`'s image, or a square of it, upright and on white."""
    return on_white(upright(image))


def on_white(image: Image.Image) -> Image.Image:
    """RGB of an image that is RGB or RGBA."""
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _moves(image: Image.Image, data: bytes) -> bool:
    """Whether it has several frames; an MPO, as phones write, has other views of one image."""
    if image.format == "PNG":  # whose chunks of animation nobody else here reads
        start = data.find(b"acTL", 0, max(0, data.find(b"IDAT")))
        return start > 0 and int.from_bytes(data[start + 4 : start + 8], "big") > 1
    return image.format in ("GIF", "WEBP") and bool(getattr(image, "is_animated", False))


def _opened(data: bytes) -> Image.Image:
    if not data.startswith(PNG_SIGNATURE):
        return _by_pillow(data)
    try:
        return _by_pillow(_png_of(data, PNG_COLOURS))
    except BadSample:
        return _by_pillow(_png_of(data, PNG_PIXELS))


def _by_pillow(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():  # the bound on pixels is ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSample(f"image that does not decode: more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises whatever its codecs raise
        is_ours = data.startswith((b"\xff\xd8", PNG_SIGNATURE, b"GIF8")) or data[8:12] == b"WEBP"
        why = "damaged" if is_ours else f"none of {', '.join(FORMATS)}"
        raise BadSample(f"image that does not decode: {why}") from error


def _png_of(data: bytes, kept: frozenset[bytes]) -> bytes:
    """A PNG of nothing but these chunks."""
    parts, start = [data[:8]], 8
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if kind in kept:
            parts.append(data[start:end])
        if kind == b"IDAT":
            kept -= {b"iCCP"}  # which stands before the pixels
        start = end
    return b"".join(parts)


def _in_eight_bits(image: Image.Image, raw_mode: str) -> Image.Image:
    """A decoded image without values that Pillow leaves at another depth than the pixels'."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
        grey = image.point(lambda value: value * (1 / 257) + 0.5).convert("L")
        if clear is not None:
            alpha = np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8)
            grey.putalpha(Image.fromarray(alpha))
            del grey.info["transparency"]
        return grey
    if raw_mode in GREYS and clear is not None:
        image.info["transparency"] = clear * GREYS[raw_mode]
    elif raw_mode.startswith("RGB;16") and clear is not None:
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image


def _in_srgb(image: Image.Image, mode: str) -> Image.Image:
    """An image with a colour profile as `mode` in sRGB; without one, or with one that cannot be
    used, as it is."""
    profile = image.info.get("icc_profile")
    if not profile or len(profile) > LARGEST_PROFILE:
        return image
    plain = {"CMYK": "CMYK", "L": "L", "LA": "L"}.get(image.mode, "RGB")
    transform = _to_srgb(profile, plain)
    if transform is None:
        return image
    converted = transform.apply(image.convert(plain))
    if mode == "RGBA":
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    converted.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return converted


@functools.lru_cache(64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What turns pixels of a profile into sRGB; None for sRGB's own and for damaged ones."""
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(theirs, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception:  # a profile is anybody's bytes, and Pillow may lack littlecms
        return None
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
        turned = ImageCms.applyTransform(Image.fromarray(colours), transform)
        shift = np.abs(np.asarray(turned).astype(int) - colours.astype(int)).max()
        return None if shift <= UNSEEN else transform
    return transform
