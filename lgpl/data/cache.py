"""The folder of fetched shards that all processes of a machine share. What lies in it is read as
training data, so it belongs to this user alone: nobody else can write to it, links in it are not
followed, and a shard counts only with the record of its own fetching. The cache knows its files by
names that no other program gives, and touches no others."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from lgpl.atomic import atomic_file, write_text
from lgpl.errors import UserError

KIND = "lgpl_cached_shard"
RECORD = ".lgpl.json"  # behind the shard's name
LARGEST_RECORD = 4096  # bytes
OWN = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]{0,100}")
OWN_RECORD = re.compile(OWN.pattern + re.escape(RECORD))
OWN_PARTIAL = re.compile(OWN.pattern + r"\.[0-9a-f]{12}\.partial")
ABANDONED = 3600  # seconds without a byte after which nobody writes a partial file any more
NOT_OURS = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.ENXIO, errno.EISDIR)


@dataclass
class ShardCache:
    """Keeps the shards that were used last."""

    folder: Path  # made when it is needed
    gigabytes: float  # of 10^9 bytes; above, the shards unused for the longest time are deleted

    def check(self) -> None:
        """Refuse, with a `UserError`, a folder that stands and that others can write to."""
        try:
            found = os.stat(self.folder)  # of a link what it leads to, which is what is written to
        except OSError:
            return
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.geteuid():
            fault, cure = "belongs to another user", "name one that only you can write to"
        elif mode & (stat.S_IWGRP | stat.S_IWOTH):
            fault, cure = f"has mode {mode:o}", f"run `chmod 700 {self.folder}`"
        else:
            return
        risk = "so that others could put anything there"
        raise UserError(f"data.store.cache: {self.folder} {fault}, {risk}; {cure}.")

    def make(self) -> None:
        """Make the folder for this user alone, and `check` it."""
        _make(Path(os.path.realpath(self.folder)), 0o700)
        self.check()

    def lock(self, url: str) -> FileLock:
        """What a process holds while it opens or fetches a URL."""
        path = _beside(self._place(url), ".lock")
        if path.is_symlink():  # from when others could write here; it would be written through
            path.unlink()
        return FileLock(path)

    def open(self, url: str) -> BinaryIO | None:
        """A kept shard opened to read; None where there is none, or it is not as it was fetched."""
        place = self._place(url)
        if (file := _open_own(place)) is not None:
            record, size = _read_record(_beside(place)), os.fstat(file.fileno()).st_size
            if record.get("url") == _digest(url) and record.get("size") == size:
                os.utime(file.fileno())  # used now
                return file
            file.close()
        return None

    def add(self, url: str, copy: Callable[[BinaryIO], str | None]) -> None:
        """Keep the shard that `copy` writes, which gives its ETag; delete others until it fits."""
        place = self._place(url)
        while missing := self._write(url, place, copy):
            # What does not fit leaves the room to others.
            if not self._delete(self._kept(), missing):
                raise OSError("the cache's disk is full")
        kept = self._kept()
        excess = sum(size for _, size, _ in kept) - self.gigabytes * 1e9
        self._delete([shard for shard in kept if shard[2] != place], excess)
        self._sweep()

    def _place(self, url: str) -> Path:
        """Where a URL is kept: its last name is for people, the digest makes it unique."""
        last = url.partition("?")[0].rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9._-]", "", last)[-100:]
        return self.folder / f"{_digest(url)[:32]}-{name}"

    def _write(self, url: str, place: Path, copy: Callable[[BinaryIO], str | None]) -> int:
        """Write a shard; gives about how many bytes a full disk lacks, or 0."""
        size = 0
        try:
            with atomic_file(place) as file:
                try:
                    etag = copy(file)
                finally:
                    size = file.tell()
                record = {KIND: 1, "url": _digest(url), "size": size, "etag": etag}
                _remove_folder(_beside(place))
                write_text(_beside(place), json.dumps(record) + "\n")  # first: no shard without one
                _remove_folder(place)
            return 0
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return 2 * size + 1

    def _kept(self) -> list[tuple[float, int, Path]]:
        """Time of the last use, bytes and path of all shards in the cache, the oldest first."""
        return sorted(
            (found.st_mtime, found.st_size, path)
            for path, found in self._files()
            if OWN.fullmatch(path.name) and os.path.lexists(_beside(path))
        )

    def _delete(self, kept: list[tuple[float, int, Path]], excess: float) -> int:
        """Delete the first shards, which stay readable where they are open, until so many bytes are
        free; gives how many are."""
        freed = 0
        for _, size, path in kept:
            if freed >= excess:
                break
            path.unlink(missing_ok=True)
            _beside(path).unlink(missing_ok=True)
            freed += size
        return freed

    def _sweep(self) -> None:
        """Delete what killed processes left: half a shard, or a record without its shard."""
        for path, found in self._files():
            shard = path.with_name(path.name.removesuffix(RECORD))
            is_alone = OWN_RECORD.fullmatch(path.name) and not os.path.lexists(shard)
            is_old = found.st_mtime < time.time() - ABANDONED
            if is_old and (is_alone or OWN_PARTIAL.fullmatch(path.name)):
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """What is known of each regular file in the folder that is not gone meanwhile."""
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    yield path, found


def _digest(url: str) -> str:
    """A URL by its SHA-256: it may hold a password or a signature, which stay off the disk."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def _beside(place: Path, ending: str = RECORD) -> Path:
    return place.with_name(place.name + ending)


def _read_record(path: Path) -> dict[str, Any]:
    """What is known of a shard; nothing where the record is missing or none of ours."""
    record, file = None, _open_own(path)
    if file is not None:
        with file, suppress(ValueError, RecursionError):
            record = json.loads(file.read(LARGEST_RECORD))
    return record if isinstance(record, dict) and record.get(KIND) == 1 else {}


def _open_own(path: Path) -> BinaryIO | None:
    """A regular file of this user, opened without following a link; None for anything else."""
    try:
        # Not blocking, or a pipe of that name would wait for its other end.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in NOT_OURS:
            return None
        raise
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(number)
        return None
    return os.fdopen(number, "rb")


def _remove_folder(path: Path) -> None:
    """Anything else makes way by itself for the file that takes its name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


def _make(folder: Path, mode: int) -> None:
    """Make a folder and those above it that are missing, none for others to write to."""
    if not folder.is_dir():
        _make(folder.parent, 0o755)
        folder.mkdir(mode, exist_ok=True)
