"""Files of prompts: lines of text, a column of a table, and those of two benchmarks, GenEval's JSON
lines (arXiv 2310.11513) and DPG-bench's folder of texts (arXiv 2403.05135)."""

import csv
import functools
import io
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lgpl.errors import UserError, as_user_error
from lgpl.text import captions

COLUMN = "Prompt"  # of PartiPrompts' table, and of LlamaGen's captions of COCO
ENDINGS = (".txt", ".csv", ".tsv", ".jsonl")
CAPTIONS = "captions.txt"  # beside images that are called by their numbers
Layout = Literal["geneval", "dpg"]  # of folders, as these benchmarks' scorers read them
GENEVAL: Layout = "geneval"
DPG: Layout = "dpg"
LONGEST_FIELD = 2**24  # characters


class Prompts(NamedTuple):
    """What a file of prompts holds."""

    texts: list[str]
    layout: Layout | None = None  # of the folder of their images
    rows: list[dict[str, Any]] = []  # of a table or of GenEval: all that it says of each prompt
    names: list[str] = []  # of DPG-bench: what the image of each is called


def is_prompts(path: str) -> bool:
    """Whether a path is one for `read`, and not of shards."""
    return path.endswith(ENDINGS) or Path(path).is_dir()


def read(path: str, column: str = COLUMN) -> Prompts:
    """The prompts of a file: a line each of a text, a row each of a `.csv` or `.tsv` with this
    `column`, an object each of a `.jsonl` as GenEval's; or of a folder, a `.txt` each.

    A UserError where it cannot be read, lacks the column, or holds no prompt somewhere.
    """
    if Path(path).is_dir():
        return _folder(Path(path))
    if path.endswith((".csv", ".tsv")):
        return _table(path, column)
    if path.endswith(".jsonl"):
        rows = [wanted(line, where) for line, where in _lines(path)]
        if not rows:
            raise UserError(f"prompts: {path} holds no prompts; write an object a line.")
        return Prompts([row["prompt"] for row in rows], GENEVAL, rows)
    return Prompts(captions.read_prompts(path))


def wanted(line: str | bytes, where: str) -> dict[str, Any]:
    """What an image should show, of a line of GenEval's JSON; a UserError where it says nothing of
    the kind."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    row = row if isinstance(row, dict) else {}
    groups = [row.get("include"), row.get("exclude", [])]
    each = [g for group in groups if isinstance(group, list) for g in group]
    sound = isinstance(row.get("include"), list) and all(map(_is_group, each))
    prompt = row.get("prompt")
    if not sound or "tag" not in row or not isinstance(prompt, str) or not prompt.strip():
        keys = "tag, prompt and include, a list of objects with class and count"
        raise UserError(f"prompts: {where} is no prompt of GenEval, a JSON object with {keys}.")
    return row


def _is_group(group: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("class"), str):
        return False
    position = group.get("position", ["", 0])
    pair = isinstance(position, list) and len(position) == 2 and isinstance(position[1], int)
    return pair and isinstance(group.get("count"), int)


def _text(path: str | Path) -> str:
    with as_user_error(f"prompts: {path} cannot be read as text", OSError, ValueError):
        return Path(path).read_text(encoding="utf-8-sig")


def _lines(path: str) -> list[tuple[str, str]]:
    numbered = enumerate(_text(path).split("\n"), 1)
    return [(line, f"line {number} of {path}") for number, line in numbered if line.strip()]


def _table(path: str, column: str) -> Prompts:
    text = _text(path)
    # A table of one column has no separator, but perhaps commas in its prompts.
    is_csv = "," in text.partition("\n")[0] and not path.endswith(".tsv")
    try:
        names, *rows = _rows(text, "," if is_csv else "\t")
    except csv.Error as error:
        raise UserError(f"prompts: {path} cannot be read as a table ({error}).") from error
    if column not in names:
        said = f"prompts: {path} has no column {column!r} but {', '.join(names) or 'none at all'}"
        raise UserError(f"{said}; name the right one with --prompt-column.")
    found = [dict(zip(names, row, strict=False)) for row in rows]
    texts = [row.get(column, "").strip() for row in found]
    if not texts:
        raise UserError(f"prompts: {path} holds no prompts; write one a row.")
    if "" in texts:
        where = f"row {texts.index('') + 1} of {path}"
        raise UserError(f"prompts: {where} has no {column}; each row is the prompt of an image.")
    return Prompts(texts, rows=found)


def _rows(text: str, separator: str) -> list[list[str]]:
    """The rows that hold something, of which the first names the columns."""
    csv.field_size_limit(LONGEST_FIELD)
    read = functools.partial(csv.reader, delimiter=separator, strict=True)
    try:
        rows = list(read(io.StringIO(text)))
    except csv.Error:
        if separator != "\t":
            raise
        # Where tabs divide, quotation marks may be the prompts' own.
        rows = list(read(io.StringIO(text), quoting=csv.QUOTE_NONE))
    return [row for row in rows if any(row)] or [[]]


def _folder(folder: Path) -> Prompts:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"prompts: {folder} holds no .txt files; DPG-bench has one a prompt.")
    texts = [" ".join(_text(file).split()) for file in files]
    if "" in texts:
        raise UserError(f"prompts: {files[texts.index('')]} is empty.")
    return Prompts(texts, DPG, names=[file.stem for file in files])
