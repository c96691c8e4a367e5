"""Untrusted npz files: the shape and size of an array are checked before it is read."""

import io
import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np

from lgpl.errors import UserError, as_user_error

LONGEST_HEADER = 4096  # bytes of what stands before an array
LARGEST_RATIO = 100  # of an array's bytes to those in the file; flat images may come to it
SMALL = 32 * 2**20  # bytes up to which the ratio is not checked
LARGEST_WHOLE = 2**30  # bytes that are read at once, such as two covariances of 8192 x 8192


@dataclass(frozen=True)
class Member:
    """An array in an open npz."""

    path: str  # of the npz
    file: IO[bytes]
    shape: tuple[int, ...]
    order: Literal["C", "F"]  # of its bytes, C's or Fortran's
    dtype: np.dtype  # never one that pickle would have to load
    start: int  # offset of the data in the file, bytes
    size: int  # bytes of the data

    def read(self, first: int, size: int) -> bytes:
        """So many bytes of the data from one on; a UserError where they are damaged or missing."""
        with as_user_error(f"{self.path} is damaged", Exception):  # of any compression's kinds
            self.file.seek(self.start + first)
            data = self.file.read(size)
            if len(data) < size:
                raise EOFError(f"{first + len(data)} of {self.size} bytes are there")
        return data


def names_in(path: str) -> list[str]:
    """Names of the arrays; a UserError where the file is no npz."""
    # As many kinds of errors as there are ways to damage a file.
    with as_user_error(f"{path} cannot be read as an npz", Exception):
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def member(path: str, name: str) -> Iterator[Member]:
    """Open an array. A UserError where the file is no npz or lacks it, or where it is none of plain
    values, claims another size than it has, or would unpack to many times what it takes."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            info = archive.getinfo(f"{name}.npy")
            packed = min(info.compress_size, os.path.getsize(path))  # whatever it says of itself
            if info.file_size > max(SMALL, LARGEST_RATIO * packed):
                said = f"{info.filename} of {packed} bytes would unpack to {info.file_size}"
                raise ValueError(f"{said}, more than {LARGEST_RATIO} times as much")
            file = stack.enter_context(archive.open(info))
            shape, order, dtype, start = _header(file)
            size = math.prod(shape) * dtype.itemsize  # Python's numbers do not overflow
            if size != (has := info.file_size - start):
                raise ValueError(f"{name} of {_by(shape)} {dtype} takes {size} bytes and has {has}")
        except KeyError as error:
            raise UserError(f"{path} holds no {name}.") from error
        except Exception as error:  # numpy parses a header as Python, with all that may fail there
            raise UserError(f"{path} cannot be read as an npz of plain arrays: {error}.") from error
        yield Member(path, file, shape, order, dtype, start, size)


def read_arrays(path: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file has; a UserError as of `member` or for their size."""
    found: dict[str, np.ndarray] = {}
    for name in sorted({*names} & {*names_in(path)}):
        with member(path, name) as opened:
            if opened.size + sum(array.nbytes for array in found.values()) > LARGEST_WHOLE:
                said = f"{path}: {name} of {_by(opened.shape)} takes {opened.size} bytes"
                raise UserError(f"{said}; no statistics are larger than {LARGEST_WHOLE}.")
            flat = np.frombuffer(opened.read(0, opened.size), opened.dtype)
            found[name] = flat.reshape(opened.shape, order=opened.order).copy()
    return found


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype, int]:
    """Shape, order, type and offset of the data."""
    stream = io.BytesIO(file.read(LONGEST_HEADER))  # a longer one is cut off, which numpy refuses
    first = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("an array of objects, which only pickle could load")
    return shape, "F" if fortran else "C", dtype, stream.tell()


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one"
