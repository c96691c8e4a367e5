"""Shards from anywhere as local files: paths as they are, URLs through a cache on this machine. A
remote shard is fetched whole, once for all processes of a machine, and appears in the cache only
when it is complete; so a connection that breaks costs a new try and never a sample."""

import functools
import io
import logging
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from lgpl.data.cache import ShardCache
from lgpl.data.transfer import Unreachable, is_url, scheme, transfer
from lgpl.errors import UserError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

LONGEST_PAUSE = 60  # seconds between two tries
LARGEST_READ = 256 * 2**20  # bytes of a file that is read past the cache
OPENINGS = 10  # tries to open what other processes, which make room, delete at once


@dataclass
class Store:
    """Fetches remote shards and keeps them.

    Attributes:
        cache: folder of the fetched shards, shared by all of the user's processes on a machine,
            and which nobody else can write to; by default `lgpl/shards` in the user's cache folder.
        cache_gb: size above which those not used for the longest time are deleted, GB (10^9 bytes).
        retries: further tries after one that failed, each after twice the pause of the last.
        timeout: seconds without a byte after which a try has failed.
        allow_pipe: read `pipe:COMMAND`, which runs the command in a shell. Off, because a list of
            shards from elsewhere could then run anything.
        allow_local: a remote index may name local files.
    """

    cache: str | None = None
    cache_gb: float = 100.0
    retries: int = 5
    timeout: float = 60.0
    allow_pipe: bool = False
    allow_local: bool = False

    def __post_init__(self) -> None:
        for name, least in (("retries", 0), ("timeout", 0.001), ("cache_gb", 0.0)):
            if getattr(self, name) < least:
                raise UserError(f"data.store.{name}: {getattr(self, name)} is below {least}.")

    def check(self, path: str) -> None:
        """Refuse, with a `UserError`, a `pipe:` without `allow_pipe`, and where a URL would come
        through a cache that others can write to."""
        if scheme(path) == "pipe" and not self.allow_pipe:
            cure = "give a path or a URL, or set data.store.allow_pipe"
            raise UserError(f"{path!r}: pipe: would run a shell command and is not read; {cure}.")
        if is_url(path):
            self._cache.check()

    def open(self, path: str) -> BinaryIO:
        """A path, or a local copy of a URL, opened to read: deleting the copy does no harm then. An
        OSError where the path cannot be opened, an Unreachable where a URL cannot be fetched or the
        cache cannot take it, a UserError as in `check`."""
        if not is_url(path):
            try:
                return open(path, "rb")
            except ValueError as error:  # a zero byte in the name
                raise OSError(str(error)) from error
        self.check(path)
        cache = self._cache
        fetch = functools.partial(cache.add, path, lambda to: transfer(path, to, self.timeout))
        try:
            cache.make()
            with cache.lock(path):
                for _ in range(OPENINGS):
                    if (file := cache.open(path)) is not None:
                        return file
                    self._with_retries(path, fetch)
            raise OSError(f"{cache.folder} does not keep it")
        except OSError as error:
            raise error if isinstance(error, Unreachable) else Unreachable(str(error)) from error

    def prefetch(self, path: str) -> None:
        """Begin to fetch a URL in the background; a failure is reported, and tried again, when the
        shard's turn has come."""
        if is_url(path):
            pool, asked = self._background
            last = asked.get(path)
            if last is None or (last.done() and not last.exception()):
                asked[path] = pool.submit(lambda: self.open(path).close())

    def read(self, path: str) -> bytes:
        """A small file, such as an index, past the cache; `Unreachable` where it cannot be had."""
        if is_url(path):
            return self._with_retries(path, lambda: _read(path, self.timeout))
        try:
            return Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise Unreachable(str(error)) from error

    def __getstate__(self) -> dict[str, Any]:  # a worker process makes its own threads
        return {name: value for name, value in self.__dict__.items() if name != "_background"}

    @functools.cached_property
    def _background(self) -> tuple[ThreadPoolExecutor, dict[str, Future[None]]]:
        """A thread, and the latest that it was asked for of each URL."""
        return ThreadPoolExecutor(1, thread_name_prefix="prefetch"), {}

    @property
    def _cache(self) -> ShardCache:
        user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(self.cache if self.cache is not None else f"{user}/lgpl/shards")
        return ShardCache(folder.expanduser(), self.cache_gb)

    def _with_retries(self, url: str, attempt: Callable[[], Result]) -> Result:
        number = 0
        while True:
            try:
                return attempt()
            except (Unreachable, FileNotFoundError, PermissionError) as error:
                raise Unreachable(str(error)) from error  # another try would not help
            except Exception as error:  # what a store's client raises is its own affair
                reason = str(error) or type(error).__name__
                if number == self.retries:
                    said = f"not fetched after {number + 1} tries, the last: {reason}"
                    raise Unreachable(said) from error
                pause = min(LONGEST_PAUSE, 0.5 * 2**number) * random.uniform(0.5, 1)
                log.info("%s: %s; again in %.1f s", url, reason, pause)
                time.sleep(pause)
                number += 1


class _Bounded(io.BytesIO):
    def write(self, piece: Any) -> int:
        if self.tell() + len(piece) > LARGEST_READ:
            raise Unreachable(f"more than {LARGEST_READ} bytes")
        return super().write(piece)


def _read(url: str, timeout: float) -> bytes:
    found = _Bounded()
    transfer(url, found, timeout)
    return found.getvalue()
