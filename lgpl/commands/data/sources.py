"""Images on disk and what is known of them: class folders, captions beside them or in a table."""

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lgpl.data.members import IMAGE_EXTENSIONS
from lgpl.errors import UserError, as_user_error

Skipped = list[tuple[str, str]]  # files that cannot be packed, and why
READ = " ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)


class ImageFile(NamedTuple):
    """An image to pack."""

    file: str  # path in the source's folder
    size: int  # bytes
    label: int | None = None  # its class
    text: str | None = None  # file with its caption, in the source's folder
    caption: str | None = None  # the caption itself
    more: dict[str, Any] | None = None  # what else a table says of it


@dataclass
class Source:
    """A folder of images."""

    folder: Path
    images: list[ImageFile] = field(default_factory=list)  # in a fixed order
    classes: list[str] | None = None  # their names, where the folder is one of classes
    skipped: Skipped = field(default_factory=list)

    def add(self, file: str, **known: Any) -> None:
        try:
            self.images.append(ImageFile(file, os.path.getsize(self.folder / file), **known))
        except OSError:
            self.skipped.append((file, "no such file"))


def find(folder: Path) -> Source:
    """The images of a folder: with captions where `.txt` files lie beside them, else by classes;
    a UserError where they are neither."""
    found = _files(folder)
    images = list(filter(_is_image, found))
    texts = {file for file in found if file.endswith(".txt")}
    if any(_text_of(file) in texts for file in images):
        source = Source(folder, skipped=_unread(found))
        for file in images:
            if _text_of(file) in texts:
                source.add(file, text=_text_of(file))
            else:
                source.skipped.append((file, "image without a .txt beside it"))
        return source
    if any("/" in file for file in images):
        return by_class(folder)
    if not images:
        raise UserError(f"{folder} holds no images ({READ}).")
    fault = "the images lie neither in a folder for each class nor beside a .txt each"
    raise UserError(f"{folder}: {fault}; give --captions, a table of captions.")


def by_class(folder: Path, classes: Sequence[str] | None = None) -> Source:
    """A folder with one folder for each class, numbered in the order of their names; a UserError
    where there are none, or others than those that are known from elsewhere."""
    found = _files(folder)
    source = Source(folder)
    inside = [file for file in found if _is_image(file) and "/" in file]
    names = sorted({file.partition("/")[0] for file in inside})
    if not names:
        raise UserError(f"{folder} holds no folders of images ({READ}), one for each class.")
    if strange := set(names).difference(classes or names):
        raise UserError(f"{folder / min(strange)} is the folder of a class that SOURCE lacks.")
    source.classes = list(classes or names)
    labels = {name: label for label, name in enumerate(source.classes)}
    for file in inside:
        source.add(file, label=labels[file.partition("/")[0]])
    outside = (file for file in found if _is_image(file) and "/" not in file)
    source.skipped += [(file, "image outside of the class folders") for file in outside]
    source.skipped += _unread(found)
    return source


def from_table(folder: Path, table: Path, file_column: str, caption_column: str) -> Source:
    """The images that a table in UTF-8 names by their paths in the folder: a `.csv` with a header
    or a `.jsonl` with an object a line. Each row is a sample, other columns are kept as they are; a
    UserError where it cannot be read or lacks a column."""
    source = Source(folder)
    columns: dict[str, None] = {}
    for number, row in enumerate(_rows(table), 1):
        columns.update(dict.fromkeys(row))
        file, caption = row.pop(file_column, None), row.pop(caption_column, None)
        if not isinstance(file, str) or not isinstance(caption, str):
            source.skipped.append((f"row {number} of {table}", "row without file or caption"))
        elif not _is_image(file):
            source.skipped.append((file, f"file that is none of {READ}"))
        else:
            source.add(file, caption=caption, more=row or None)
    there = ", ".join(columns) or "no rows"
    for option, name in (("--file-column", file_column), ("--caption-column", caption_column)):
        if name not in columns:
            raise UserError(f"{table} has no column {name!r} but {there}; name it with {option}.")
    return source


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    if table.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--captions: {table} is neither .csv nor .jsonl.")
    with (
        as_user_error(f"--captions: {table} is not UTF-8", UnicodeDecodeError),
        as_user_error(f"--captions: {table} cannot be read", OSError, csv.Error),
        open(table, encoding="utf-8-sig", newline="") as file,  # as spreadsheets write it
    ):
        if table.suffix == ".csv":
            for row in csv.DictReader(file, restkey=""):
                yield {name: value for name, value in row.items() if name and value is not None}
            return
        for number, line in enumerate(file, 1):
            with as_user_error(f"{table}: line {number} is no JSON", ValueError, RecursionError):
                # NaN and Infinity, which Python's tables hold for what is missing, are no JSON.
                row = json.loads(line, parse_constant=lambda _: None, parse_float=_finite)
            if not isinstance(row, dict):
                raise UserError(f"{table}: line {number} is no JSON object.")
            yield row


def _finite(text: str) -> float | None:
    return float(text) if math.isfinite(float(text)) else None


def _files(folder: Path) -> list[str]:
    """All files below a folder that are not hidden, as paths in it."""
    found: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(place).relative_to(folder)
        found += [(inside / name).as_posix() for name in sorted(files) if name[0] != "."]
    return found


def _is_image(file: str) -> bool:
    return extension(file) in IMAGE_EXTENSIONS


def _unread(files: list[str]) -> Skipped:
    """Images in formats that no field reads; other files are nobody's business."""
    formats = Image.registered_extensions().keys() - {f".{e}" for e in IMAGE_EXTENSIONS}
    endings = ((file, f".{extension(file)}") for file in files)
    return [(file, f"{ending} is none of {READ}") for file, ending in endings if ending in formats]


def extension(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _text_of(file: str) -> str:
    return os.path.splitext(file)[0] + ".txt"
