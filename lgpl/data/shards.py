"""Shards, expanded from patterns, opened and read: tar files (optionally compressed) in
webdataset's layout, members KEY.EXT with those of one sample next to each other. Nothing in a shard
is executed or unpickled here."""

import bz2
import glob
import gzip
import lzma
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, BinaryIO

import braceexpand
import zstandard

from lgpl import shipped
from lgpl.data.members import BadSample, Raw
from lgpl.data.store import Store
from lgpl.data.tar import MOST_MEMBERS, Table
from lgpl.data.transfer import PIECE, is_url, scheme
from lgpl.errors import UserError

LARGEST_MEMBER = 256 * 2**20  # bytes; a larger one is read as missing
LARGEST_SAMPLE = 512 * 2**20  # bytes of all members that are read
# A compressed shard may come to so many times the bytes that were read of it. Images and codes
# reach 5, labels 100 (gzip) to 240 (bzip2), one label or caption throughout 150 to 520 (xz).
LARGEST_RATIO = 600
ALWAYS_UNPACKED = 64 * 2**20  # bytes, whatever the ratio
LARGEST_UNPACKED = 64 * 2**30  # bytes


def _zstd(file: BinaryIO) -> Any:
    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)


# How each compression is opened, by its first bytes.
COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _zstd,
    # pzstd's and others, which begin with a frame that is skipped
    **{bytes([first]) + b"\x2a\x4d\x18": _zstd for first in range(0x50, 0x60)},
}
OPEN_AT_ONCE = 128  # shards


class NoShards(UserError):
    """A pattern that matches no file; `key` is the key, `pattern` the pattern."""

    def __init__(self, key: str, pattern: str) -> None:
        super().__init__(f"{key}: {pattern!r} matches no file; give a path, pattern or URL.")
        self.key, self.pattern = key, pattern


@contextmanager
def shards_with(fields: Collection[str]) -> Iterator[None]:
    """In which shards with these fields are looked for: whoever has no codes yet learns how."""
    try:
        yield
    except NoShards as error:
        if "codes" not in fields:
            raise
        how = "`lgpl predict` writes the codes of images there"
        raise UserError(f"{error.key}: {error.pattern!r} matches no file; {how}.") from None


def expand(
    patterns: str | Iterable[str], what: str = "shards", store: Store | None = None
) -> list[str]:
    """Shards that patterns stand for, in order, each once: paths, braces (`{0000..0007}`), globs
    (`*`, `?`, `[]`) or URLs; a `UserError` about the key `what` where one matches nothing."""
    store = store or Store()
    shards: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        store.check(pattern)
        is_command = scheme(pattern) == "pipe"  # whose braces are the shell's
        is_plain = is_command or os.path.exists(pattern)
        folder, rest = _divided(pattern)
        try:
            paths = [pattern] if is_plain else [folder + p for p in braceexpand.braceexpand(rest)]
        except braceexpand.UnbalancedBracesError as error:  # type: ignore[attr-defined]
            raise UserError(f"{what}: {pattern!r} has a brace without its partner.") from error
        for path in paths:
            if is_url(path) or os.path.exists(path):
                found = [path]
            else:
                folder, rest = _divided(path)
                found = sorted(glob.glob(glob.escape(folder) + rest))
            found = found or shipped.shards(path)
            if not found:
                raise NoShards(what, path)
            shards.update(dict.fromkeys(found))
    if not shards:
        raise UserError(f"{what}: the list is empty; give at least one path, pattern or URL.")
    return list(shards)


def _divided(pattern: str) -> tuple[str, str]:
    """The folders that a pattern begins with, as far as they are there: whatever brackets their
    names have, only the rest is a pattern."""
    folder = "" if is_url(pattern) else os.path.dirname(pattern)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    end = len(folder) + (pattern[len(folder) :][:1] == "/" and folder != "")
    return pattern[:end], pattern[end:]


class Shard(Table):
    """An open shard, of a path or URL: its samples by their place; none where it is unreadable."""

    def __init__(self, path: str, store: Store) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        try:
            self._file, damage = _unpacked(store.open(path))
        except OSError as error:
            damage = f"cannot be read ({error.strerror or error})"
        super().__init__(self._file.fileno() if self._file else None, damage)

    def read(self, sample: int, extensions: Collection[str] | None = None) -> Raw:
        """The bytes of a sample's members with these extensions (None: all of them), without those
        that are larger than anyone needs or that the file does not hold any more; an IndexError
        where the shard has fewer samples, a BadSample where these members or their number are
        larger than any sample's, or the disk does not give them."""
        if not self.reach(sample):
            raise IndexError(sample)
        if sample in self.crowded:
            raise BadSample(f"sample of more than {MOST_MEMBERS} members")
        places, total = self.members(sample), 0
        raw: Raw = {"__key__": self.keys[sample], "__shard__": self.path}
        if extensions is None:
            extensions = {name for name in places if not name.startswith("__")}  # `Raw` has those
        try:
            for name, (offset, size) in places.items():
                if size > LARGEST_MEMBER or name not in extensions:
                    continue
                total += size
                if total > LARGEST_SAMPLE:
                    raise BadSample(f"sample of more than {LARGEST_SAMPLE} bytes")
                data = self.content(offset, size)
                if len(data) == size:
                    raw[name] = data
        except (OSError, MemoryError) as error:
            raise BadSample(f"sample that cannot be read ({str(error) or 'no memory'})") from error
        return raw

    __getitem__ = read

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class OpenShards:
    """Shards that stay open between two reads: the latest used ones that have at least `samples`
    samples together, so that a shuffle over as many opens none twice."""

    def __init__(self, store: Store, samples: int = 0) -> None:
        self.store, self.samples = store, samples
        self._open: OrderedDict[str, Shard] = OrderedDict()

    def __getitem__(self, path: str) -> Shard:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        shard = self._open[path] = Shard(path, self.store)
        kept = sum(len(shard.keys) for shard in self._open.values())
        while len(self._open) > 2:
            oldest = next(iter(self._open.values()))
            kept -= len(oldest.keys)
            if kept < 2 * self.samples and len(self._open) <= OPEN_AT_ONCE:
                break
            self._open.pop(oldest.path).close()
        return shard


def _unpacked(file: BinaryIO) -> tuple[BinaryIO, str | None]:
    """A file of the tar itself, a temporary one where it was compressed, and why it ends early."""
    head = os.pread(file.fileno(), 8, 0)
    opened = next((how for magic, how in COMPRESSED.items() if head.startswith(magic)), None)
    if opened is None:
        return file, None
    damage = None
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with file, opened(file) as stream:
            while piece := stream.read1(PIECE):  # `read` would lose what precedes the damage
                size = unpacked.tell() + len(piece)
                if size > min(LARGEST_UNPACKED, max(ALWAYS_UNPACKED, LARGEST_RATIO * file.tell())):
                    bounds = f"{LARGEST_RATIO} times its size or {LARGEST_UNPACKED} bytes"
                    damage = f"unpacks to more than {bounds}"
                    break
                unpacked.write(piece)
    except Exception as error:  # each codec raises its own, and MemoryError for a huge dictionary
        damage = f"damaged compression ({str(error) or type(error).__name__})"
    unpacked.flush()
    return unpacked, damage  # type: ignore[return-value]


def read_shard(path: str, store: Store | None = None) -> Iterator[Raw]:
    """All samples of a shard that can be read, in turn; a damaged shard ends early."""
    with closing(Shard(path, store or Store())) as shard:
        for sample in range(len(shard)):
            with suppress(BadSample):
                yield shard[sample]
