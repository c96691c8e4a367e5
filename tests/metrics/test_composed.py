"""Composed emoji: what is drawn is read again, and the recipe keeps what it holds out."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lgpl.errors import UserError
from lgpl.metrics.composed import CELLS, COLORS, EMOJI, Placed, box_of, compose, read, tiles
from lgpl.metrics.geneval import TASKS
from tests.conftest import ROOT

RECIPE = ROOT / "data/recipes/composed_emoji.py"


def build(out: Path, *options: str) -> int:
    """The exit status of the recipe, in small."""
    command = [RECIPE.name, "--out", str(out), "--train", "120", "--prompts", "6", *options]
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(RECIPE.parent)
        patched.setattr(sys, "argv", command)
        return importlib.import_module(RECIPE.stem).main()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composed")
    assert build(out) == 0
    return out


def metadata(shard: Path) -> list[dict[str, Any]]:
    with tarfile.open(shard) as tar:
        members = [member for member in tar if member.name.endswith(".json")]
        return [json.loads(tar.extractfile(m).read()) for m in members]  # type: ignore[union-attr]


def scene(rng: random.Random) -> list[Placed]:
    cells = rng.sample(range(CELLS**2), 4)
    names = [rng.choice(list(EMOJI)) for _ in cells]
    return [Placed(n, c, rng.choice([None, *COLORS])) for n, c in zip(names, cells, strict=True)]


def seen(image: Image.Image) -> set[tuple[Any, ...]]:
    found = read(image)
    return {
        (name, box, found.colors.get(box)) for name, boxes in found.objects.items() for box in boxes
    }


def test_every_emoji_is_read_again_in_every_color() -> None:
    assert len(tiles()) == len(EMOJI) * (len(COLORS) + 1)
    for name, color in tiles():
        placed = Placed(name, 6, color)
        ((found, box, said),) = seen(compose([placed]))
        assert (found, box) == (name, box_of(6))
        # The yellow of an emoji that is yellow by itself is either.
        assert said == color or (color is None and said in COLORS)
    assert not read(Image.new("RGB", (128, 128), "white")).objects


@pytest.mark.parametrize("damage", ["jpeg", "blur", "noise"])
def test_what_a_tokenizer_may_do_to_a_scene_changes_little(damage: str, tmp_path: Path) -> None:
    rng, pixels = random.Random(0), np.random.default_rng(0)
    right = total = 0
    for _ in range(25):
        placed = scene(rng)
        image = compose(placed)
        if damage == "jpeg":
            image.save(tmp_path / "a.jpg", quality=40)
            image = Image.open(tmp_path / "a.jpg")
        elif damage == "blur":
            image = image.filter(ImageFilter.GaussianBlur(1.5))
        else:
            noisy = np.asarray(image, float) + pixels.normal(0, 20, (128, 128, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        wanted = {(one.name, box_of(one.cell)) for one in placed}
        right += len(wanted & {one[:2] for one in seen(image)})
        total += len(wanted)
    assert right >= 0.98 * total


def test_noise_and_other_images_show_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8))
    assert not read(noise).objects
    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    assert not read(grey).objects
    with pytest.raises(UserError, match=r"a\.png is 64x64; composed-emoji has images of 128x128"):
        read(Image.new("RGB", (64, 64)), "a.png")


def test_the_recipe_gives_the_same_scenes_again(built: Path, tmp_path: Path) -> None:
    files = ["train-0000.tar", "val-0000.tar", "prompts.jsonl"]
    again = [
        sys.executable,
        RECIPE,
        "--out",
        tmp_path / "again",
        "--train",
        "120",
        "--prompts",
        "6",
    ]
    other_hashes = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    assert subprocess.run(again, env=other_hashes, capture_output=True).returncode == 0
    assert build(tmp_path / "other", "--seed", "1") == 0
    for name in files:
        content = (built / name).read_bytes()
        assert content == (tmp_path / "again" / name).read_bytes()
        assert content != (tmp_path / "other" / name).read_bytes()


def combinations(row: dict[str, Any]) -> set[tuple[Any, ...]]:
    """What is bound together in a caption: an emoji and its number or colour, two emoji."""
    found: set[tuple[Any, ...]] = set()
    for group in row["include"]:
        if row["tag"] == "counting":
            found.add((group["class"], group["count"]))
        if "color" in group:
            found.add((group["class"], group["color"]))
        if "position" in group:
            found.add((group["class"], group["position"][0], row["include"][0]["class"]))
    if len(row["include"]) == 2:
        found.add(tuple(sorted(group["class"] for group in row["include"])))
    return found


def test_what_is_held_out_is_in_no_training_scene(built: Path) -> None:
    trained, asked = metadata(built / "train-0000.tar"), metadata(built / "val-0000.tar")
    lines = (built / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == asked
    assert len(trained) == 120 and not any(row["held_out"] for row in trained)
    assert {row["tag"] for row in trained} == set(TASKS)
    learnt = set().union(*map(combinations, trained))
    rows = Counter((row["tag"], row["held_out"]) for row in asked)
    assert rows == {
        (tag, held): 6
        for tag in TASKS
        for held in (False, True)
        if tag != "single_object" or not held
    }
    for row in asked:
        if row["held_out"]:
            assert not combinations(row) <= learnt
    assert len({row["prompt"] for row in asked}) == len(asked)
    assert not {r["prompt"] for r in asked if r["held_out"]} & {r["prompt"] for r in trained}


def test_bad_numbers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path / "none", "--train", "0") == 2
    assert capsys.readouterr().err == "--train must be >= 1, got 0\n"
