"""The folder of a sharded (FSDP) run, read without torch's trust in what it holds.

torch unpickles the index of the shards, and every value that is no tensor, with everything allowed.
"""

import io
import math
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

from lgpl.errors import UserError

INDEX, ENTRIES = ".metadata", "meta.pt"  # torch's and Lightning's names


def is_sharded(path: str | Path) -> bool:
    """Whether it is such a folder."""
    return (Path(path) / INDEX).is_file()


def read_module(folder: Path) -> dict[str, Tensor]:
    """The module's whole state dict; raises UserError where the folder is damaged or holds code."""
    with _one_sentence(folder):
        index = _Reader(folder).read_metadata().state_dict_metadata
        tensors = {n: e for n, e in index.items() if isinstance(e, metadata.TensorStorageMetadata)}
        _check_sizes(folder, tensors)
        state = {
            name.removeprefix("state_dict."): torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in tensors.items()
            if name.startswith("state_dict.")
        }
    with warnings.catch_warnings():  # one process is what is meant
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        read_into(folder, {"state_dict": state})
    return state


def read_into(folder: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of a state dict, and replace its other values; all ranks must call it.
    Raises UserError where the folder is damaged or holds code."""
    with _one_sentence(folder):
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())


def _check_sizes(folder: Path, tensors: dict[str, metadata.TensorStorageMetadata]) -> None:
    """Raises ValueError where tensors have gaps, or claim more bytes than the folder has."""
    claimed = 0
    for name, entry in tensors.items():
        if math.prod(entry.size) != sum(math.prod(chunk.sizes) for chunk in entry.chunks):
            raise ValueError(f"{name} is not whole")
        claimed += math.prod(entry.size) * entry.properties.dtype.itemsize
    if claimed > sum(file.stat().st_size for file in folder.iterdir()):
        raise ValueError(f"{claimed} bytes of tensors are not there")


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Turn as many kinds of errors as there are ways to damage a file into one sentence."""
    try:
        yield
    except (Exception, dcp.CheckpointException) as error:  # the latter is no Exception
        causes: list[BaseException] = [error]
        if isinstance(error, dcp.CheckpointException):  # for what all ranks have met
            causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if isinstance(cause, UserError):
                raise UserError(f"{folder}: {cause}") from error
        raise UserError(f"{folder} is a damaged checkpoint ({causes[0]}).") from error


class _Reader(dcp.FileSystemReader):
    """torch's reader with an index that holds data alone, read at once: torch logs what fails."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        content = io.BytesIO((folder / INDEX).read_bytes())  # reads no more than there is
        self._index: metadata.Metadata = _IndexUnpickler(content).load()
        for path in (stored.relative_path for stored in self._index.storage_data.values()):
            if Path(path).name != str(path):
                raise UserError(f"the index names {path}, no file of its own folder.")

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        self._index.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return self._index


class _Planner(dcp.DefaultLoadPlanner):
    """torch's planner, for which values are data, such as the numbers of an optimizer."""

    def load_bytes(self, read_item: dcp.ReadItem, value: io.BytesIO) -> None:
        checked = io.BytesIO()
        try:
            torch.save(torch.load(value, weights_only=True), checked)
        except pickle.UnpicklingError as error:
            name = read_item.dest_index.fqn
            raise UserError(f"{name} holds pickled code, which is never run here.") from error
        checked.seek(0)
        super().load_bytes(read_item, checked)


# What an index is made of, and the only objects in it that may be filled with attributes.
_BUILT = (
    *(metadata.Metadata, metadata.MetadataIndex, metadata.StorageMeta, metadata.TensorProperties),
    *(metadata.TensorStorageMetadata, metadata.ChunkStorageMetadata),
    *(metadata.BytesStorageMetadata, _StorageInfo),
)


class _IndexUnpickler(pickle._Unpickler):
    """Admits what an index of shards is made of, and nothing else.

    The unpickler in Python: that in C would set attributes of whatever is admitted, classes
    included, for the whole process, and take as much memory as a few bytes ask for.
    """

    ADMITTED = {
        *((part.__module__, part.__name__) for part in _BUILT),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        # the second of pathlib's from Python 3.13 on
        *product(("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath")),
    }
    dispatch = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # takes as much memory as it says

    def load_build(self) -> None:
        built = self.stack[-2]  # type: ignore[attr-defined]
        if not isinstance(built, _BUILT):
            name = getattr(built, "__name__", type(built).__name__)
            raise UserError(f"the index changes {name}, which is no part of it.")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in self.ADMITTED:
            return super().find_class(module, name)
        raise UserError(f"the index holds pickled code ({module}.{name}), which is never run here.")
