"""The model that comes with lgpl, `emoji`: what its card promises, from any folder."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from PIL import Image

import lgpl
from lgpl.checkpoints import read_checkpoint
from lgpl.cli import main
from lgpl.commands import quickstart, serve
from lgpl.data.transforms import normalize, to_uint8
from lgpl.inference import load_generator
from lgpl.metrics import EfficientNetLite0
from lgpl.metrics.images import open_images
from lgpl.metrics.protocols import read_prompts
from lgpl.tokenizer.module import CodebookUsage
from tests.conftest import ROOT

MODEL = ROOT / "data/emoji/model"
CARD = (MODEL / "README.md").read_text(encoding="utf-8")
PROMPT = "a slice of pizza"
SIZE = (64, 64)


def promised(row: str) -> float:
    """A number of the card's table."""
    found = re.search(rf"^\| {re.escape(row)} \| ([\d.]+)", CARD, re.MULTILINE)
    assert found, row
    return float(found[1])


def test_it_is_small_and_has_a_card() -> None:
    files = sorted(path.relative_to(MODEL).as_posix() for path in MODEL.rglob("*.*"))
    parts = ("generator", "tokenizer")
    folders = [f"{part}/{name}" for part in parts for name in ("config.json", "model.safetensors")]
    assert files == ["README.md", *folders]
    assert sum((MODEL / name).stat().st_size for name in files) <= 16_000_000


@pytest.mark.parametrize("part", ["generator", "tokenizer"])
def test_it_was_made_by_the_recipes_that_stand_here(part: str) -> None:
    recipe = yaml.safe_load((ROOT / f"configs/emoji_model/{part}.yaml").read_text())["model"]
    held = read_checkpoint("emoji", part).described()

    def within(wanted: Any, found: Any) -> bool:
        if isinstance(wanted, dict):
            return all(within(value, found[key]) for key, value in wanted.items())
        return bool(wanted == found)

    recipe["init_args"]["lr"] = float(recipe["init_args"]["lr"])  # YAML reads 1e-3 as a text
    assert within(recipe, held)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def test_it_draws_what_it_is_asked_for(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere)
    main(["sample", "--checkpoint", "emoji", "--prompt", PROMPT, "--out", "pizza.png"])
    drawn = Image.open("pizza.png")
    assert drawn.size == SIZE
    captions = read_prompts(quickstart.TRAIN)
    images = torch.cat([*open_images(quickstart.TRAIN, SIZE).batches(32)])
    extractor = EfficientNetLite0(SIZE[0])
    real = torch.cat([extractor(part) for part in normalize(images).split(32)])
    distances = torch.cdist(extractor(normalize(to_uint8(drawn))[None]), real)[0]
    nearest = [captions[i] for i in distances.argsort()[:5]]
    assert "pizza" in nearest
    # In Python it is the same image by the same name.
    (again,) = lgpl.load("emoji").draw(PROMPT)
    assert again.tobytes() == drawn.convert("RGB").tobytes()


def test_its_tokenizer_is_as_good_as_its_card_says() -> None:
    tokenizer = load_generator("emoji", None, "cpu").tokenizer.autoencoder
    with torch.inference_mode():
        errors = []
        for part in open_images(quickstart.HELD_OUT, SIZE).batches(31):
            image = normalize(part)
            rebuilt = tokenizer.decode(tokenizer.encode(image)).clamp(-1, 1)
            errors.append(((rebuilt - image) / 2).square().mean((1, 2, 3)))
        psnr = -10 * torch.cat(errors).log10().mean()
        usage = CodebookUsage(tokenizer.codebook_size)
        for part in open_images(quickstart.TRAIN, SIZE).batches(32):
            usage.update(tokenizer.encode(normalize(part)))
    assert psnr >= 25
    assert psnr == pytest.approx(promised("held-out PSNR, dB"), abs=0.02)
    assert usage.compute()["usage"] >= 0.95
    assert 100 * usage.compute()["usage"] == pytest.approx(promised("codebook usage, %"), abs=0.1)


def test_its_images_are_found_by_their_prompts() -> None:
    found = quickstart.retrieval(load_generator("emoji", None, "cpu"))
    accuracy, possible = found["top5_retrieval"], found["top5_retrieval_of_reconstructions"]
    assert accuracy >= 0.9
    assert accuracy == pytest.approx(promised("top-5 retrieval"), abs=0.02)  # processors round
    assert possible == pytest.approx(promised("top-5 retrieval of reconstructions"), abs=0.02)


def test_it_is_served_where_nothing_else_is_named(elsewhere: Path) -> None:
    assert serve.parser().parse_args([]).checkpoint == "emoji"
    process = subprocess.Popen(
        [sys.executable, "-m", "lgpl.cli", "serve", "--port", "0"],
        stderr=subprocess.PIPE, text=True, cwd=elsewhere,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        url = next(
            found[1]
            for line in process.stderr
            if (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line))
        )
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "emoji"
        answer = httpx.post(
            f"{url}/v1/images/generations", json={"prompt": PROMPT, "seed": 0}, timeout=60
        )
        png = base64.b64decode(json.loads(answer.text)["data"][0]["b64_json"])
        (elsewhere / "served.png").write_bytes(png)
        assert Image.open(elsewhere / "served.png").size == SIZE
    finally:
        process.terminate()
        process.wait(60)
