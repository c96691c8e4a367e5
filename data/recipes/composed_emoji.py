"""Builds composed emoji: scenes of one to four emoji, whose captions ask GenEval's six questions.

    python data/recipes/composed_emoji.py --out data/composed_emoji

writes

    train-0000.tar ...  scenes to train on
    val-0000.tar        a scene of each prompt of the benchmark
    prompts.jsonl       the benchmark's prompts, as GenEval writes its own

A scene has 128x128 pixels; its emoji, of data/emoji, stand in the cells of a 4x4 grid, each in its
own colours or in a single one. Some combinations are held out: they are in val and in the prompts,
where `held_out` marks them, and in no scene of train. A sample's members are

    KEY.png   the scene
    KEY.txt   the caption
    KEY.json  what the caption asks for: the line of prompts.jsonl

The held-out combinations are always the same; everything else depends on the seed alone.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sharding import Sample, write_shards

from lgpl.metrics import COMPOSED_EMOJI
from lgpl.metrics.composed import CELLS, COLORS, EMOJI, Placed, box_of, compose
from lgpl.metrics.geneval import TASKS, positions

NUMBERS = {2: "two", 3: "three", 4: "four"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
HELD_OUT = {"pair": 0.1, "color": 0.15, "count": 0.15, "position": 0.1}  # shares
SHARD_SIZE = 5000


class Question(NamedTuple):
    """What a caption asks for, and the emoji that answer it."""

    tag: str
    prompt: str
    include: list[dict[str, Any]]
    exclude: list[dict[str, Any]]
    held_out: bool
    emoji: list[tuple[str, str | None]]  # names and colours

    @property
    def metadata(self) -> dict[str, Any]:
        asked = {"tag": self.tag, "include": self.include}
        if self.exclude:
            asked["exclude"] = self.exclude
        known = {"benchmark": COMPOSED_EMOJI, "held_out": self.held_out}
        return {**asked, "prompt": self.prompt, **known}


def is_held_out(kind: str, *parts: object) -> bool:
    """Whether a combination is kept from training, the same on every machine."""
    digest = hashlib.sha256("|".join(map(str, (kind, *parts))).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT[kind] * 2**32


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(name: str) -> str:
    if name.endswith(("s", "sh")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("fly") else f"{name}s"


def ask(tag: str, rng: random.Random) -> Question:
    """A question of a task, drawn from all of its combinations."""
    first, second = rng.sample(sorted(EMOJI), 2)
    pair = is_held_out("pair", *sorted((first, second)))
    if tag == "single_object":
        prompt, held_out = article(first), False
        return _question(tag, prompt, held_out, [(first, None)])
    if tag == "two_object":
        prompt = f"{article(first)} and {article(second)}"
        return _question(tag, prompt, pair, [(first, None), (second, None)])
    if tag == "counting":
        count = rng.choice(sorted(NUMBERS))
        prompt, held_out = f"{NUMBERS[count]} {plural(first)}", is_held_out("count", first, count)
        include, exclude = (
            [{"class": first, "count": count}],
            [{"class": first, "count": count + 1}],
        )
        return Question(tag, prompt, include, exclude, held_out, [(first, None)] * count)
    if tag == "position":
        side = rng.choice(sorted(OPPOSITE))
        place = min((first, side, second), (second, OPPOSITE[side], first))
        held_out = pair or is_held_out("position", *place)
        prompt = f"{article(first)} {side} {article(second)}"
        include = [{"class": second, "count": 1}]
        include.append({"class": first, "count": 1, "position": [side, 0]})
        return Question(tag, prompt, include, [], held_out, [(first, None), (second, None)])
    colors = rng.sample(sorted(COLORS), 2)
    if tag == "colors":
        held_out = is_held_out("color", first, colors[0])
        prompt = article(f"{colors[0]} {first}")
        return _question(tag, prompt, held_out, [(first, colors[0])])
    bound = list(zip((first, second), colors, strict=True))
    held_out = pair or any(is_held_out("color", *one) for one in bound)
    prompt = " and ".join(article(f"{color} {name}") for name, color in bound)
    return _question(tag, prompt, held_out, bound)


def _question(
    tag: str, prompt: str, held_out: bool, emoji: list[tuple[str, str | None]]
) -> Question:
    include = [
        {"class": name, "count": 1, **({"color": color} if color else {})} for name, color in emoji
    ]
    return Question(tag, prompt, include, [], held_out, emoji)


def answer(question: Question, rng: random.Random) -> list[Placed]:
    """A scene of the emoji, in cells that agree with the caption's position."""
    sides = {group["position"][0] for group in question.include if "position" in group}
    while True:
        cells = rng.sample(range(CELLS**2), len(question.emoji))
        if not sides or positions(*map(box_of, cells)) == sides:
            placed = zip(question.emoji, cells, strict=True)
            return [Placed(name, cell, color) for (name, color), cell in placed]


def benchmark(each: int, rng: random.Random) -> list[Question]:
    """At most so many different questions of each task, and as many held out."""
    found: dict[tuple[str, bool], dict[str, Question]] = {
        (tag, held_out): {} for tag in TASKS for held_out in (False, True)
    }
    for tag in TASKS:
        for _ in range(100 * each):
            question = ask(tag, rng)
            group = found[tag, question.held_out]
            if len(group) < each:
                group.setdefault(question.prompt, question)
    return list(itertools.chain.from_iterable(group.values() for group in found.values()))


def for_training(count: int, rng: random.Random) -> Iterator[Question]:
    """Questions of all tasks in turn, none of them held out."""
    tags = itertools.cycle(TASKS)
    while count:
        if not (question := ask(next(tags), rng)).held_out:
            count -= 1
            yield question


def samples(questions: Iterable[Question], split: str, rng: random.Random) -> Iterator[Sample]:
    """The questions with a scene each."""
    for index, question in enumerate(questions):
        encoded = io.BytesIO()
        compose(answer(question, rng)).save(encoded, "PNG")
        yield (
            f"{split}-{index:06}",
            {
                "png": encoded.getvalue(),
                "txt": question.prompt.encode(),
                "json": json.dumps(question.metadata).encode(),
            },
        )


def main() -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--train", type=int, default=20_000, help="scenes to train on")
    each = "prompts of a task at the most, and as many held out"
    parser.add_argument("--prompts", type=int, default=50, help=each)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in ("train", "prompts"):
        if getattr(arguments, name) < 1:
            print(f"--{name} must be >= 1, got {getattr(arguments, name)}", file=sys.stderr)
            return 2

    asked = benchmark(arguments.prompts, random.Random(f"prompts {arguments.seed}"))
    scenes = random.Random(f"train {arguments.seed}")
    shards = {}
    training = samples(for_training(arguments.train, scenes), "train", scenes)
    for number, start in enumerate(range(0, arguments.train, SHARD_SIZE)):
        size = min(SHARD_SIZE, arguments.train - start)
        shards[f"train-{number:04}.tar"] = itertools.islice(training, size)
    shards["val-0000.tar"] = samples(asked, "val", random.Random(f"val {arguments.seed}"))
    write_shards(arguments.out, shards, total=arguments.train + len(asked))
    lines = "".join(json.dumps(question.metadata) + "\n" for question in asked)
    (arguments.out / "prompts.jsonl").write_text(lines, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
