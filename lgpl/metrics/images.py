"""Sets of images on disk: shards, a folder of image files, an npz as ADM's evaluator takes it.

Their `batches` are uint8 [B, 3, H, W], which several ranks take in turn. Nothing is read whole:
fifty thousand images of 256 px are ten gigabytes.
"""

import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from lgpl.atomic import atomic_file, remove_partials, write_text
from lgpl.codes import ImageSize
from lgpl.data import ShardDataModule
from lgpl.data.codecs import open_image
from lgpl.data.decode import IMAGE_EXTENSIONS
from lgpl.data.index import counted, named
from lgpl.data.store import is_url
from lgpl.data.streams import Rank
from lgpl.data.transforms import CENTER_CROP, CROPS, to_uint8
from lgpl.errors import UserError, as_user_error
from lgpl.image_files import files_below
from lgpl.metrics.npz import member

log = logging.getLogger(__name__)

IMAGES = "arr_0"  # ADM's name for them in an npz
LARGEST_IMAGE = 2**22  # pixels of one in an npz; a batch of them is read at once
SMALLEST_IMAGE = 64  # or a small file could hold more images than memory has features for
NO_CROP = "none: as they are"


class ShardImages:
    """The crops of shards, in their order."""

    def __init__(self, pattern: str, image_size: ImageSize, crop: str) -> None:
        self.source, self.data = pattern, ShardDataModule(test=pattern, image_size=image_size)
        self.data.crop = crop
        self.data.setup("test")
        store = self.data.store
        counts, _ = counted(named(pattern, "images", store), "images", store)
        self.count, self.size = sum(counts.values()), image_size
        shards = {path: [number, *_stamp(path)] for path, number in counts.items()}
        self.identity, self.crop = {"shards": shards}, crop

    def batches(self, size: int, rank: Rank = Rank()) -> Iterator[Tensor]:
        self.data.eval_batch_size = size
        loader = self.data.test_dataloader()
        mine = list(loader.requests())[rank.index :: rank.count]
        loader.requests = lambda: mine
        for batch in loader:
            yield batch["image"][batch["valid"]]


class FolderImages:
    """The image files of a folder and of those in it, by name."""

    def __init__(self, folder: str, image_size: ImageSize | None, option: str, crop: str) -> None:
        found, left = files_below(Path(folder))
        paths = (Path(folder, file) for file in found)
        self.paths = [p for p in paths if p.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS]
        for file, cause in left:
            log.warning("%s: %s is left out: %s.", folder, file, cause)
        if not self.paths:
            raise UserError(f"{folder}: no images in this folder.")
        self.source, self.count, self.size = folder, len(self.paths), image_size
        files = [[str(path.relative_to(folder)), *_stamp(path)] for path in self.paths]
        self.identity, self.crop = {"files": files}, crop if image_size else NO_CROP
        self._first: tuple[int, int] | None = None  # width and height
        self._option = option

    def batches(self, size: int, rank: Rank = Rank()) -> Iterator[Tensor]:
        for first in range(rank.index * size, self.count, rank.count * size):
            yield torch.stack([self._read(path) for path in self.paths[first : first + size]])

    def _read(self, path: Path) -> Tensor:
        try:
            image = open_image(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}; every image of the set counts.") from error
        if self.size is not None:
            image = CROPS[self.crop](image, self.size)
        first = self._first = self._first or image.size
        if image.size != first:
            said = f"{path} is {image.width}x{image.height}, the first image {first[0]}x{first[1]}"
            raise UserError(f"{said}: give {self._option} to crop all to one size.")
        return to_uint8(image)


class NpzImages:
    """`arr_0`, uint8 [N, H, W, 3], of an npz: ADM's batches (arXiv 2105.05233), others' samples; as
    they are where no size is given."""

    def __init__(self, path: str, image_size: ImageSize | None, crop: str) -> None:
        self.source = path
        with member(path, IMAGES) as images:
            shape, dtype, order = images.shape, images.dtype, images.order
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise UserError(f"{path}: arr_0 must be uint8 [N, H, W, 3], got {dtype} {[*shape]}")
        if order != "C":
            raise UserError(f"{path}: arr_0 is in Fortran's order; save it in C's.")
        self.count, height, width, _ = shape
        self.shape, self.size = shape[1:], (height, width)
        if not SMALLEST_IMAGE <= height * width <= LARGEST_IMAGE:
            said = f"{path}: images of {width}x{height} pixels; they should have"
            raise UserError(f"{said} {SMALLEST_IMAGE} to {LARGEST_IMAGE} pixels.")
        self._cropped = image_size not in (None, self.size)
        self.size = image_size or self.size
        self.identity = {"npz": path, "stamp": _stamp(path)}
        self.crop = crop if self._cropped else NO_CROP

    def batches(self, size: int, rank: Rank = Rank()) -> Iterator[Tensor]:
        each = math.prod(self.shape)
        with member(self.source, IMAGES) as images:
            for first in range(rank.index * size, self.count, rank.count * size):
                wanted = min(size, self.count - first)
                data = images.read(first * each, wanted * each)
                pixels = np.frombuffer(data, np.uint8).reshape(wanted, *self.shape)
                if self._cropped:
                    images_of = (Image.fromarray(one) for one in pixels)
                    yield torch.stack([to_uint8(CROPS[self.crop](i, self.size)) for i in images_of])
                else:
                    yield torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def current_rank() -> Rank:
    """The rank of this process and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return Rank(dist.get_rank(), dist.get_world_size())
    return Rank()


# `size` is height and width, pixels, where they are known beforehand; `identity`, plain values that
# change when the images do; `crop`, how they were cut out of the images on disk.
ImageSource = ShardImages | FolderImages | NpzImages


def open_images(
    source: str,
    image_size: ImageSize | None = None,
    option: str = "--image-size",
    crop: str = CENTER_CROP,
) -> ImageSource:
    """Those of an `.npz`, or of a folder or shards (see `ShardDataModule`), cropped to a size by
    one of `CROPS`, save those of an npz by the default, which are as they should be; a UserError
    where there are none, or they need a size, which the command's `option` gives."""
    if source.endswith(".npz"):
        return NpzImages(source, image_size if crop != CENTER_CROP else None, crop)
    if Path(source).is_dir():
        return FolderImages(source, image_size, option, crop)
    if image_size is None:
        raise UserError(f"{source} names shards, whose images need a size: give {option}.")
    return ShardImages(source, image_size, crop)


class SampleFile:
    """An npz of images that are written as they are made; an interrupted run continues with it.

    `NAME.npz.partial` is an npy that grows until the npz is whole; its length says how many images
    are there. `NAME.npz.json` holds the settings on which they depend; images of others are
    deleted. (A memory map of all images from the start would end the process, without a word, on a
    disk that fills up.) All ranks read it, and the first one writes it.
    """

    def __init__(self, path: Path, settings: dict[str, Any], total: int, size: ImageSize) -> None:
        self.path, self.total, self.shape = path, total, (*size, 3)
        self.partial, described = Path(f"{path}.partial"), Path(f"{path}.json")
        header = io.BytesIO()
        described_as = {"descr": "|u1", "fortran_order": False, "shape": (total, *self.shape)}
        np.lib.format.write_array_header_2_0(header, described_as)  # type: ignore[arg-type]
        self.start = len(header.getvalue())
        settings = {**settings, "images": total, "image_size": [*size]}
        text = json.dumps(settings, indent=2, sort_keys=True)
        rank = current_rank()
        with as_user_error(f"--npz: {path} cannot be written", OSError):
            if rank.index == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                same = described.exists() and described.read_bytes() == text.encode()
                if path.exists() and not described.exists():
                    raise UserError(f"--npz: {path} is not of this command; name another file.")
                if self.partial.is_symlink() or not same:  # nothing is written through a link
                    self.partial.unlink(missing_ok=True)
                if not same:
                    path.unlink(missing_ok=True)
                    write_text(described, text)
                if not self.done:
                    self.partial.write_bytes(header.getvalue())
        if rank.count > 1:
            dist.barrier()
        if not described.exists():
            unseen = f"rank {rank.index} does not see {path}, which the first rank writes"
            raise UserError(f"--npz: {unseen}; name a folder that all machines share.")

    @property
    def done(self) -> int:
        """Number of images that are there."""
        if self.path.exists():
            return self.total
        size = self.partial.stat().st_size if self.partial.exists() else 0
        return max(0, size - self.start) // math.prod(self.shape)

    def read(self, first: int, last: int) -> Tensor:
        """Those images, uint8 [B, 3, H, W]."""
        begin, shape = self.start + first * math.prod(self.shape), (last - first, *self.shape)
        pixels = np.memmap(self.partial, np.uint8, "r", begin, shape)
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def write(self, first: int, images: Tensor) -> None:
        """Put uint8 [B, 3, H, W] at this number, in place of what an interrupted write left."""
        with self.partial.open("r+b") as file:
            file.truncate(self.start + first * math.prod(self.shape))
            file.seek(0, os.SEEK_END)
            file.write(images.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes())

    def finish(self) -> None:
        """The npz takes its name when it is whole."""
        remove_partials(self.path)
        with atomic_file(self.path) as file, zipfile.ZipFile(file, "w") as archive:
            archive.write(self.partial, f"{IMAGES}.npy")
        self.partial.unlink()


def _stamp(path: str | Path) -> list[float]:
    """Bytes and time of a file, which change with it; nothing is known of a URL."""
    if isinstance(path, str) and is_url(path):
        return []
    found = os.stat(path)
    return [found.st_size, found.st_mtime]
