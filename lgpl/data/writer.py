"""Samples -> shards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from webdataset import TarWriter

from lgpl.atomic import ENDING, PartialFile, remove_partials
from lgpl.data.keys import clean_extension, clean_key


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
    for folder in {path.parent for path in paths}:
        left = {partial.name.rsplit(".", 2)[0] for partial in folder.glob(f"*{ENDING}")}
        for path in paths:
            if path.parent == folder and path.name in left:
                remove_partials(path)
