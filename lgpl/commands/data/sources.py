"""Images on disk and what is known of them: class folders, captions beside them or in a table, or
nothing."""

import codecs
import csv
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from PIL import Image

from lgpl.data.members import IMAGE_EXTENSIONS
from lgpl.errors import UserError, as_user_error
from lgpl.image_files import files_below

Skipped = list[tuple[str, str]]  # files that cannot be packed, and why
TABLES = ("metadata.jsonl", "metadata.csv")  # in a folder of images, as the hub's data sets are
TEXTS = (".caption", ".txt")  # beside an image, in capitals too; the last counts most
LONGEST_FIELD = 2**24  # characters
NO_UTF8 = "row that is not UTF-8"
READ = " ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
NO_IMAGE = f"file that is none of {READ}"
MEMBER = re.compile(r"[\w-]+")  # a name that a caption's member may have before .txt


class ImageFile(NamedTuple):
    """An image to pack."""

    file: str  # path in the source's folder
    size: int  # bytes
    label: int | None = None  # its class
    text: str | None = None  # file with its caption, in the source's folder
    caption: str | None = None  # the caption itself
    others: dict[str, str] | None = None  # further captions, by the names of their members
    more: dict[str, Any] | None = None  # what else a table says of it


@dataclass
class Source:
    """A folder of images."""

    folder: Path
    images: list[ImageFile] = field(default_factory=list)  # in a fixed order
    classes: list[str] | None = None  # their names, where the folder is one of classes
    skipped: Skipped = field(default_factory=list)

    @property
    def captioned(self) -> bool:
        return any(image.text or image.caption for image in self.images)

    def add(self, file: str, **known: Any) -> None:
        try:
            self.images.append(ImageFile(file, os.path.getsize(self.folder / file), **known))
        except (OSError, ValueError):  # the latter for what no name can hold
            self.skipped.append((file, "no such file"))


def find(folder: Path, file_column: str, caption_columns: Sequence[str]) -> Source:
    """The images of a folder: by the table in it, with captions where `.txt` or `.caption` files
    lie beside them, by classes where they lie in folders, else the images alone."""
    for name in TABLES:
        if (folder / name).is_file():
            return from_table(folder, folder / name, file_column, caption_columns)
    found, left = files_below(folder)
    images = list(filter(_is_image, found))
    texts: dict[str, dict[str, str]] = {ending: {} for ending in TEXTS}
    # Several images may have one caption by links, which are left out as images.
    for file in [*found, *(file for file, _ in left)]:
        stem, ending = os.path.splitext(file)
        if ending.lower() in texts:
            texts[ending.lower()][stem] = file
    text_of = {stem: file for files in texts.values() for stem, file in files.items()}
    if not _captioned(images, text_of) and any("/" in file for file in images):
        return by_class(folder)
    if not images:
        raise UserError(f"{folder} holds no images ({READ}).")
    return _with_texts(folder, images, text_of, _unread(found, left))


def from_list(path: Path) -> Source:
    """The images that a text file lists, a path a line, from its own folder on; with captions where
    `.txt` or `.caption` files lie beside them. A UserError where it cannot be read or is empty."""
    with as_user_error(f"SOURCE: {path} cannot be read", OSError):
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    files = [os.fsdecode(line.strip()) for line in lines if line.strip()]
    if not files:
        raise UserError(f"SOURCE: {path} lists no images; write a path on every line.")
    images, skipped = dict[str, None](), list[tuple[str, str]]()
    for file in files:
        if not _is_image(file):
            skipped.append((file, NO_IMAGE))
        elif file in images:
            skipped.append((file, "path that is listed already"))
        else:
            images[file] = None
    stems = {os.path.splitext(file)[0] for file in images}
    beside = ((stem, stem + ending) for ending in TEXTS for stem in stems)
    text_of = {stem: text for stem, text in beside if os.path.isfile(path.parent / text)}
    return _with_texts(path.parent, images, text_of, skipped)


def _captioned(images: Iterable[str], text_of: Mapping[str, str]) -> bool:
    return any(os.path.splitext(file)[0] in text_of for file in images)


def _with_texts(
    folder: Path, images: Collection[str], text_of: Mapping[str, str], skipped: Skipped
) -> Source:
    """Images with the captions beside them; where any has one, those without are skipped."""
    source, captioned = Source(folder, skipped=skipped), _captioned(images, text_of)
    for file in images:
        text = text_of.get(os.path.splitext(file)[0])
        if text or not captioned:
            source.add(file, text=text)
        else:
            source.skipped.append((file, "image without a .txt beside it"))
    return source


def by_class(folder: Path, classes: Sequence[str] | None = None) -> Source:
    """A folder with one folder for each class, numbered in the order of their names; a UserError
    where there are none, or others than those that are known from elsewhere."""
    found, left = files_below(folder)
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
    source.skipped += _unread(found, left)
    return source


def from_table(
    folder: Path, table: Path, file_column: str, caption_columns: Sequence[str]
) -> Source:
    """The images that a table in UTF-8 names by their paths in the folder: a `.csv` with a header
    or a `.jsonl` with an object a line. Each row is a sample with the caption of the first column;
    the other captions become members of their columns' names. A caption may be a list, of which the
    first text counts; it, and other columns, are kept as they are. A row that cannot be read is
    skipped; a UserError where the table cannot be, or lacks a column."""
    source = Source(folder)
    columns: dict[str, None] = {}
    first, *further = caption_columns
    for name in further:
        if not MEMBER.fullmatch(name):
            said = f"--caption-column: {name!r} cannot name a member KEY.NAME.txt"
            raise UserError(f"{said}; leave it out and read it as json:{name} instead.")
    for number, row in _rows(table, source.skipped):
        columns.update(dict.fromkeys(row))
        file = row.pop(file_column, None)
        captions = {name: _pop_caption(row, name) for name in caption_columns}
        caption = captions[first]
        if not isinstance(file, str) or caption is None:
            source.skipped.append((f"{table}, line {number}", "row without file or caption"))
        elif not _is_image(file):
            source.skipped.append((file, NO_IMAGE))
        else:
            texts = {f"{name}.txt": captions[name] or "" for name in further}
            others = {name: text for name, text in texts.items() if text.strip()}
            source.add(file, caption=caption, others=others or None, more=row or None)
    if not columns:
        place, why = source.skipped[0] if source.skipped else (str(table), "it has none")
        raise UserError(f"--captions: {place}: no row can be read: {why}.")
    there = ", ".join(columns)
    options = [("--file-column", file_column)]
    for option, name in options + [("--caption-column", name) for name in caption_columns]:
        if name not in columns:
            raise UserError(f"{table} has no column {name!r} but {there}; name it with {option}.")
    return source


def _pop_caption(row: dict[str, Any], column: str) -> str | None:
    """Take a row's caption out; of a list the first text, and the list stays."""
    value = row.pop(column, None)
    if isinstance(value, list):
        row[column] = value
        value = next((one for one in value if isinstance(one, str) and one.strip()), None)
    return value if isinstance(value, str) else None


def _rows(table: Path, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows and the lines that they begin at; those that cannot be read are added to `skipped`."""
    kind = table.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise UserError(f"--captions: {table} is neither .csv nor .jsonl.")
    with (
        as_user_error(f"--captions: {table} cannot be read", OSError),
        # With the byte order mark of spreadsheets; another encoding spoils its own rows alone.
        open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        yield from (_csv_rows if kind == ".csv" else _json_rows)(file, table, skipped)


def _csv_rows(file: TextIO, table: Path, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(file, strict=True)
    names: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Of a quotation mark that is never closed, the row takes all that follow with it.
            lost = range(first, reader.line_num + 1)
            skipped += [(f"{table}, line {line}", f"row that is no CSV ({error})") for line in lost]
            continue
        if not row:
            continue
        if not _is_utf8("".join(row)):
            if names is None:
                raise UserError(f"--captions: {table}, line {first}: the header is not UTF-8.")
            skipped.append((f"{table}, line {first}", NO_UTF8))
        elif names is None:
            names = row
        else:
            pairs = zip(names, row, strict=False)  # a row may be shorter or longer
            yield first, {name: value for name, value in pairs if name}


def _json_rows(file: TextIO, table: Path, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            # NaN and Infinity, which Python's tables hold for what is missing, are no JSON.
            numbers: dict[str, Any] = {"parse_float": _finite, "parse_int": _finite_integer}
            row = json.loads(line, parse_constant=lambda _: None, **numbers)
        except (ValueError, RecursionError):
            row = None
        if not _is_utf8(line):
            skipped.append((f"{table}, line {number}", NO_UTF8))
        elif isinstance(row, dict):
            yield number, row
        else:
            skipped.append((f"{table}, line {number}", "row that is no JSON object"))


def _finite(text: str) -> float | None:
    return float(text) if math.isfinite(float(text)) else None


def _finite_integer(text: str) -> int | None:
    return None if _finite(text) is None else int(text)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # what is no UTF-8 was read as surrogates
        return False
    return True


def _is_image(file: str) -> bool:
    return extension(file) in IMAGE_EXTENSIONS


def _unread(files: list[str], left: Skipped) -> Skipped:
    """Images in formats that no field reads, and those `left` out; other files are nobody's
    business, folders are."""
    formats = Image.registered_extensions().keys() - {f".{e}" for e in IMAGE_EXTENSIONS}
    endings = ((file, f".{extension(file)}") for file in files)
    unread = [(file, f"{kind} is none of {READ}") for file, kind in endings if kind in formats]
    return unread + [(file, why) for file, why in left if _is_image(file) or not extension(file)]


def extension(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()
