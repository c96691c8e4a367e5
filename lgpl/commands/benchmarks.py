"""What `lgpl evaluate prompts` does: images held against what their prompts ask for."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import Namespace
from PIL import Image

from lgpl.atomic import write_text
from lgpl.data.codecs import open_image
from lgpl.errors import UserError, as_user_error
from lgpl.inference import usable_device
from lgpl.metrics import CLIP, COMPOSED_EMOJI, GENEVAL, CLIPScore, composed, detection, protocols
from lgpl.metrics.benchmarks import Judged, Row, Shown, mean, rows, shown_in
from lgpl.metrics.geneval import fault
from lgpl.metrics.images import FolderImages, open_images
from lgpl.progress import Bar
from lgpl.text import prompts

T = TypeVar("T")
CATEGORIES = ("Category", "Challenge")  # columns of PartiPrompts


def evaluate(options: Namespace, out: Path) -> None:
    """Score the images of a benchmark, print a row for each task and write them to `out`, with what
    was found in each image beside it."""
    protocols.commit()
    protocols.require_writable(out)
    judged: list[Judged] = []
    by: dict[str, Any] = {}
    if options.benchmark == COMPOSED_EMOJI:
        name, judged = COMPOSED_EMOJI, list(_composed(options))
        found = rows(judged)
    elif options.benchmark == GENEVAL:
        _need(options, "detector", "clip")
        judged = list(_geneval(options))
        name, found = f"GenEval[{Path(options.detector).name}]", rows(judged)
        thresholds = [detection.THRESHOLD, detection.COUNTING_THRESHOLD]
        by = {"detector": options.detector, "clip": options.clip, "thresholds": thresholds}
    else:
        _need(options, "prompts", "clip")
        name, found = _partiprompts(options)
        by = {"clip": options.clip, "prefix": options.clip_prefix, "prompts": options.prompts}
    report = {
        "metrics": {f"{name} {row.title}": row.score for row in found},
        "benchmark": options.benchmark,
        "N": len(judged) or found[0].images,
        "rows": [row._asdict() for row in found],
        "samples": options.samples,
        **by,
        **protocols.made_by(),
    }
    if judged:
        lines = "".join(json.dumps(one.line()) + "\n" for one in judged)
        with as_user_error(f"{out.with_suffix('.jsonl')} cannot be written", OSError):
            write_text(out.with_suffix(".jsonl"), lines)
    protocols.write_json(out, report)
    print(_table(name, found))
    made_by = "".join(f", {key} {by[key]}" for key in ("detector", "clip") if key in by)
    print(f"{out}: {options.benchmark}{made_by}, N = {report['N']}")


def _need(options: Namespace, *names: str) -> None:
    for name in names:
        if options[name] is None:
            raise UserError(f"--{name} must be given for --benchmark {options.benchmark}.")


def _composed(options: Namespace) -> Iterator[Judged]:
    """By what stands in the cells; and by chance, with the captions of the images half a row on."""
    groups: dict[tuple[Any, str], list[tuple[Shown, composed.Reading]]] = defaultdict(list)
    for shown in _bar(shown_in(options.samples, COMPOSED_EMOJI), "reading"):
        reading = composed.read(shown.image, shown.name)
        row = shown.wanted.get("held_out"), shown.wanted["tag"]
        groups[row].append((shown._replace(data=b""), reading))
    for group in groups.values():
        for index, (shown, reading) in enumerate(group):
            other = group[(index + len(group) // 2) % len(group)][0].wanted
            why = fault(reading.objects, shown.wanted, reading.colors_of)
            by_chance = None  # no other caption is there
            if other["prompt"] != shown.wanted["prompt"]:
                by_chance = not fault(reading.objects, other, reading.colors_of)
            yield Judged(shown, why, reading.objects, by_chance)


def _geneval(options: Namespace) -> Iterator[Judged]:
    """By a detector's boxes, and a CLIP's names of the colours in them."""
    device = usable_device(options.device)
    asked = [shown.wanted for shown in shown_in(options.samples, GENEVAL)]
    detector = detection.Detector(options.detector, device)
    detector.require(asked)
    colors = detection.ColorNames(CLIP(options.clip).to(device))
    images = _bar(shown_in(options.samples, GENEVAL), "detecting", len(asked))
    for is_counted, group in itertools.groupby(images, _is_counted):
        threshold = detection.COUNTING_THRESHOLD if is_counted else detection.THRESHOLD
        while batch := list(itertools.islice(group, options.batch_size)):
            opened = [shown.image for shown in batch]
            found = zip(batch, opened, detector(opened, threshold), strict=True)
            for shown, image, objects in found:
                why = fault(objects, shown.wanted, colors.of(image))
                yield Judged(shown._replace(data=b""), why, objects)


def _bar(images: Iterable[T], doing: str, count: int | None = None) -> Iterator[T]:
    yield from Bar(images, total=count, unit="image", desc=doing, leave=False)


def _is_counted(shown: Shown) -> bool:
    return shown.wanted["tag"] == "counting"


def _partiprompts(options: Namespace) -> tuple[str, list[Row]]:
    """The name and the rows of the CLIP score: all images, each category, each challenge."""
    table = prompts.read(options.prompts, options.prompt_column)
    there = list(table.rows[0]) if table.rows else []
    for column in CATEGORIES:
        if column not in there:
            said = f"{options.prompts} has no column {column!r} but {', '.join(there) or 'none'}"
            raise UserError(f"--prompts: {said}; give the table of PartiPrompts.")
    images = open_images(options.samples, (1, 1))
    if not isinstance(images, FolderImages):
        raise UserError(f"--samples: {options.samples} is no folder of images.")
    if images.count != len(table.texts):
        counts = f"{images.count} images, and {options.prompts} {len(table.texts)} prompts"
        raise UserError(
            f"--samples: {options.samples} holds {counts}; there should be one of each."
        )
    captions = protocols.captions_of(images, None, options.prompt_column)
    if [*map(str.split, captions)] != [*map(str.split, table.texts)]:
        other = f"{options.samples} was drawn for other prompts than {options.prompts}"
        raise UserError(f"--samples: {other}; draw it with lgpl sample --prompts.")
    clip = CLIPScore(options.clip, options.clip_prefix).to(usable_device(options.device))
    scores: list[float] = []
    pairs = _bar(zip(images.paths, captions, strict=True), "scoring", images.count)
    while batch := list(itertools.islice(pairs, options.batch_size)):
        opened = [_opened(path) for path, _ in batch]
        scores += clip.scores(opened, [caption for _, caption in batch]).tolist()
    found = [Row("all", len(scores), mean(scores))]
    for column in CATEGORIES:
        for name in dict.fromkeys(row[column] for row in table.rows):
            each = [s for s, row in zip(scores, table.rows, strict=True) if row[column] == name]
            found.append(Row(f"{column}: {name}", len(each), mean(each)))
    return clip.name, found


def _opened(path: Path) -> Image.Image:
    with as_user_error(f"{path} cannot be read as an image", OSError, ValueError):
        return open_image(path.read_bytes())


def _table(name: str, found: list[Row]) -> str:
    lines = [[name, "score", "chance", "images"]]
    for row in found:
        chance = "" if row.chance is None else f"{row.chance:.4f}"
        lines.append([row.title, f"{row.score:.4f}", chance, str(row.images)])
    if all(row.chance is None for row in found):
        lines = [[*line[:2], line[3]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
