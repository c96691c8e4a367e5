"""Where drawn images go."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.atomic import write_text
from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.image_files import save
from lgpl.inference.drawing import Request

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
    """PNG files by the requests' numbers, and a manifest that says what they depend on.

    An earlier run with the same settings, which are plain values, is gone on with; UserError where
    the folder holds images of others, or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self._settings, path = folder, settings, folder / MANIFEST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.glob("[0-9]*.png")):
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
        return not self._path(request).exists()

    def take(self, requests: Sequence[Request], images: Tensor) -> None:
        write_text(self.folder / MANIFEST, json.dumps(self._settings, indent=2))
        for request, image in zip(requests, images, strict=True):
            save(to_image(image), self._path(request))

    def _path(self, request: Request) -> Path:
        return self.folder / f"{request.number:06d}.png"


def newest(checkpoint: Path) -> float:
    """When the newest of its files was written; a folder does not change with its files."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max(path.stat().st_mtime for path in files or [checkpoint])
