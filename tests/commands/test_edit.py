"""`lgpl edit` on real images: what is drawn, what stays, and what is refused in one sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgpl.cli import main
from lgpl.data.transforms import center_crop, to_image
from lgpl.generator import Sampling
from lgpl.image_files import MARGIN
from lgpl.inference import editing, load_generator
from tests.conftest import ROOT
from tests.models import labels
from tests.serving.generators import EVEN_FIRST, class_config, export_generator, export_tokenizer

PHOTOGRAPH = ROOT / "tests/data/photographs/astronaut.jpg"
HOLE = (32, 40, 64, 80)  # of a 96x96 image; 6x6 codes, so that 16 pixels are a code


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "raster", class_config(10), grid=[6, 6])
    export_generator(folder / "any", class_config(10), EVEN_FIRST, grid=[6, 6])
    square = center_crop(Image.open(PHOTOGRAPH).convert("RGB"), (96, 96))
    square.save(folder / "square.png")
    Image.open(PHOTOGRAPH).convert("RGB").resize((160, 96)).save(folder / "wide.png")
    mask = Image.new("RGBA", (96, 96))
    mask.paste("black", (0, 0, 96, 96))
    mask.paste((0, 0, 0, 0), HOLE)
    mask.save(folder / "mask.png")
    return folder


def edit(models: Path, *args: object, model: str = "any", label: object = 7) -> None:
    where = ("--checkpoint", str(models / model), "--trust", "tests")
    main(["edit", *map(str, args), *where, "--label", str(label)])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def inside(*box: int, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    found = np.zeros(shape, bool)
    found[box[1] : box[3], box[0] : box[2]] = True
    return found


def test_the_part_under_a_mask_is_drawn_and_every_other_pixel_stays(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    edit(models, models / "square.png", out, "--mask", models / "mask.png", "--seed", 3)
    assert capsys.readouterr().out == f"{out}: 6 of 36 codes drawn anew, 1 image, seed 3\n"
    before, after, hole = pixels(models / "square.png"), pixels(out), inside(*HOLE)
    assert (after[~hole] == before[~hole]).all()
    # In the middle of the hole, behind the seam, there is what the codes decode to.
    module = load_generator(str(models / "any"), None, "cpu", trust=["tests"])
    image = Image.open(models / "square.png")
    wanted = editing.edit(module, image, editing.bright(Image.open(models / "mask.png")))
    codes = module.sample_codes(labels(7), Sampling(), [3], given=wanted.given[None])
    decoded = to_image(module.decode(codes)[0])
    drawn = np.asarray(decoded.resize((96, 96), Image.Resampling.LANCZOS))
    core = inside(HOLE[0] + 3, HOLE[1] + 3, HOLE[2] - 3, HOLE[3] - 3)
    assert (after[core] == drawn[core]).all() and (after[core] != before[core]).any()
    options = ("--mask", ",".join(map(str, HOLE)), "--seed", 3)
    edit(models, models / "square.png", tmp_path / "plain.png", *options, "--no-blend")
    assert (pixels(tmp_path / "plain.png")[hole] == drawn[hole]).all()
    assert (pixels(tmp_path / "plain.png")[~hole] == before[~hole]).all()


def test_several_ways_stand_beside_the_given_image(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    mask = ("--mask", "64,32,112,96", "--count", 2)
    edit(models, models / "wide.png", out, *mask)
    step, before = 160 + MARGIN, pixels(models / "wide.png")
    given, *drawn = (
        pixels(out)[MARGIN : MARGIN + 96, x : x + 160] for x in range(MARGIN, 3 * step, step)
    )
    hole = inside(64, 32, 112, 96, shape=(96, 160))
    assert (given == before).all()
    for image in drawn:
        assert (image[~hole] == before[~hole]).all() and (image[hole] != before[hole]).any()
    alone = tmp_path / "alone.png"
    edit(models, models / "wide.png", alone, *mask[:2], "--seed", 1)
    assert (drawn[1] == pixels(alone)).all()


def test_the_outside_is_drawn(models: Path, tmp_path: Path) -> None:
    """Around the image, or by a raster model below it."""
    edit(models, models / "square.png", tmp_path / "a.png", "--mask", "outside", "--scale", 0.5)
    assert pixels(tmp_path / "a.png").shape == (192, 192, 3)
    assert (pixels(tmp_path / "a.png")[48:144, 48:144] == pixels(models / "square.png")).all()
    edit(models, models / "wide.png", tmp_path / "b.png", "--mask", "outside", model="raster")
    assert pixels(tmp_path / "b.png").shape == (160, 160, 3)
    assert (pixels(tmp_path / "b.png")[:96] == pixels(models / "wide.png")).all()


def test_the_model_that_comes_with_lgpl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It draws in raster order: the lower rows, and nothing in the middle."""
    center_crop(Image.open(PHOTOGRAPH).convert("RGB"), (64, 64)).save(tmp_path / "in.png")
    before = pixels(tmp_path / "in.png")
    line = ["edit", f"{tmp_path}/in.png", f"{tmp_path}/out.png", "--checkpoint", "emoji"]
    line += ["--prompt", "rocket"]
    main([*line, "--mask", "0,40,64,64"])
    after = pixels(tmp_path / "out.png")
    assert (after[:40] == before[:40]).all() and (after[40:] != before[40:]).any()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*line, "--mask", "16,16,32,32"])
    said = capsys.readouterr().err
    assert "a mask must cover all that follows its first code (row 3, column 3 of 8x8x2)" in said


def header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + data
    start = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + start + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_what_cannot_be_done_is_named(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out, wide = models / "square.png", tmp_path / "out.png", models / "wide.png"
    for name, data in (
        ("broken.png", image.read_bytes()[:200]),
        ("large.png", header(20000, 10000)),
        ("text.png", b"no image"),
    ):
        (tmp_path / name).write_bytes(data)
    frames = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    Image.new("L", (96, 96)).save(tmp_path / "black.png")
    for args, said in (
        ((image, out, "--mask", tmp_path / "black.png"), "--mask: the mask has no hole"),
        ((image, out, "--mask", wide), "the mask must be as large as the image, 96x96, got 160x96"),
        ((image, out, "--mask", tmp_path / "none.png"), "none.png cannot be used (["),
        ((image, out, "--mask", tmp_path / "moves.gif"), "an animation, where one still image"),
        ((image, out, "--mask", tmp_path / "text.png"), "text.png cannot be used (image that"),
        ((tmp_path / "moves.gif", out, "--mask", "0,0,8,8"), "moves.gif cannot be used (an ani"),
        ((tmp_path / "broken.png", out, "--mask", "0,0,8,8"), "broken.png cannot be used"),
        ((tmp_path / "large.png", out, "--mask", "0,0,8,8"), "more than 67108864 pixels"),
        ((image, out, "--mask", "0,0,8"), "LEFT,TOP,RIGHT,BOTTOM within the image's 0,0,96,96, go"),
        ((image, out, "--mask", "8,0,8,8"), "within the image's 0,0,96,96, got 8,0,8,8"),
        ((image, out, "--mask", "0,0,97,8"), "within the image's 0,0,96,96, got 0,0,97,8"),
        ((wide, out, "--mask", "0,0,97,8"), "--mask: the model sees 32,0,128,96 of the image"),
        ((image, out, "--mask", "outside"), "--scale below 1 leaves room around it."),
        ((image, out, "--mask", "0,0,8,8", "--scale", 0.5), "--scale must be > 0 and <= 1, and n"),
        ((image, out, "--mask", "outside", "--scale", 0), "--scale must be > 0 and <= 1"),
        ((image, out, "--mask", "0,0,8,8", "--count", 0), "--count must be >= 1, got 0"),
        ((image, tmp_path, "--mask", "0,0,8,8"), "is a folder"),
    ):
        with pytest.raises(SystemExit) as end:
            edit(models, *args)
        err = capsys.readouterr().err
        assert end.value.code == 2 and said in err and err.count("\n") == 1, err
    with pytest.raises(SystemExit):
        edit(models, image, out, "--mask", "0,0,8,8", label="dog")
    assert "'dog' is no class" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        edit(models, image, out, "--mask", ",".join(map(str, HOLE)), model="raster")
    said = capsys.readouterr().err
    assert "(row 3, column 3 of 6x6) down to the last; a parallel model takes any mask." in said
    assert not out.exists()
