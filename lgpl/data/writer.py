"""Samples -> shards, under keys that do no harm: one from elsewhere such as `../../home/me/x` would
lead whoever unpacks the shard out of the folder."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from webdataset import TarWriter

from lgpl.atomic import ENDING, PartialFile, remove_partials

FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # no name in UTF-8 holds the last
HIDDEN = re.compile(r"^\.")
DRIVE = re.compile(r"^([A-Za-z]):")
# A file name has 255 bytes at most, a path on Linux 4096.
LONGEST_PART, LONGEST_KEY, LONGEST_EXTENSION = 200, 1000, 50


class ShardWriter:
    """One shard that appears under its name, `path`, only when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = PartialFile(path)
        self._tar = TarWriter(self._partial.file, encoder=False, mtime=0)
        self._last = ""  # key
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self.samples = 0

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Add a sample; a key that could do harm or be mistaken for another is changed."""
        named = {clean_extension(name): data for name, data in members.items()}
        self._last = key = self._apart(clean_key(key), list(named))
        self._tar.write({"__key__": key, **named})
        self._files.update(f"{key}.{name}" for name in named)
        self._folders.update(_above(key))
        self.samples += 1

    def close(self) -> None:
        """Give the shard its name."""
        self._tar.close()
        self._partial.commit()

    def discard(self) -> None:
        """Leave nothing of a shard that was not closed."""
        with suppress(OSError, ValueError):  # it writes the end of the tar, perhaps to a full disk
            self._tar.close()
        self._partial.discard()

    def _apart(self, key: str, names: list[str]) -> str:
        """A key that is not the last one's, of which no file takes the name of a folder or a folder
        that of a file."""
        found, number = key, 1
        if not self._files.isdisjoint(_above(key)):
            found = key = re.sub("[./]", "_", key)
        while found == self._last or any(f"{found}.{name}" in self._folders for name in names):
            number += 1
            found = f"{key}_{number}"
        return found


def _above(key: str) -> list[str]:
    """The folders of a key."""
    return [key[: slash.start()] for slash in re.finditer("/", key)]


def remove_left(paths: Sequence[Path]) -> None:
    """Delete what a killed run left of files, where nobody writes them now; each folder of theirs
    is read once, for it may hold as many."""
    ours = set(paths)
    for folder in {path.parent for path in paths}:
        for partial in folder.glob(f"*{ENDING}"):
            path = folder / partial.name.rsplit(".", 2)[0]
            if path in ours:
                remove_partials(path)


def clean_key(key: str) -> str:
    """The key as a path that stays below the folder it is unpacked into, and reads back as it is.
    What leads elsewhere, what no file name holds, and dots in the last part, where a key ends with
    the first, become `_`, as does the dot of a hidden file; a key too long for a path becomes its
    end and a digest."""
    *folders, last = ("_" if part == ".." else FORBIDDEN.sub("_", part) for part in key.split("/"))
    folders = [HIDDEN.sub("_", part) for part in folders if part not in ("", ".")]
    cleaned = DRIVE.sub(r"\1_", "/".join([*folders, last.replace(".", "_") or "_"]))
    encoded = cleaned.encode()
    if len(encoded) > LONGEST_KEY or max(map(len, encoded.split(b"/"))) > LONGEST_PART:
        end = encoded[-100:].decode("utf-8", "ignore")
        return f"{re.sub('[./]', '_', end)}-{_digest(key)}"
    return cleaned


def clean_extension(extension: str) -> str:
    """An extension as part of a file name; webdataset leaves out what is empty or begins with _."""
    cleaned = FORBIDDEN.sub("_", extension).replace("/", "_")
    if len(cleaned.encode()) > LONGEST_EXTENSION:
        cleaned = f"{_digest(extension)}.{cleaned.encode()[-24:].decode('utf-8', 'ignore')}"
    return cleaned if cleaned and cleaned[0] != "_" else f"x{cleaned}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
