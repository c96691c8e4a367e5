"""Shards from anywhere as local files: paths as they are, URLs through a cache on this machine.

A remote shard is fetched whole, once for all processes of a machine, and appears in the cache under
its name only when it is complete; so a connection that breaks costs a new try and never a sample.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import string
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from filelock import FileLock

from lgpl.errors import UserError

log = logging.getLogger(__name__)

PIECE = 2**20  # bytes copied at a time
BUSY = (408, 425, 429)  # answers of a server that another try may change
LONGEST_PAUSE = 60  # seconds between two tries


class Unreachable(OSError):
    """A shard could not be fetched; the message is the cause."""


def is_url(path: str) -> bool:
    return "://" in path or path.startswith("pipe:")


@dataclass
class Store:
    """Fetches remote shards and keeps them.

    Attributes:
        cache: folder of the fetched shards, shared by all processes of a machine; by default
            `lgpl/shards` in the user's cache folder.
        cache_gb: size above which those not used for the longest time are deleted, GB (10^9 bytes).
        retries: further tries after one that failed, each after twice the pause of the last.
        timeout: seconds without a byte after which a try has failed.
        allow_pipe: read `pipe:COMMAND`, which runs the command in a shell. Off, because a list of
            shards from elsewhere could then run anything.
    """

    cache: str | None = None
    cache_gb: float = 100.0
    retries: int = 5
    timeout: float = 60.0
    allow_pipe: bool = False

    def __post_init__(self) -> None:
        for name, least in (("retries", 0), ("timeout", 0.001), ("cache_gb", 0.0)):
            if getattr(self, name) < least:
                raise UserError(f"data.store.{name}: {getattr(self, name)} is below {least}.")

    def check(self, path: str) -> None:
        """Refuse what may not be opened.

        Raises:
            UserError: a `pipe:` without `allow_pipe`.
        """
        if path.startswith("pipe:") and not self.allow_pipe:
            raise UserError(
                f"{path!r}: pipe: would run a shell command and is not read; give a path or a URL, "
                "or set data.store.allow_pipe."
            )

    def open(self, path: str) -> BinaryIO:
        """A path, or a local copy of a URL, opened to read: deleting the copy does no harm then.

        Raises:
            OSError: the path cannot be opened.
            Unreachable: a URL could not be fetched, or the cache cannot take it.
        """
        if not is_url(path):
            return open(path, "rb")
        self.check(path)
        place = self._place(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{place}.lock"):
                while True:  # another process may make room just before it is opened
                    if not place.exists():
                        self._fetch(path, place)
                    with suppress(FileNotFoundError):
                        os.utime(place)  # used now
                        return open(place, "rb")
        except OSError as error:
            raise error if isinstance(error, Unreachable) else Unreachable(str(error)) from error

    def prefetch(self, path: str) -> None:
        """Begin to fetch a URL in the background."""
        if is_url(path) and not self._place(path).exists() and path not in self._ahead:
            self._ahead.add(path)
            self._background.submit(self._quietly, path)

    def read(self, path: str) -> bytes:
        """A small file, such as an index, past the cache.

        Raises:
            Unreachable: there is none, or it could not be fetched.
        """
        if not is_url(path):
            try:
                return Path(path).read_bytes()
            except OSError as error:
                raise Unreachable(str(error)) from error
        return b"".join(self._with_retries(path, lambda: list(self._pieces(path))))

    def __getstate__(self) -> dict[str, Any]:  # a worker process makes its own threads
        hidden = ("_background", "_ahead")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    @cached_property
    def _background(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    @cached_property
    def _ahead(self) -> set[str]:
        return set()

    def _quietly(self, path: str) -> None:
        with suppress(OSError):  # told when the shard's turn has come
            self.open(path).close()
            self._ahead.discard(path)

    def _folder(self) -> Path:
        if self.cache is not None:
            return Path(self.cache).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lgpl/shards"

    def _place(self, url: str) -> Path:
        """Where a URL is kept: its last name is for people, the hash tells it from others."""
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        name = "".join(c for c in url.rpartition("/")[2] if c.isalnum() or c in "._-")[-100:]
        return self._folder() / f"{digest}-{name}"

    def _fetch(self, url: str, place: Path) -> None:
        partial = place.with_name(place.name + ".partial")
        try:
            self._with_retries(url, lambda: self._copy(url, partial))
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        kept = self._kept()
        # All but the newest, which is about to be read.
        self._delete(kept[:-1], sum(size for _, size, _ in kept) - self.cache_gb * 1e9)

    def _copy(self, url: str, partial: Path) -> None:
        """Copy to a file; a full disk fails only when there is no shard left to delete."""
        while True:
            try:
                with open(partial, "wb") as file:
                    for piece in self._pieces(url):
                        file.write(piece)
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                written = partial.stat().st_size
                partial.unlink()  # what does not fit leaves the room to others
                if not self._delete(self._kept(), 2 * written + 1):
                    raise OSError("the cache's disk is full") from error

    def _kept(self) -> list[tuple[float, int, Path]]:
        """Time of the last use, bytes and path of all shards in the cache, the oldest first."""
        kept = []
        for path in self._folder().glob("*-*"):
            if path.suffix not in (".lock", ".partial"):
                with suppress(FileNotFoundError):  # another process makes room, too
                    kept.append((path.stat().st_mtime, path.stat().st_size, path))
        return sorted(kept)

    def _delete(self, kept: list[tuple[float, int, Path]], excess: float) -> int:
        """Delete the first shards until so many bytes are free; gives how many are.

        A shard that is open stays readable after its name is gone.
        """
        freed = 0
        for _, size, path in kept:
            if freed >= excess:
                break
            path.unlink(missing_ok=True)
            freed += size
        return freed

    def _with_retries(self, url: str, attempt: Any) -> Any:
        for number in range(self.retries + 1):
            try:
                return attempt()
            except (Unreachable, FileNotFoundError, PermissionError) as error:
                raise Unreachable(str(error)) from error  # another try would not help
            except Exception as error:  # what a store's client raises is its own affair
                reason = str(error) or type(error).__name__
                if number == self.retries:
                    raise Unreachable(
                        f"not fetched after {number + 1} tries, the last: {reason}"
                    ) from error
                pause = min(LONGEST_PAUSE, 0.5 * 2**number) * random.uniform(0.5, 1)
                log.info("%s: %s; again in %.1f s", url, reason, pause)
                time.sleep(pause)

    def _pieces(self, url: str) -> Iterator[bytes]:
        if url.startswith("pipe:"):
            yield from _command(url.removeprefix("pipe:"))
        elif url.startswith(("http:", "https:")):
            yield from _http(url, self.timeout)
        else:
            with fsspec.open(url, "rb", **self._options(url)).open() as body:
                yield from _read(body)

    def _options(self, url: str) -> dict[str, Any]:
        """What each store's client calls a timeout."""
        if url.startswith(("s3:", "s3a:")):
            limits = {"connect_timeout": self.timeout, "read_timeout": self.timeout}
            return {"config_kwargs": limits}
        if url.startswith(("gs:", "gcs:")):
            return {"requests_timeout": self.timeout}
        return {}


def _http(url: str, timeout: float) -> Iterator[bytes]:
    """The body of an answer, whole.

    fsspec's client calls every fault a file that is not there, and so tells none from another.
    """
    try:
        # Spaces and letters of any language are written as servers know them.
        quoted = urllib.parse.quote(url, safe=string.punctuation)
        with urllib.request.urlopen(quoted, timeout=timeout) as body:
            seen = 0
            for piece in _read(body):
                seen += len(piece)
                yield piece
            promised = body.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code not in BUSY:
            raise Unreachable(f"the server answers {error.code} {error.reason}") from error
        raise
    if promised is not None and seen != int(promised):
        raise OSError(f"the connection broke after {seen} of {promised} bytes")


def _read(body: BinaryIO) -> Iterator[bytes]:
    while piece := body.read(PIECE):
        yield piece


def _command(command: str) -> Iterator[bytes]:
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield from _read(process.stdout)  # type: ignore[arg-type]
    if process.returncode:
        raise OSError(f"the command ended with status {process.returncode}")
