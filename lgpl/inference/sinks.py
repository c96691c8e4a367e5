"""Where drawn images go."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lgpl.atomic import write_text
from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.image_files import save
from lgpl.inference.drawing import Request
from lgpl.text.prompts import CAPTIONS

MANIFEST = "sampling.json"
NAMES = {"images": "number of images", "modified": "state of the checkpoint"}  # of settings


class ImageList:
    """Keeps images in memory, in the order of their requests."""

    def __init__(self) -> None:
        self._images: list[Tensor] = []

    def lacks(self, request: Request) -> bool:
        return True

    def take(self, requests: Sequence[Request], images: Tensor) -> None:
        self._images.append(images)

    def images(self) -> Tensor:
        """[N, 3, H, W] in [-1, 1]."""
        return torch.cat(self._images)


class ImageFolder:
    """PNG files by the requests' numbers, a manifest that says what they depend on, and the
    captions, one a line, where there are some.

    An earlier run with the same settings, which are plain values, is gone on with; UserError where
    the folder holds images of others, or cannot be written.
    """

    files = "[0-9]*.png"  # all images in the folder

    def __init__(
        self, folder: Path, settings: dict[str, Any], captions: Sequence[str] = ()
    ) -> None:
        self.folder, self._settings, path = folder, settings, folder / MANIFEST
        self._captions = "".join(re.sub(r"[\r\n]+", " ", text) + "\n" for text in captions)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.glob(self.files)):
                return  # what a start that failed left says nothing
            held = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"--out: {folder} cannot be used ({error}).") from error
        images = f"--out: {folder} holds images"
        if held is None:
            lacking = f"but no {MANIFEST} that says how they were drawn"
            raise UserError(f"{images}, {lacking}; give another folder.")
        for name, value in settings.items():
            if held.get(name) != value:
                other = f"another {NAMES.get(name, name)} ({held.get(name)}, not {value})"
                other = "other prompts" if name == "prompts" else other  # of which it has a digest
                raise UserError(f"{images} drawn with {other}; give another folder.")

    def lacks(self, request: Request) -> bool:
        return not self.path(request).exists()

    def take(self, requests: Sequence[Request], images: Tensor) -> None:
        write_text(self.folder / MANIFEST, json.dumps(self._settings, indent=2))
        if self._captions:
            write_text(self.folder / CAPTIONS, self._captions)
        for request, image in zip(requests, images, strict=True):
            self.keep(request, to_image(image))

    def path(self, request: Request) -> Path:
        return self.folder / f"{request.number:06d}.png"

    def keep(self, request: Request, image: Image.Image) -> None:
        save(image, self.path(request))


class GenEvalFolder(ImageFolder):
    """`00012/samples/0003.png` and `00012/metadata.jsonl`, as GenEval's scorer reads them.

    Args:
        rows: what each prompt asks for; `each` requests in turn have the same prompt.
    """

    files = "*/samples/*.png"

    def __init__(
        self, folder: Path, settings: dict[str, Any], rows: Sequence[dict[str, Any]], each: int
    ) -> None:
        super().__init__(folder, settings)
        self._rows, self._each = rows, each

    def path(self, request: Request) -> Path:
        prompt, sample = divmod(request.number, self._each)
        return self.folder / f"{prompt:05d}" / "samples" / f"{sample:04d}.png"

    def keep(self, request: Request, image: Image.Image) -> None:
        path = self.path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = self._rows[request.number // self._each]
        write_text(path.parents[1] / "metadata.jsonl", json.dumps(row) + "\n")
        super().keep(request, image)


class GridFolder(ImageFolder):
    """`NAME.png`, the images of a prompt side by side, as DPG-bench's scorer reads them. All
    requests of a prompt have to come to one sink.

    Args:
        names: of the prompts; `each` requests in turn have the same prompt.
    """

    files = "*.png"

    def __init__(
        self, folder: Path, settings: dict[str, Any], names: Sequence[str], each: int
    ) -> None:
        super().__init__(folder, settings)
        self._names, self._each = names, each
        self._waiting: dict[str, list[Image.Image]] = {}

    def path(self, request: Request) -> Path:
        return self.folder / f"{self._names[request.number // self._each]}.png"

    def keep(self, request: Request, image: Image.Image) -> None:
        path, (width, height) = self.path(request), image.size
        waiting = self._waiting.setdefault(path.name, [])
        waiting.append(image)
        if len(waiting) < self._each:
            return
        columns = math.ceil(math.sqrt(self._each))
        sheet = Image.new("RGB", (columns * width, -(-self._each // columns) * height), "white")
        for i, tile in enumerate(self._waiting.pop(path.name)):
            sheet.paste(tile, (i % columns * width, i // columns * height))
        save(sheet, path)


def newest(checkpoint: Path) -> float:
    """When the newest of its files was written; a folder does not change with its files."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max(path.stat().st_mtime for path in files or [checkpoint])
