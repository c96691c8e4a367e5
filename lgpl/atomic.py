"""Files and folders that appear under their names only when they are whole.

Until then they stand beside it as `NAME.RANDOM.partial`: no two writers share one, none writes
through a link, and one that is killed leaves what had the name before.
"""

import ctypes
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ENDING = ".partial"


class PartialFile:
    """A file that is written as `partial` until it is whole, in a folder that exists."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.partial = _partial(self.path)
        self.file: BinaryIO = self.partial.open("xb")  # which follows no link

    def commit(self) -> None:
        """Take the final name, in place of what had it."""
        self.file.close()
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Leave nothing; without effect on a file that has its final name."""
        try:
            self.file.close()  # which writes what is left, and so fails on a full disk
        finally:
            self.partial.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """An open file that takes its name when the block ends well, and is gone where it does not."""
    partial = PartialFile(path)
    try:
        yield partial.file
        partial.commit()
    finally:
        partial.discard()


def write_text(path: str | Path, text: str) -> None:
    """Write a file of UTF-8, whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that takes its name when the block ends well, in place of what had it."""
    path = Path(path).absolute()
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        if not path.exists():
            partial.rename(path)
        elif not _swapped(partial, path):
            old = _partial(path)
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swapped(one: Path, other: Path) -> bool:
    """Whether two names could change what they stand for in one step, as Linux can."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def exchange(new: Path, path: Path) -> None:
    """Give `new` the name `path` and delete what had it; whenever this is cut short, a whole one
    stands under `path` or under `path` with `-old` behind its stem."""
    old, doomed = path.with_stem(path.stem + "-old"), path.with_name(path.name + ".old")
    if path.exists():
        _delete(old, doomed)
        path.rename(old)
    new.rename(path)
    _delete(old, doomed)


def remove_partials(path: Path) -> None:
    """Delete what killed writers left of a file or folder; only where nobody else writes it now."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 12}{ENDING}"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}{ENDING}")


def _delete(path: Path, doomed: Path) -> None:
    """Under another name, because the newest wins, and deleting a part of a folder makes it new."""
    shutil.rmtree(doomed, ignore_errors=True)
    if path.is_dir():
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
