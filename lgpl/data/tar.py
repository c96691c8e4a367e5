"""Where the samples of a tar file lie, read from its headers alone.

With this table any sample is one read away, so a reader touches nothing that another one trains on.
The headers are parsed here because `tarfile` spends 20 microseconds on each, which is more than all
the rest that a sample of codes costs. POSIX ustar, pax and GNU long names are understood.

Nothing is unpacked, and no name in a tar ever becomes a path.
"""

from __future__ import annotations

import os
import sys
from array import array
from dataclasses import dataclass, field

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK = b"x", b"g", b"L", b"K"
LONGEST_NAME = 64 * 1024  # bytes of an extended header that are still read


class DamagedTar(ValueError):
    """From some place on the file is no tar."""


@dataclass
class Table:
    """The samples of a tar file: runs of members KEY.EXT with the same KEY.

    Attributes:
        keys: the samples' keys.
        first: the first member of each sample, and one entry more for the end.
        extensions: of each member, in lower case.
        offsets: of each member's content in the file, bytes.
        sizes: of each member's content, bytes.
        damage: what ended the reading before the end; None for a whole file.
    """

    keys: list[str] = field(default_factory=list)
    first: array = field(default_factory=lambda: array("q"))
    extensions: list[str] = field(default_factory=list)
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    damage: str | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, sample: int) -> dict[str, tuple[int, int]]:
        """Extension -> (offset, size) of a sample's members; of two with one name the last."""
        return {
            self.extensions[i]: (self.offsets[i], self.sizes[i])
            for i in range(self.first[sample], self.first[sample + 1])
        }


def read_table(file: int) -> Table:
    """The table of an open tar file.

    A damaged file gives the samples before the damage; the one that the damage cuts is left out.

    Args:
        file: descriptor of a regular file.
    """
    table = Table()
    try:
        _scan(file, table)
    except DamagedTar as error:
        table.damage = str(error)
        if table.keys:  # it may have lost members
            table.keys.pop()
            start = table.first.pop()
            del table.extensions[start:], table.offsets[start:], table.sizes[start:]
    table.first.append(len(table.sizes))
    return table


def _scan(file: int, table: Table) -> None:
    end = os.fstat(file).st_size
    offset, long_name, key = 0, None, None
    while offset < end:
        header = os.pread(file, BLOCK, offset)
        if len(header) < BLOCK:
            raise DamagedTar(f"cut off at byte {end}")
        if not header[0] and not any(header):
            return  # the end mark
        kind, size = header[156:157], _number(header[124:136], offset)
        if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156], offset):
            raise DamagedTar(f"no header at byte {offset}")
        content = offset + BLOCK
        has_content = kind in REGULAR or kind in (PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK)
        offset = content + (-(-size // BLOCK) * BLOCK if has_content else 0)
        if kind in (PAX, GNU_LONG_NAME):
            if size > LONGEST_NAME:
                raise DamagedTar(f"a name of {size} bytes at byte {content}")
            extended = os.pread(file, size, content)
            long_name = _pax_path(extended) if kind == PAX else extended.rstrip(b"\0")
        elif kind in REGULAR:
            if content + size > end:
                raise DamagedTar(f"cut off at byte {end}")
            name, long_name = long_name or _name(header), None
            key = _add(table, name, key, content, size)
        else:
            long_name = long_name if kind in (PAX_GLOBAL, GNU_LONG_LINK) else None
    if end:
        raise DamagedTar(f"cut off at byte {end}")  # a whole tar has an end mark


def _add(table: Table, name: bytes, last: str | None, offset: int, size: int) -> str | None:
    folder, slash, base = name.decode("utf-8", "replace").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot:
        return last
    key = folder + slash + stem
    if key != last:
        table.keys.append(key)
        table.first.append(len(table.sizes))
    table.extensions.append(sys.intern(extension.lower()))
    table.offsets.append(offset)
    table.sizes.append(size)
    return key


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:  # GNU keeps something else there
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _number(text: bytes, offset: int) -> int:
    if text[0] == 0x80:  # GNU's form for large numbers
        return int.from_bytes(text[1:], "big")
    try:
        number = int(text.partition(b"\0")[0] or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise DamagedTar(f"no header at byte {offset}")
    return number


def _pax_path(records: bytes) -> bytes | None:
    """The `path` among records "LENGTH KEY=VALUE\\n"."""
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or not int(length):
            return None
        record, records = records[: int(length)], records[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        if key == b"path":
            return value
    return None
