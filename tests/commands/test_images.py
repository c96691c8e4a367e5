"""`lgpl reconstruct` and `lgpl complete` on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.cli import main
from lgpl.data.transforms import center_crop, normalize, to_image
from lgpl.generator import Sampling
from lgpl.image_files import MARGIN
from lgpl.inference import load_generator
from tests.conftest import ROOT
from tests.models import labels
from tests.serving.generators import class_config, export_generator, export_tokenizer

PHOTOGRAPHS = sorted((ROOT / "tests/data/photographs").glob("*.*g"))
SIDE = 24  # pixels of what the generator draws


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "generator", class_config(10), grid=[6, 6])
    return folder


def reconstruct(models: Path, *args: object, lpips: str = "none") -> None:
    main(["reconstruct", *map(str, args), "--checkpoint", str(models / "tokenizer"),
          "--lpips", lpips])  # fmt: skip


def complete(models: Path, *args: object) -> None:
    main(["complete", *map(str, args), "--checkpoint", str(models / "generator")])


def tiles(sheet: Path, width: int, height: int) -> list[np.ndarray]:
    """The images of a grid's first row."""
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    step = width + MARGIN
    return [
        pixels[MARGIN : MARGIN + height, x : x + width]
        for x in range(MARGIN, pixels.shape[1] - width, step)
    ]


def test_a_photograph_stands_beside_its_reconstruction(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((103, 82))
    source.save(tmp_path / "in.png")
    reconstruct(models, tmp_path / "in.png", tmp_path / "out.png", lpips="alex")
    original, rebuilt = tiles(tmp_path / "out.png", 100, 80)
    assert (original == np.asarray(source)[1:81, 1:101]).all()
    mse = np.square(original.astype(float) - rebuilt).mean() / 255**2
    said = capsys.readouterr().out
    assert f"in.png: PSNR {-10 * np.log10(mse):.4g}, SSIM " in said and "LPIPS" in said


def test_a_small_image_is_rebuilt_without_lpips(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reconstruct(models, PHOTOGRAPHS[0], tmp_path / "out.png", "--image-size", 8, lpips="alex")
    said = capsys.readouterr()
    assert "no LPIPS: it needs sides of 32" in said.err and "SSIM" in said.out
    assert len(tiles(tmp_path / "out.png", 8, 8)) == 2


def test_an_image_need_not_be_square(models: Path, tmp_path: Path) -> None:
    reconstruct(models, PHOTOGRAPHS[0], tmp_path / "out.png", "--image-size", 64, 96)
    original, rebuilt = tiles(tmp_path / "out.png", 96, 64)
    source = center_crop(Image.open(PHOTOGRAPHS[0]).convert("RGB"), (64, 96))
    assert (original == np.asarray(source)).all() and rebuilt.shape == (64, 96, 3)


def test_several_need_one_size(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, size in enumerate(((64, 48), (48, 64))):
        Image.open(PHOTOGRAPHS[0]).convert("RGB").resize(size).save(tmp_path / f"{i}.png")
    pair = [tmp_path / "0.png", tmp_path / "1.png", tmp_path / "out.png"]
    with pytest.raises(SystemExit):
        reconstruct(models, *pair)
    assert "different sizes (48x64, 64x48); give --image-size" in capsys.readouterr().err
    reconstruct(models, *pair, "--image-size", 32)
    assert "mean of 2: PSNR" in capsys.readouterr().out
    assert len(tiles(tmp_path / "out.png", 32, 32)) == 2


def test_the_first_rows_are_kept_and_the_rest_is_drawn(models: Path, tmp_path: Path) -> None:
    complete(models, PHOTOGRAPHS[0], tmp_path / "out.png", "--label", 7, "--rows", 4, "--count", 3)
    given, *drawn = tiles(tmp_path / "out.png", SIDE, SIDE)
    module = load_generator(str(models / "generator"), None, "cpu")
    image = normalize(torch.from_numpy(given.copy()).permute(2, 0, 1)[None])
    begun = module.tokenizer.autoencoder.encode(image).flatten(1).expand(3, -1).clone()
    begun[:, 4 * 6 :] = -1
    seeds = [0, 1, 2]
    codes = module.sample_codes(labels(7, 7, 7), Sampling(), seeds, given=begun)
    assert torch.equal(codes.flatten(1)[:, : 4 * 6], begun[:, : 4 * 6])
    assert len({tuple(rest.tolist()) for rest in codes[:, 4:].flatten(1)}) == 3
    for tile, expected in zip(drawn, module.decode(codes), strict=True):
        assert (tile == np.asarray(to_image(expected))).all()


def test_what_cannot_be_done_is_named(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, out = tmp_path / "broken.jpg", tmp_path / "out.png"
    broken.write_bytes(PHOTOGRAPHS[0].read_bytes()[:200])
    for command, args, said in (
        (reconstruct, (broken, out), "broken.jpg cannot be read as an image"),
        (reconstruct, (tmp_path / "none.png", out), "none.png cannot be read as an image"),
        (reconstruct, (PHOTOGRAPHS[0], tmp_path / "out"), "no ending of an image"),
        (reconstruct, (PHOTOGRAPHS[0], tmp_path), "is a folder"),
        (reconstruct, (PHOTOGRAPHS[0], out, "--image-size", 30), "--image-size: image of 30x30"),
        (
            reconstruct,
            (PHOTOGRAPHS[0], out, "--image-size", 8, 8, 8),
            "--image-size must be a side",
        ),
        (
            reconstruct,
            (PHOTOGRAPHS[0], out, "--image-size", 4),
            "--image-size must be from 8",
        ),
        (
            complete,
            (PHOTOGRAPHS[0], out, "--label", "dog"),
            "'dog' is no class: give one from 0",
        ),
        (complete, (broken, out, "--label", 1), "broken.jpg cannot be read as an image"),
        (
            complete,
            (PHOTOGRAPHS[0], out, "--label", 1, "--rows", 6),
            "--rows must be from 1 to 5 of",
        ),
        (complete, (PHOTOGRAPHS[0], out), "The checkpoint takes --label; give one at least."),
    ):
        with pytest.raises(SystemExit):
            command(models, *args)
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
