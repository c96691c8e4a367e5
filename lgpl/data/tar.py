"""Where the samples of a tar file lie, read from its headers alone, so that a reader touches
nothing that another one trains on. Nothing is unpacked, and no name in a tar ever becomes a path.
POSIX ustar, pax and GNU long names are parsed here because `tarfile` spends 20 microseconds on a
header, more than all the rest that a sample of codes costs."""

import os
import sys
from array import array
from collections.abc import Iterator

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK = EXTENDED = (b"x", b"g", b"L", b"K")
SMALL = 4096  # bytes; where all members so far are smaller, headers are read many at a time
WINDOW = 64 * 1024  # bytes of that
LONGEST_NAME = 64 * 1024  # bytes of an extended header that are still read
LENGTH_DIGITS = 8  # of a pax record with the space behind it; Python reads no number of thousands
MOST_MEMBERS = 1000  # of a sample; millions of empty ones would fill the memory


class DamagedTar(ValueError):
    """From some place on the file is no tar."""


class Table:
    """The samples of a tar file, runs of members KEY.EXT with the same KEY; headers are read as far
    as they are asked for. A damaged file has the samples before the damage; the one that the damage
    cuts is left out. Without a file (its descriptor) there are none."""

    def __init__(self, file: int | None, damage: str | None = None) -> None:
        self.damage = damage  # why the file ends early, as far as it has been read
        self.crowded: set[int] = set()  # samples of more than MOST_MEMBERS, the rest unknown
        self.keys: list[str] = []  # of the samples whose headers have been read so far
        self._first = array("q")  # member of each sample, and one entry more at the end
        self._extensions: list[str] = []
        self._offsets, self._sizes = array("q"), array("q")
        self._members = None if file is None else self._scan(file)

    def __len__(self) -> int:
        """Number of samples; reads all headers, which nothing else here does."""
        self.reach(sys.maxsize)
        return len(self.keys)

    def reach(self, sample: int) -> bool:
        """Read headers until all members of a sample are known; False where there is none."""
        try:
            while self._members is not None and len(self.keys) <= sample + 1:
                next(self._members)
        except StopIteration:
            self._members = None
            self._first.append(len(self._sizes))
        except (DamagedTar, OSError) as error:
            self._members, self.damage = None, str(error)
            del self.keys[-1:]  # it may have lost members; where it begins, the others end
        return sample < len(self.keys)

    def members(self, sample: int) -> dict[str, tuple[int, int]]:
        """Extension in lower case -> (offset, size) of a member, bytes; of two the last."""
        return {
            self._extensions[i]: (self._offsets[i], self._sizes[i])
            for i in range(self._first[sample], self._first[sample + 1])
        }

    def _scan(self, file: int) -> Iterator[None]:
        """Add a member with every step."""
        end = os.fstat(file).st_size
        offset, long_name = 0, None
        window, begin, largest = b"", 0, SMALL + 1
        while offset < end:
            header = window[offset - begin : offset - begin + BLOCK]
            if len(header) < BLOCK:
                window = os.pread(file, WINDOW if largest <= SMALL else BLOCK, offset)
                header, begin = window[:BLOCK], offset
            if len(header) < BLOCK:
                raise DamagedTar(f"cut off at byte {end}")
            if not header[0] and not any(header):
                return  # the end mark
            kind, size, checksum = header[156:157], _number(header[124:136]), header[148:156]
            if size < 0 or sum(header) - sum(checksum) + 8 * 32 != _number(checksum):
                raise DamagedTar(f"no header at byte {offset}")
            content = offset + BLOCK
            has_content = kind in REGULAR or kind in EXTENDED
            offset = content + (-(-size // BLOCK) * BLOCK if has_content else 0)
            if kind in (PAX, GNU_LONG_NAME):
                if size > LONGEST_NAME:
                    raise DamagedTar(f"a name of {size} bytes at byte {content}")
                extended = os.pread(file, size, content)
                if len(extended) < size:
                    raise DamagedTar(f"cut off at byte {end}")
                if kind == PAX:
                    long_name = _pax_path(extended.rstrip(b"\0"), content)
                else:
                    long_name = extended.partition(b"\0")[0]
            elif kind in REGULAR:
                if content + size > end:
                    raise DamagedTar(f"cut off at byte {end}")
                name, long_name = long_name or _name(header), None
                self._add(name, content, size)
                largest = max(size, 0 if len(self._sizes) == 1 else largest)
                yield
            else:
                long_name = long_name if kind in EXTENDED else None
        if end:
            raise DamagedTar(f"cut off at byte {end}")  # a whole tar has an end mark

    def _add(self, name: bytes, offset: int, size: int) -> None:
        folder, slash, base = name.decode("utf-8", "replace").rpartition("/")
        stem, dot, extension = base.partition(".")
        if not dot:
            return
        key = folder + slash + stem
        if not self.keys or key != self.keys[-1]:
            self.keys.append(key)
            self._first.append(len(self._sizes))
        elif len(self._sizes) - self._first[-1] >= MOST_MEMBERS:
            self.crowded.add(len(self.keys) - 1)
            return
        self._extensions.append(sys.intern(extension.lower()))
        self._offsets.append(offset)
        self._sizes.append(size)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:  # GNU keeps something else there
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _number(text: bytes) -> int:
    """A number of a header, in octal or in GNU's form for large ones; below 0 where it is none."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    try:
        return int(text.partition(b"\0")[0] or b"0", 8)
    except ValueError:
        return -1


def _pax_path(records: bytes, offset: int) -> bytes | None:
    """The `path` among records "LENGTH KEY=VALUE\\n" that begin at `offset`."""
    start = 0
    while start < len(records):
        digits, space, _ = records[start : start + LENGTH_DIGITS].partition(b" ")
        end = start + int(digits) if space and digits.isdigit() else start
        first = start + len(digits) + 1
        if not first < end <= len(records) or records[end - 1 : end] != b"\n":
            raise DamagedTar(f"no pax header at byte {offset}")
        key, _, value = records[first : end - 1].partition(b"=")
        if key == b"path":
            return value
        start = end
    return None
