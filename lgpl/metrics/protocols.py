"""Protocols by name, and reports that say all that a metric depends on.

`rfid`: reconstructions of images against those same images, centre crops, no augmentation.
`gfid`: N generated images against ADM's reference batch, or against the training images.
`coco30k`: an image of each of 30 000 captions against COCO's validation images of 2014, both at 256
pixels by Lanczos and behind clean-fid's resizing (as GigaGAN, arXiv 2303.05511, and LlamaGen).
"""

import functools
import itertools
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lgpl
from lgpl.atomic import PartialFile, write_text
from lgpl.codes import ImageSize
from lgpl.data import ShardDataModule
from lgpl.data.transforms import CENTER_CROP, CROPS, LANCZOS_CROP, to_image, to_uint8
from lgpl.errors import UserError, as_user_error
from lgpl.metrics import COCO30K, GFID
from lgpl.metrics.comparison import compute_metrics, left_out
from lgpl.metrics.extractors import CLEAN, INCEPTION, Extractor, resize
from lgpl.metrics.images import FolderImages, ImageSource
from lgpl.metrics.summary import FeatureSummary
from lgpl.text import prompts


@dataclass(frozen=True)
class Protocol:
    """How generated images are compared."""

    name: str
    images: int  # N, where no other number is given
    extractor: str  # where no other is given
    crop: str = CENTER_CROP  # of images that are not of the size; one of `CROPS`
    size: ImageSize | None = None  # at which images are compared, where that is fixed
    each_once: bool = False  # whether a prompt serves for one image, and not for several in turn

    def resize(self, image: Tensor, size: ImageSize) -> Tensor:
        """uint8 [B, 3, H, W] of generated images [B, 3, H, W] in [-1, 1]."""
        if self.crop == CENTER_CROP or image.shape[-2:] == size:
            return resize(image, size)
        crops = (CROPS[self.crop](to_image(one), size) for one in image)
        return torch.stack([to_uint8(crop) for crop in crops])


GENERATION = {
    protocol.name: protocol
    for protocol in (
        Protocol(GFID, 50_000, INCEPTION),
        Protocol(COCO30K, 30_000, CLEAN, LANCZOS_CROP, (256, 256), each_once=True),
    )
}


def read_prompts(
    path: str | list[str], column: str = prompts.COLUMN, limits: Mapping[str, Any] | None = None
) -> list[str]:
    """The prompts of a file for `lgpl.text.prompts`, or the captions of shards in their order, as
    training reads them for a condition with these `limits`."""
    if not isinstance(path, str) or not prompts.is_prompts(path):
        data = ShardDataModule(test=path, fields=("caption",), eval_batch_size=256)
        data.expect(**limits or {})
        data.setup("test")
        kept = (itertools.compress(b["caption"], b["valid"]) for b in data.test_dataloader())
        return list(itertools.chain.from_iterable(kept))
    return prompts.read(path, column).texts


def require_enough(given: list[str], images: int, source: str) -> None:
    """Raises a UserError where there are fewer prompts than images."""
    if len(given) < images:
        said = f"{source} holds {len(given)} prompts, fewer than the {images} images"
        raise UserError(f"--prompts: {said}; each image has a caption of its own.")


def captions_of(images: ImageSource, source: str | None, column: str) -> list[str]:
    """The caption of each image on disk: of a file of prompts or of shards, or else of the file
    that `lgpl sample` writes beside its images; files that are numbers have those of their
    captions, or that order. A UserError where there is no caption for an image."""
    numbers = list(range(images.count))
    if isinstance(images, FolderImages):
        beside = Path(images.source, prompts.CAPTIONS)
        source = str(beside) if source is None and beside.is_file() else source
        stems = {path.stem for path in images.paths}
        if len(stems) == images.count and all(map(str.isdecimal, stems)):
            numbers = [int(path.stem) for path in images.paths]
    if source is None:
        without = f"{images.source} has no {prompts.CAPTIONS}"
        raise UserError(f"--clip: {without}; give the captions of the images with --prompts.")
    given = read_prompts(source, column)
    if max(numbers) >= len(given):
        require_enough(given, images.count, source)
        place = {number: i for i, number in enumerate(sorted(numbers))}
        numbers = [place[number] for number in numbers]
    return [given[number] for number in numbers]


def report(
    protocol: str,
    extractor: Extractor,
    real: FeatureSummary,
    fake: FeatureSummary,
    reference: dict[str, Any],
    more: dict[str, float] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The metrics of `fake` against `real` and all that they depend on, in plain values: where
    `real` is from, and what else was chosen; `left_out` says which metrics are not there, and why,
    where the sets are too small for some."""
    without = left_out(real, fake, extractor)
    return {
        "metrics": compute_metrics(real, fake, extractor) | (more or {}),
        **({"left_out": without} if without else {}),
        "protocol": protocol,
        "extractor": extractor.name,
        "preprocessing": extractor.preprocessing,
        "N": fake.count,
        "reference": {key: value for key, value in reference.items() if key != "identity"},
        **settings,
        **made_by(),
    }


def made_by() -> dict[str, Any]:
    """When a report is made, and by which versions."""
    names = ("torch", "torchmetrics", "lightning")
    versions = {"lgpl": lgpl.__version__, "python": platform.python_version()}
    return {
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions | {name: version(name) for name in names},
    }


@functools.cache
def commit() -> str | None:
    """Of lgpl's own repository; None where it is installed without one. Call it before long work:
    the repository may move on, the code that runs does not."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def require_writable(path: Path) -> None:
    """Raises a UserError where `write_json` would."""
    with as_user_error(f"{path} cannot be written", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        PartialFile(path).discard()


def write_json(path: Path, content: Any) -> None:
    """A file that is whole or not there, in a folder that `require_writable` has made."""
    with as_user_error(f"{path} cannot be written", OSError):
        write_text(path, json.dumps(content, indent=2) + "\n")
