"""What a shard list is: expanded from patterns, read, counted, split, and the cursor that says how
far.

A shard is a tar file (optionally compressed) in webdataset's layout: members KEY.EXT, those of one
sample next to each other. Nothing in a shard is executed or unpickled here.
"""

from __future__ import annotations

import glob
import os
import random
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import braceexpand
import fsspec
from webdataset.tariterators import base_plus_ext

from lgpl.errors import UserError

SHARD_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)
READ_TIMEOUT = 60  # seconds without a byte from a remote shard

Raw = dict[str, Any]  # extension -> bytes, and "__key__", "__shard__"


def expand(patterns: str | Iterable[str], what: str = "shards") -> list[str]:
    """Shards that patterns stand for, in order, each once.

    Args:
        patterns: paths, braces (`{0000..0007}`), globs (`*`, `?`, `[]`) or http(s) URLs.
        what: the key that holds them, for the error message.

    Raises:
        UserError: a pattern matches nothing, or a file does not exist.
    """
    shards: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            paths = list(braceexpand.braceexpand(pattern))
        except braceexpand.UnbalancedBracesError as error:  # type: ignore[attr-defined]
            raise UserError(f"{what}: {pattern!r} has a brace without its partner.") from error
        for path in paths:
            if is_url(path):
                found = [path]
            elif glob.has_magic(path):
                found = sorted(glob.glob(path))
            else:
                found = [path] if os.path.isfile(path) else []
            if not found:
                raise UserError(
                    f"{what}: {path!r} matches no file; give a path, a brace or glob pattern, "
                    "or a URL."
                )
            shards.update(dict.fromkeys(found))
    if not shards:
        raise UserError(f"{what}: the list is empty; give at least one path, pattern or URL.")
    return list(shards)


def is_url(path: str) -> bool:
    if path.startswith("pipe:"):
        raise UserError(
            f"{path!r}: pipe: would run a shell command and is not read; give a path or a URL."
        )
    return "://" in path


def open_shard(shard: str) -> BinaryIO:
    """A readable stream of a local or remote shard."""
    if not is_url(shard):
        return open(shard, "rb")
    # block_size 0 streams the body once instead of asking for ranges
    options: dict[str, Any] = {"block_size": 0} if shard.startswith(("http:", "https:")) else {}
    if options:
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=READ_TIMEOUT, sock_read=READ_TIMEOUT
        )
        options["client_kwargs"] = {"timeout": timeout}
    return fsspec.open(shard, "rb", **options).open()


def read_shard(shard: str, faults: Counter[str]) -> Iterator[Raw]:
    """Samples of a shard as bytes, until its end or its first damaged place.

    Args:
        shard: path or URL.
        faults: a damaged, empty or unreachable shard is counted here, by a cause that names it.
    """
    yield from _guarded(shard, faults, with_data=True)


def count_samples(shard: str, faults: Counter[str]) -> int:
    """Number of samples `read_shard` gives, from the headers alone where the file is local."""
    return sum(1 for _ in _guarded(shard, faults, with_data=False))


def _guarded(shard: str, faults: Counter[str], with_data: bool) -> Iterator[Raw]:
    count = 0
    try:
        with open_shard(shard) as file:
            for sample in _samples(file, shard, with_data):
                count += 1
                yield sample
    except SHARD_ERRORS as error:
        faults[f"{shard} is damaged or cannot be read after {count} samples ({error})"] += 1
        return
    except Exception as error:  # what a remote file system raises is its own affair
        if not is_url(shard):
            raise
        faults[f"{shard} cannot be read after {count} samples ({error!r})"] += 1
        return
    if count == 0:
        faults[f"{shard} holds no samples"] += 1


def _samples(file: BinaryIO, shard: str, with_data: bool) -> Iterator[Raw]:
    sample: Raw = {}
    last: tarfile.TarInfo | None = None
    try:
        mode = "r|*" if with_data or is_url(shard) else "r:*"
        with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
            for member in tar:
                last = member
                if with_data:
                    tar.members = []  # or a long stream would keep every header
                key, extension = base_plus_ext(member.name)
                if key is None or not member.isfile():
                    continue
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                if not sample:
                    sample = {"__key__": key, "__shard__": shard}
                body = tar.extractfile(member)
                assert body is not None
                sample[extension.lower()] = body.read() if with_data else b""
    except tarfile.ReadError as error:
        # A file of no bytes at all is an empty shard, like a tar without members.
        if last is None and "empty" in str(error):
            return
        raise
    if sample:
        yield sample


@dataclass
class Cursor:
    """How far a reader has come: `samples` of its share of `epoch` are behind it."""

    epoch: int = 0
    samples: int = 0

    def state_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """One of the readers that share a shard list: a worker of a rank."""

    index: int = 0
    count: int = 1


def share(shards: list[str], place: Place) -> list[tuple[str, int, int]]:
    """The part of a shard list that one reader takes: (shard, first sample, stride).

    Whole shards where there are enough of them; else several readers share one and take every
    stride-th sample.
    """
    if len(shards) >= place.count:
        return [(shard, 0, 1) for shard in shards[place.index :: place.count]]
    mine = place.index % len(shards)
    sharers = range(mine, place.count, len(shards))
    return [(shards[mine], sharers.index(place.index), len(sharers))]


def shuffled(items: Iterable[Raw], buffer: int, rng: random.Random) -> Iterator[Raw]:
    """Items in an order drawn from a buffer of so many; 0 or 1 leaves the order."""
    held: list[Raw] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        if buffer > 1:
            index = rng.randrange(buffer)
            item, held[index] = held[index], item
        yield item
    rng.shuffle(held)
    yield from held
