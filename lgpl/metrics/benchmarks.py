"""Benchmarks of prompts: images with what they should show, read from disk, and rows of scores."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lgpl.data.codecs import open_image
from lgpl.data.members import IMAGE_EXTENSIONS, BadSample
from lgpl.data.shards import Shard, expand
from lgpl.data.store import Store
from lgpl.errors import UserError, as_user_error
from lgpl.metrics.geneval import TASKS
from lgpl.text.prompts import GENEVAL, wanted


class Shown(NamedTuple):
    """An image that was drawn for a prompt."""

    name: str
    wanted: dict[str, Any]  # a line of GenEval's prompts
    data: bytes  # of the image's file

    @property
    def image(self) -> Image.Image:
        try:
            return open_image(self.data)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.name}: {error}; every image of the set counts.") from error


class Judged(NamedTuple):
    """Whether an image shows what it should."""

    shown: Shown
    fault: str  # nothing where it does
    details: Mapping[str, Any]  # what was found in it
    by_chance: bool | None = None  # whether it shows what another image of its row should

    def line(self) -> dict[str, Any]:
        """As GenEval's own summary reads it."""
        asked = self.shown.wanted
        return {
            "filename": self.shown.name,
            "tag": asked["tag"],
            "prompt": asked["prompt"],
            "correct": not self.fault,
            "reason": self.fault,
            "metadata": json.dumps(asked),
            "details": json.dumps(self.details),
        }


def shown_in(source: str, benchmark: str) -> Iterator[Shown]:
    """The images of a folder in GenEval's layout, or of shards with that JSON; a UserError where
    there are none, or they are of another benchmark."""
    found = _in_folder(Path(source)) if Path(source).is_dir() else _in_shards(source)
    for shown in found:
        theirs = shown.wanted.get("benchmark", GENEVAL)
        if theirs != benchmark:
            raise UserError(f"--samples: {shown.name} was drawn for {theirs}, not for {benchmark}.")
        if shown.wanted["tag"] not in TASKS:
            known = ", ".join(TASKS)
            raise UserError(f"{shown.name}: {shown.wanted['tag']!r} is no task, which are {known}.")
        yield shown


def _in_folder(folder: Path) -> Iterator[Shown]:
    files = sorted(folder.glob("[0-9]*/metadata.jsonl"))
    if not files:
        how = f"`lgpl sample --prompts FILE.jsonl --out {folder}/` writes them"
        raise UserError(f"--samples: {folder} holds no 00000/metadata.jsonl; {how}.")
    for file in files:
        asked = wanted(file.read_bytes(), str(file))
        images = sorted(file.parent.glob("samples/*.png"))
        if not images:
            raise UserError(f"--samples: {file.parent} holds no samples/0000.png.")
        for image in images:
            yield Shown(str(image), asked, image.read_bytes())


def _in_shards(pattern: str) -> Iterator[Shown]:
    for path in expand(pattern, "--samples"):
        said = f"--samples: {path} cannot be read"
        with closing(Shard(path, Store())) as shard, as_user_error(said, BadSample):
            for number in range(len(shard)):
                raw = shard.read(number)
                name = f"{raw['__key__']} of {path}"
                asked = wanted(raw.get("json", b""), name)
                data = next((raw[e] for e in IMAGE_EXTENSIONS if e in raw), b"")
                yield Shown(name, asked, data)
            if shard.damage:
                raise UserError(f"{said} whole: {shard.damage}.")


class Row(NamedTuple):
    """The score of images that belong together."""

    name: str
    images: int
    score: float
    chance: float | None = None  # of the same images with the captions of others
    held_out: bool | None = None  # whether training lacks their combinations, where that is known

    @property
    def title(self) -> str:
        return self.name + {True: ", held out", False: ", seen", None: ""}[self.held_out]


def rows(judged: Sequence[Judged]) -> list[Row]:
    """The share of right images of each task, what is held out apart, and below them the mean over
    the tasks, which is GenEval's score."""
    groups: dict[tuple[bool | None, str], list[Judged]] = defaultdict(list)
    for one in judged:
        groups[one.shown.wanted.get("held_out"), one.shown.wanted["tag"]].append(one)
    found = []
    for held_out in (None, False, True):
        of_group = []
        for tag, name in TASKS.items():
            if each := groups.get((held_out, tag)):
                chances = [one.by_chance for one in each if one.by_chance is not None]
                score = mean([not one.fault for one in each])
                chance = mean(chances) if chances else None
                of_group.append(Row(name, len(each), score, chance, held_out))
        if of_group:
            images, score = sum(row.images for row in of_group), mean([r.score for r in of_group])
            found += [*of_group, Row("overall", images, score, held_out=held_out)]
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
