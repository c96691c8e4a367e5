"""What `lgpl sample` writes of benchmarks' prompts, and what `lgpl evaluate prompts` says of it."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lgpl.cli import main
from lgpl.metrics import CLIPScore
from lgpl.metrics.composed import COLORS, EMOJI, Placed, compose
from lgpl.metrics.geneval import TASKS
from tests.metrics.pretrained import clip, detector
from tests.serving.generators import MINILM, export_generator, export_tokenizer
from tests.shards import image_bytes

ROWS = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "two dogs",
    },
    {
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "red"}],
        "prompt": "a red cat",
    },
]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of images of 24 x 20 pixels."""
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "text", MINILM)
    return str(folder / "text")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("judges")
    return detector(folder / "yolos", ("cat", "dog")), clip(folder / "clip")


def draw(generator: str, prompts: Path, out: Path, *more: str) -> dict[str, bytes]:
    main(
        ["sample", "--checkpoint", generator, "--prompts", str(prompts), "--out", f"{out}/", *more]
    )
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(benchmark: str, samples: Path | str, out: Path, *more: str) -> Any:
    main(["evaluate", "prompts", "--benchmark", benchmark, "--samples", str(samples),
          "--device", "cpu", "--out", str(out), *more])  # fmt: skip
    return json.loads(out.read_text())


def test_prompts_of_geneval_fill_its_folders(generator: str, tmp_path: Path) -> None:
    """And again those that are missing."""
    prompts = write_lines(tmp_path / "evaluation_metadata.jsonl", ROWS)
    whole = draw(generator, prompts, tmp_path / "one")
    assert sorted(whole) == sorted(
        [
            *(f"{p:05d}/samples/{i:04d}.png" for p in range(3) for i in range(4)),
            *(f"{p:05d}/metadata.jsonl" for p in range(3)),
            "sampling.json",
        ]
    )
    assert [json.loads(whole[f"{p:05d}/metadata.jsonl"]) for p in range(3)] == ROWS
    images = {content for name, content in whole.items() if name.endswith(".png")}
    assert len(images) == 12
    kept = tmp_path / "one/00000/samples/0000.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "one/00001/samples/0002.png").unlink()
    assert draw(generator, prompts, tmp_path / "one") == whole
    assert kept.stat().st_mtime_ns == before


def test_prompts_of_dpg_bench_fill_a_grid_each(
    generator: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four images, side by side without a margin, under the prompt's name; long ones are cut."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    texts = {"COCOval2014000000183648": "a cat", "diffusiondb12": "a dog " * 30, "7": "a red car"}
    for name, text in texts.items():
        (prompts / f"{name}.txt").write_text(text)
    whole = draw(generator, prompts, tmp_path / "one")
    assert sorted(whole) == sorted([*(f"{name}.png" for name in texts), "sampling.json"])
    assert "1 of 3 prompts are longer than the model reads" in capsys.readouterr().err
    order = sorted(texts)
    lines = tmp_path / "same.txt"
    lines.write_text("".join(f"{texts[n]}\n" for n in order if n != "diffusiondb12"))
    assert order.index("diffusiondb12") == 2  # the two others come first
    single = draw(generator, lines, tmp_path / "single", "--count", "4")
    for number, name in enumerate(order[:2]):
        grid = Image.open(tmp_path / "one" / f"{name}.png")
        assert grid.size == (40, 48)
        for i, (x, y) in enumerate(itertools.product((0, 1), (0, 1))):
            tile = grid.crop((y * 20, x * 24, y * 20 + 20, x * 24 + 24))
            alone = Image.open(tmp_path / "single" / f"{number * 4 + i:06d}.png")
            assert tile.tobytes() == alone.tobytes()
    assert single["captions.txt"].decode().splitlines() == ["a red car"] * 4 + ["a cat"] * 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        found = draw(generator, prompts, tmp_path / "two", "--batch-size", "3")
    assert found == whole


def test_geneval_is_scored_by_the_named_detector(
    generator: str, models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_lines(tmp_path / "rows.jsonl", ROWS)
    draw(generator, prompts, tmp_path / "drawn")
    judges = ("--detector", models[0], "--clip", models[1], "--batch-size", "5")
    made = evaluate("geneval", tmp_path / "drawn", tmp_path / "a.json", *judges)
    printed = capsys.readouterr().out
    names = ["single object", "counting", "colors", "overall"]
    assert [*made["metrics"]] == [f"GenEval[yolos] {name}" for name in names]
    assert [row["images"] for row in made["rows"]] == [4, 4, 4, 12]
    assert made["N"] == 12 and (made["detector"], made["clip"]) == models
    assert made["thresholds"] == [0.3, 0.9] and made["versions"]["torch"]
    assert f"a.json: geneval, detector {models[0]}, clip {models[1]}, N = 12" in printed
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    columns = {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert all(line.keys() == columns for line in lines)
    assert [json.loads(line["metadata"]) for line in lines[::4]] == ROWS
    for row in made["rows"][:3]:
        mine = [line for line in lines if TASKS[line["tag"]] == row["name"]]
        assert row["score"] == sum(line["correct"] for line in mine) / 4
        assert all(line["correct"] is (not line["reason"]) for line in mine)


def composed(folder: Path, scenes: int = 12) -> None:
    """True images of questions of every task, and as many said to be held out."""
    rng = random.Random(0)
    kinds = itertools.product(TASKS, (False, True), range(scenes))
    for number, (tag, held_out, _) in enumerate(kinds):
        (first, second), colors = rng.sample(list(EMOJI), 2), rng.sample(list(COLORS), 2)
        count = rng.choice([2, 3, 4])
        groups: list[dict[str, Any]] = [{"class": first, "count": 1}, {"class": second, "count": 1}]
        row: dict[str, Any] = {"tag": tag, "include": groups}
        emoji: list[tuple[str, str | None]] = [(first, None), (second, None)]
        cells = rng.sample(range(16), 4)
        if tag in ("single_object", "colors", "counting"):
            del groups[1], emoji[1]
        if tag == "counting":
            groups[0]["count"], emoji = count, emoji * count
            row["exclude"] = [{"class": first, "count": count + 1}]
        if tag in ("colors", "color_attr"):
            emoji = [(name, color) for (name, _), color in zip(emoji, colors, strict=False)]
            for group, color in zip(groups, colors, strict=False):
                group["color"] = color
        if tag == "position":
            groups[1]["position"], cells = ["above", 0], [9, 1, 0, 0]
        row |= {"prompt": f"question {number}", "benchmark": "composed-emoji", "held_out": held_out}
        out = folder / f"{number:05d}/samples"
        out.mkdir(parents=True)
        placed = [Placed(n, cell, c) for (n, c), cell in zip(emoji, cells, strict=False)]
        compose(placed).save(out / "0000.png")
        write_lines(out.parent / "metadata.jsonl", [row])


def test_true_scenes_are_right_and_other_captions_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    composed(tmp_path / "true")
    made = evaluate("composed-emoji", tmp_path / "true", tmp_path / "a.json")
    tasks = [*TASKS.values(), "overall"]
    assert [*made["metrics"]] == [
        *(f"composed-emoji {task}, seen" for task in tasks),
        *(f"composed-emoji {task}, held out" for task in tasks),
    ]
    assert min(made["metrics"].values()) >= 0.99 and made["N"] == 144
    chances = [row["chance"] for row in made["rows"] if row["name"] != "overall"]
    assert sum(chances) / len(chances) < 0.1
    assert "single object, held out" in capsys.readouterr().out
    # The images of others' prompts, by hand.
    folders = sorted((tmp_path / "true").iterdir())
    for here, there in zip(folders, [*folders[5:], *folders[:5]], strict=True):
        (tmp_path / "shuffled" / here.name).mkdir(parents=True)
        shutil.copy(here / "metadata.jsonl", tmp_path / "shuffled" / here.name)
        shutil.copytree(there / "samples", tmp_path / "shuffled" / here.name / "samples")
    made = evaluate("composed-emoji", tmp_path / "shuffled", tmp_path / "b.json")
    assert made["metrics"]["composed-emoji overall, seen"] < 0.1


def test_partiprompts_has_a_row_for_each_category(
    generator: str, models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "PartiPrompts.tsv"
    rows = [("a cat", "Animals", "Basic"), ("a dog", "Animals", "Complex"), ("a car", "V", "Basic")]
    table.write_text(
        "".join("\t".join(row) + "\n" for row in [("Prompt", "Category", "Challenge"), *rows])
    )
    drawn = draw(generator, table, tmp_path / "drawn")
    assert drawn["captions.txt"].decode() == "a cat\na dog\na car\n"
    options = ("--prompts", str(table), "--clip", models[1], "--clip-prefix", "A photo depicts ")
    made = evaluate("partiprompts", tmp_path / "drawn", tmp_path / "a.json", *options)
    images = [Image.open(tmp_path / "drawn" / f"{i:06d}.png").convert("RGB") for i in range(3)]
    score = CLIPScore(models[1], "A photo depicts ")
    each = score.scores(images, [row[0] for row in rows]).tolist()
    rows_of = {
        "all": each,
        "Category: Animals": each[:2],
        "Category: V": each[2:],
        "Challenge: Basic": each[::2],
        "Challenge: Complex": each[1:2],
    }
    expected = {f"CLIP score[clip] {name}": sum(v) / len(v) for name, v in rows_of.items()}
    assert made["metrics"] == pytest.approx(expected, abs=1e-4)
    assert [row["images"] for row in made["rows"]] == [3, 2, 1, 2, 1]
    assert (made["clip"], made["prefix"]) == (models[1], "A photo depicts ")
    assert "N = 3" in capsys.readouterr().out


def test_what_does_not_belong_together_is_told(
    models: tuple[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    composed(tmp_path / "true", 1)
    judges = ("--detector", models[0], "--clip", models[1])

    def said(benchmark: str, samples: Path, *more: str) -> str:
        out = ("--out", str(tmp_path / "a.json"), "--device", "cpu")
        return fails(
            "evaluate", "prompts", "--benchmark", benchmark, "--samples", str(samples), *more, *out
        )

    theirs = said("geneval", tmp_path / "true", *judges)
    assert theirs.endswith("0000.png was drawn for composed-emoji, not for geneval.")
    own = tmp_path / "own/00000"
    (own / "samples").mkdir(parents=True)
    write_lines(own / "metadata.jsonl", ROWS[:1])
    assert f"{own} holds no samples/0000.png" in said("geneval", own.parent, *judges)
    (own / "samples/0000.png").write_bytes(image_bytes(0, (24, 20), "png"))
    assert "drawn for geneval, not for composed-emoji" in said("composed-emoji", own.parent)
    assert "--detector must be given for --benchmark geneval" in said("geneval", own.parent)
    bird = {"tag": "single_object", "include": [{"class": "bird", "count": 1}], "prompt": "a bird"}
    write_lines(own / "metadata.jsonl", [bird])
    assert "knows no 'bird', which the prompts ask for" in said("geneval", own.parent, *judges)
    write_lines(own / "metadata.jsonl", [{**bird, "benchmark": "composed-emoji"}])
    wrong = said("composed-emoji", own.parent)
    assert "0000.png is 24x20; composed-emoji has images of 128x128 pixels" in wrong
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no 00000/metadata.jsonl; `lgpl sample" in said("geneval", empty, *judges)

    images = tmp_path / "images"
    images.mkdir()
    (images / "000000.png").write_bytes(image_bytes(0, (24, 20), "png"))
    (images / "captions.txt").write_text("a cat\n")
    table = tmp_path / "captions.csv"
    table.write_text("Prompt,Source\na cat,x\n")
    options = ("--prompts", str(table), "--clip", models[1])
    lacks = said("partiprompts", images, *options)
    assert "captions.csv has no column 'Category' but Prompt, Source; give the table" in lacks
    table.write_text("Prompt,Category,Challenge\na dog,x,y\n")
    assert "was drawn for other prompts than" in said("partiprompts", images, *options)
    table.write_text("Prompt,Category,Challenge\na dog,x,y\na cat,x,y\n")
    counts = said("partiprompts", images, *options)
    assert f"holds 1 images, and {table} 2 prompts" in counts
    none = (*options[:2], "--clip", str(tmp_path / "none"))
    table.write_text("Prompt,Category,Challenge\na cat,x,y\n")
    assert "The CLIP model: " in said("partiprompts", images, *none)
