"""Image files, and grids of images with their captions underneath."""

import io
import os
import stat
import textwrap
from collections import deque
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lgpl.atomic import atomic_file
from lgpl.data.transforms import to_image
from lgpl.errors import UserError, as_user_error

MARGIN = 6
LINES = 3  # of a caption, at the most
FONT_SIZE = 11


Left = list[tuple[str, str]]  # files that are left out, and why


def files_below(folder: Path) -> tuple[list[str], Left]:
    """Paths in a folder of all files below it that are not hidden; a link counts where it leads to
    what is not there without it. Second, what is left out."""
    found: list[str] = []
    left: Left = []
    top = os.path.realpath(folder)
    # Real paths of folders and of what links lead to: some file systems make up their inodes.
    seen = {top}
    folders, links = [("", top)], deque[str]()
    while folders or links:
        if folders:
            place, real = folders.pop()
            try:
                with os.scandir(real) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                left.append((place, f"folder that cannot be read ({error.strerror})"))
                continue
            for entry in inside:
                if entry.name.startswith("."):
                    continue
                path = f"{place}/{entry.name}" if place else entry.name
                if entry.is_symlink():
                    links.append(path)
                elif entry.path in seen:
                    left.append((path, "another name of what is there already"))
                elif entry.is_dir():
                    seen.add(entry.path)
                    folders.append((path, entry.path))
                elif entry.is_file():
                    found.append(path)
                else:
                    left.append((path, "neither a file nor a folder"))
            links = deque(sorted(links))
            continue
        path = links.popleft()
        try:
            target = os.path.realpath(folder / path, strict=True)
            mode = os.stat(target).st_mode
        except OSError:  # nothing, or itself
            left.append((path, "link that leads nowhere"))
            continue
        within, name = os.path.split(target)
        if target in seen or (within in seen and not name.startswith(".")):
            left.append((path, "link to what is there already"))
        elif stat.S_ISDIR(mode):
            seen.add(target)
            folders.append((path, target))
        elif stat.S_ISREG(mode):
            seen.add(target)
            found.append(path)
        else:
            left.append((path, "link to what is neither a file nor a folder"))
    return sorted(found, key=lambda path: path.split("/")), sorted(left)


def image_path(path: str) -> Path:
    """The path of an image to be written, with its folder made; raises UserError where it has no
    ending of an image, or the folder cannot be made."""
    out = Path(path)
    if out.is_dir():
        raise UserError(f"{out} is a folder; name an image in it, such as {out / 'out.png'}.")
    kind = Image.registered_extensions().get(out.suffix.lower())
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind or "none")
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"{out} has no ending of an image in colours, such as .png.") from error
    with as_user_error(f"{out} cannot be written", OSError):
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


def save(image: Image.Image, path: Path) -> None:
    """Write an image, whole or not at all, in the format of the path's ending; raises UserError
    where that fails, or the format holds no image so large."""
    with as_user_error(f"{path} cannot be written", OSError, ValueError), atomic_file(path) as file:
        image.save(file, Image.registered_extensions()[path.suffix.lower()])


def grid(
    images: Tensor | list[Image.Image],
    captions: list[str] | None = None,
    columns: int = 8,
    tile: int | None = None,
) -> Image.Image:
    """Images, [B, 3, H, W] in [-1, 1] or of one size, in rows on white, with captions underneath;
    they keep their width unless `tile` gives another."""
    tiles = [to_image(i) for i in images] if isinstance(images, Tensor) else images
    width, height = tiles[0].size
    if tile is not None and tile != width:
        width, height = tile, round(height * tile / width)
        tiles = [image.resize((width, height), Image.Resampling.LANCZOS) for image in tiles]
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 3
    below = LINES * line if captions else 0
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    size = (columns * (width + MARGIN) + MARGIN, rows * (height + MARGIN + below) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    letters = max(6, int(width / font.getlength("n")))
    for index, image in enumerate(tiles):
        x = MARGIN + index % columns * (width + MARGIN)
        y = MARGIN + index // columns * (height + MARGIN + below)
        sheet.paste(image, (x, y))
        if captions:
            for i, text in enumerate(textwrap.wrap(captions[index], letters)[:LINES]):
                draw.text((x, y + height + 1 + i * line), text, fill="black", font=font)
    return sheet
