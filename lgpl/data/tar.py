"""Where the samples of a tar file lie, read from its headers alone, so that a reader touches
nothing that another one trains on. Nothing is unpacked, and no name in a tar ever becomes a path.
POSIX ustar, pax and GNU long names are parsed here because `tarfile` spends 20 microseconds on a
header, more than all the rest that a sample of codes costs. The rest, such as sparse members and
hard links, is left to `tarfile`."""

import os
import re
import sys
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK = EXTENDED = (b"x", b"g", b"L", b"K")
LINK, SPARSE, SOLARIS = BY_TARFILE = (b"1", b"S", b"X")
WITHOUT_CONTENT = (b"2", b"3", b"4", b"5", b"6")  # symbolic links, devices, folders, pipes
# A name that begins with a dot, or lies in a folder of such a name: macOS' `._a.jpg` and the like.
HIDDEN = re.compile(rb"(?:^|/)\.(?!\.?/)")
SMALL = 4096  # bytes; where all members so far are smaller, headers are read many at a time
WINDOW = 64 * 1024  # bytes of that
LONGEST_EXTENDED = 16 * 2**20  # bytes of a header that are still read: names, a file's attributes
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
        self._sparse: dict[int, list[tuple[int, int]]] = {}  # by offset: start and length of parts
        # Offset and size of all members by name, kept from the first hard link on.
        self._named: dict[bytes, tuple[int, int]] | None = None
        self._fd = file
        self._members = None if file is None else self._scan(file)

    def __len__(self) -> int:
        """Number of samples; reads all headers, which nothing else here does."""
        self.reach(sys.maxsize)
        return len(self.keys)

    def reach(self, sample: int) -> bool:
        """Read headers until all members of a sample are known; False where there is none."""
        try:
            while self._members is not None and len(self.keys) <= sample + 1:
                self._add(*next(self._members))
        except StopIteration:
            self._members = None
            self._first.append(len(self._sizes))
        except (DamagedTar, OSError) as error:
            self._members, self.damage = None, self.damage or str(error)
            del self.keys[-1:]  # it may have lost members; where it begins, the others end
        return sample < len(self.keys)

    def members(self, sample: int) -> dict[str, tuple[int, int]]:
        """Extension in lower case -> (offset, size) of a member, bytes; of two the last."""
        return {
            self._extensions[i]: (self._offsets[i], self._sizes[i])
            for i in range(self._first[sample], self._first[sample + 1])
        }

    def repeated(self, sample: int) -> list[str]:
        """Extensions that several members of a sample have, of which `members` gives the last."""
        names = self._extensions[self._first[sample] : self._first[sample + 1]]
        return sorted(name for name, count in Counter(names).items() if count > 1)

    def content(self, offset: int, size: int) -> bytes:
        """A member by its entry in `members`; shorter where the file has become so."""
        assert self._fd is not None
        if offset not in self._sparse:
            return os.pread(self._fd, size, offset)
        data = bytearray(size)
        for start, length in self._sparse[offset]:
            data[start : start + length] = os.pread(self._fd, length, offset)
            offset += length
        return bytes(data[:size])

    def _scan(self, file: int, stop: int | None = None) -> Iterator[tuple[bytes, int, int]]:
        """Name, offset and size of each member, or of those before the place `stop`."""
        end = os.fstat(file).st_size
        offset, start, long_name = 0, 0, None  # start: of the headers of the next member
        window, begin, largest = b"", 0, 0
        while offset < (end if stop is None else stop):
            header = window[offset - begin : offset - begin + BLOCK]
            if len(header) < BLOCK:
                window = os.pread(file, WINDOW if largest <= SMALL else BLOCK, offset)
                header, begin = window[:BLOCK], offset
            if len(header) < BLOCK:
                said = "" if offset else f", or {_no_tar(header)}"
                raise DamagedTar(f"cut off at byte {end}{said}")
            if not header[0] and not any(header):
                self._look_behind(file, offset, end)
                return  # the end mark
            kind, size = header[156:157], _number(header[124:136])
            if size < 0 or not _is_whole(header):
                raise DamagedTar(f"no header at byte {offset}" if offset else _no_tar(header))
            content = offset + BLOCK
            if kind in BY_TARFILE:
                offset, found = self._by_tarfile(file, start, end)
                start, long_name = offset, None
                yield from found
                continue
            offset = content + (0 if kind in WITHOUT_CONTENT else -(-size // BLOCK) * BLOCK)
            if kind in (PAX, GNU_LONG_NAME):
                if size > LONGEST_EXTENDED:
                    raise DamagedTar(f"a header of {size} bytes at byte {content}")
                extended = os.pread(file, size, content)
                if len(extended) < size:
                    raise DamagedTar(f"cut off at byte {end}")
                if kind == PAX:
                    records = _pax(extended.rstrip(b"\0"), content)
                    if b"size" in records or any(key.startswith(b"GNU.sparse") for key in records):
                        offset, found = self._by_tarfile(file, start, end)
                        start, long_name = offset, None
                        yield from found
                        continue
                    long_name = long_name or records.get(b"path")  # the first counts
                else:
                    long_name = long_name or extended.partition(b"\0")[0]
            elif kind in REGULAR:
                if content + size > end:
                    raise DamagedTar(f"cut off at byte {end}")
                name, long_name = long_name or _name(header), None
                start, largest = offset, max(size, largest)
                yield name, content, size
            elif kind not in EXTENDED:
                start, long_name = offset, None
        if end and stop is None:
            raise DamagedTar(f"cut off at byte {end}")  # a whole tar has an end mark

    def _add(self, name: bytes, offset: int, size: int) -> None:
        if self._named is not None:
            self._named[os.path.normpath(name)] = offset, size
        key, extension = _split(name)
        if not extension or ((name[:1] == b"." or b"/." in name) and HIDDEN.search(name)):
            return
        if not self.keys or key != self.keys[-1]:
            self.keys.append(key)
            self._first.append(len(self._sizes))
        elif len(self._sizes) - self._first[-1] >= MOST_MEMBERS:
            self.crowded.add(len(self.keys) - 1)
            return
        self._extensions.append(extension)
        self._offsets.append(offset)
        self._sizes.append(size)

    def _by_tarfile(
        self, file: int, start: int, end: int
    ) -> tuple[int, list[tuple[bytes, int, int]]]:
        """Where the next headers begin, and the member whose headers begin at `start`, if it is
        one: of a hard link the latest of that name before it."""
        try:
            reader: Any = _Reader(file, start, end)
            tar = tarfile.TarFile(fileobj=reader, encoding="utf-8")
            info = tar.next()
            if info is None or not 0 <= info.size < sys.maxsize:
                raise ValueError("no member")
        except Exception as error:  # tarfile raises as many kinds as there are ways to damage one
            raise DamagedTar(f"no header at byte {start} ({error})") from error
        if tar.offset > end:
            raise DamagedTar(f"cut off at byte {end}")
        name = info.name.encode("utf-8", "surrogateescape")
        if info.islnk():
            if self._named is None:
                before = self._scan(file, start)
                self._named = {os.path.normpath(n): (at, size) for n, at, size in before}
            linked = info.linkname.encode("utf-8", "surrogateescape")
            place = self._named.get(os.path.normpath(linked))
            return tar.offset, [] if place is None else [(name, *place)]
        if not info.isreg():
            return tar.offset, []
        parts: Any = info.sparse
        if parts is not None:
            self._sparse[info.offset_data] = list(parts)
        return tar.offset, [(name, info.offset_data, info.size)]

    def _look_behind(self, file: int, offset: int, end: int) -> None:
        """Note what lies behind the end mark, which no reader of tars reads."""
        for place in range(offset, end, WINDOW):
            piece = os.pread(file, WINDOW, place)
            if piece.count(0) != len(piece):
                self.damage = f"more behind its end mark at byte {offset}, as of two tars joined"
                return


class _Reader:
    """What tarfile reads of a file from a place on, by a position that no other process moves."""

    def __init__(self, file: int, place: int, end: int) -> None:
        self._file, self._place, self._end = file, place, end

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> None:
        self._place = place

    def read(self, size: int) -> bytes:
        data = os.pread(self._file, max(0, min(size, self._end - self._place)), self._place)
        self._place += len(data)
        return data


def _no_tar(start: bytes) -> str:
    return f"no tar, plain or as .gz, .bz2, .xz or .zst: it begins with {start[:16]!r}"


def _split(name: bytes) -> tuple[str, str]:
    """Key and extension, in lower case, of a member; what is not UTF-8 stays apart by its bytes."""
    folder, slash, base = name.decode("utf-8", "backslashreplace").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, sys.intern(extension.lower())


def _is_whole(header: bytes) -> bool:
    """Whether the checksum is right: the sum of its bytes, which some programs take as signed."""
    checksum = header[148:156]
    total, wanted = sum(header) - sum(checksum) + 8 * 32, _number(checksum)
    if total == wanted:
        return True
    return total - 256 * sum(byte > 127 for byte in header[:148] + header[156:]) == wanted


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
        return int(text.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _pax(records: bytes, offset: int) -> dict[bytes, bytes]:
    """Values by their keys in records "LENGTH KEY=VALUE\\n" that begin at `offset`."""
    found, start = {}, 0
    while start < len(records):
        digits, space, _ = records[start : start + LENGTH_DIGITS].partition(b" ")
        end = start + int(digits) if space and digits.isdigit() else start
        first = start + len(digits) + 1
        if not first < end <= len(records) or records[end - 1 : end] != b"\n":
            raise DamagedTar(f"no pax header at byte {offset}")
        key, _, value = records[first : end - 1].partition(b"=")
        found[key] = value
        start = end
    return found
