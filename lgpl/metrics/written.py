"""Images that are written as they are made, by one rank or several: a folder or an npz."""

import io
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import Tensor

from lgpl.atomic import atomic_file, remove_partials
from lgpl.data.transforms import normalize, to_image
from lgpl.errors import UserError, as_user_error
from lgpl.image_files import save
from lgpl.metrics.images import IMAGES, current_rank

Part = tuple[Path, list[int], tuple[int, ...]]  # raw pixels, their images' numbers, and shape


class FolderWriter:
    """PNG files by the images' numbers, each whole or not there; a UserError where the folder holds
    such already, or cannot be made. All ranks must make one."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        held = None
        with as_user_error(f"--images: {folder} cannot be used", OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            held = next(self.folder.glob("[0-9]*.png"), None)
        if current_rank().count > 1:
            dist.barrier()  # before any rank writes what another would find
        if held is not None:
            raise UserError(f"--images: {folder} holds images already, {held.name}; empty it.")

    def write(self, images: Tensor, numbers: Tensor) -> None:
        """Add uint8 [B, 3, H, W] of these numbers [B]."""
        for image, number in zip(normalize(images), numbers.tolist(), strict=True):
            save(to_image(image), self.folder / f"{number:06d}.png")

    def finish(self) -> None:
        """All ranks must call this."""

    def discard(self) -> None:
        """What is there is whole, and stays."""


class NpzWriter:
    """`arr_0`, uint8 [N, H, W, 3], in the order of the images' numbers: an npz as ADM's evaluator
    takes it, which appears when it is whole. Each rank keeps its pixels beside it until then."""

    def __init__(self, path: str) -> None:
        self.path, rank = Path(path), current_rank()
        self.raw = self.path.with_name(f"{self.path.name}.{rank.index}.partial")
        self.numbers: list[int] = []
        self.shape: tuple[int, ...] = ()
        if self.path.suffix != ".npz":
            raise UserError(f"--npz: {path} should end in .npz.")
        with as_user_error(f"--npz: {path} cannot be written", OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.raw.unlink(missing_ok=True)  # so that nothing is written through a link
            self.file = self.raw.open("xb")

    def write(self, images: Tensor, numbers: Tensor) -> None:
        """Add uint8 [B, 3, H, W] of these numbers [B]."""
        pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.shape = pixels.shape[1:]
        self.numbers += numbers.tolist()
        with as_user_error(f"--npz: {self.path} cannot be written", OSError):
            self.file.write(pixels.tobytes())

    def finish(self) -> None:
        """Put the pixels of all ranks together; all ranks must call this."""
        self.file.close()
        rank, mine = current_rank(), (self.raw, self.numbers, self.shape)
        parts: list[Part] = [mine]
        if rank.count > 1:
            parts = [mine] * rank.count
            dist.all_gather_object(parts, mine)
        if rank.index == 0:
            with as_user_error(f"--npz: {self.path} cannot be written", OSError):
                self._join([part for part in parts if part[1]])
        if rank.count > 1:
            dist.barrier()
        self.discard()

    def discard(self) -> None:
        """Leave no pixels beside the npz."""
        self.file.close()
        self.raw.unlink(missing_ok=True)

    def _join(self, parts: Sequence[Part]) -> None:
        shape = parts[0][2]
        each, header = int(np.prod(shape)), io.BytesIO()
        order = sorted((n, part, at) for part, p in enumerate(parts) for at, n in enumerate(p[1]))
        described = {"descr": "|u1", "fortran_order": False, "shape": (len(order), *shape)}
        np.lib.format.write_array_header_2_0(header, described)  # type: ignore[arg-type]
        remove_partials(self.path)
        with ExitStack() as stack:
            files = [stack.enter_context(part[0].open("rb")) for part in parts]
            archive = zipfile.ZipFile(stack.enter_context(atomic_file(self.path)), "w")
            with archive, archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as out:
                out.write(header.getvalue())
                for _, part, at in order:
                    files[part].seek(at * each)
                    out.write(files[part].read(each))
