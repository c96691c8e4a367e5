"""Recipes, emoji and a model of them that come with lgpl: in the root of a clone, or inside an
installed wheel."""

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from lgpl.errors import UserError, nearest

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE / "share" if (_PACKAGE / "share").is_dir() else _PACKAGE.parent
CONFIGS = ROOT / "configs"
EMOJI = "emoji"  # the model, wherever a checkpoint is named


def configs() -> Iterator[str]:
    """Every recipe by its name, such as `tokenizer/emoji.yaml`."""
    yield from sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def config(path: str) -> str:
    """The file that `-c` names: the user's own, or else the recipe of that name.

    Raises:
        UserError: there is neither.
    """
    if Path(path).is_file():
        return path
    for folder in (CONFIGS, ROOT):
        if (folder / path).is_file():
            return str(folder / path)
    raise UserError(
        f"-c {path}: no such file, and no recipe of that name"
        f"{nearest(path.removeprefix('configs/'), configs()) or '; `lgpl configs` lists them.'}"
    )


def checkpoint(path: str | Path, kind: str | None) -> Path:
    """The checkpoint of that name: the user's own, or else a part of the model that comes along."""
    if str(path) != EMOJI or Path(path).exists():
        return Path(path)
    return ROOT / "data/emoji/model" / (kind or "generator")


def shards(pattern: str) -> list[str]:
    """What a path or glob of `data/emoji` matches among the embedded emoji."""
    inside = Path(pattern).parts[:2] == ("data", "emoji")
    return sorted(glob.glob(str(ROOT / pattern))) if inside else []


def described(name: str) -> str:
    """What a recipe is for: the first sentence of the comment at its top."""
    lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
    top = itertools.takewhile(lambda line: line.strip("# "), lines)
    comment = " ".join(line.lstrip("# ") for line in top if line.startswith("#"))
    return re.split(r"[.;] |: lgpl |[.:]$", comment)[0]
