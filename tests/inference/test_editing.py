"""From a mask to the codes that are given, and to the original with what was drawn in place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling
from lgpl.inference import editing, load_generator
from tests.models import labels
from tests.serving.generators import EVEN_FIRST, class_config, export_generator, export_tokenizer
from tests.shards import image_bytes

SIZE = (24, 24)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, GeneratorModule]]:
    """With a decoder of each kind, and one tokenizer: 6x6 codes of 4 pixels a side."""
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "raster", class_config(10), grid=[6, 6])
    export_generator(folder / "any", class_config(10), EVEN_FIRST, grid=[6, 6])
    yield {
        name: load_generator(str(folder / name), None, "cpu", trust=["tests"])
        for name in ("raster", "any")
    }


def mask_with(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> Image.Image:
    """Boxes of left, top, right and bottom; right and bottom are exclusive."""
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return mask


def photograph(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.open(io.BytesIO(image_bytes(3, size, "png"))).convert("RGB")


def test_a_code_is_covered_where_any_pixel_of_it_is() -> None:
    covered = editing.covered(mask_with((3, 4, 4, 5), (20, 11, 24, 13)), 6, 6)
    assert covered.nonzero().tolist() == [[1, 0], [2, 5], [3, 5]]
    # Cells need be no whole number of pixels, and may be smaller than one.
    assert editing.covered(mask_with((3, 0, 4, 1), size=(10, 3)), 2, 3).tolist() == [
        [True, True, False],
        [False, False, False],
    ]
    assert (
        editing.covered(mask_with((1, 0, 2, 1), size=(2, 1)), 2, 4).tolist()
        == [[False, False, True, True]] * 2
    )


def test_given_codes_are_kept_bit_for_bit(modules: dict[str, GeneratorModule]) -> None:
    """And some of the others change, by the decoder of each kind."""
    for name, mask in (
        ("any", mask_with((8, 8, 16, 16))),
        ("raster", mask_with((8, 12, 24, 16), (0, 16, 24, 24))),
    ):
        module = modules[name]
        edit = editing.edit(module, photograph(), mask)
        codes = editing.codes_of(module, photograph())
        kept = edit.given >= 0
        hidden = editing.covered(mask, 6, 6).flatten()
        assert torch.equal(kept, ~hidden) and torch.equal(edit.given[kept], codes[kept])
        drawn = module.sample_codes(labels(7), Sampling(), [1], given=edit.given[None]).flatten()
        assert torch.equal(drawn[kept], codes[kept]) and not torch.equal(drawn, codes)


def test_a_mask_that_raster_order_cannot_honour_is_refused(
    modules: dict[str, GeneratorModule],
) -> None:
    with pytest.raises(UserError, match=r"\(row 3, column 3 of 6x6\) down to the last"):
        editing.edit(modules["raster"], photograph(), mask_with((8, 8, 16, 16)))
    for module in modules.values():
        with pytest.raises(UserError, match="no hole"):
            editing.edit(module, photograph(), mask_with())


def test_every_pixel_outside_the_mask_is_the_originals(modules: dict[str, GeneratorModule]) -> None:
    """At the original's resolution; within the mask it comes in over some pixels."""
    size = (96, 96)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((30, 20, 70, 60), 255)
    edit = editing.edit(modules["any"], photograph(size), mask)
    black = np.asarray(edit.over(Image.new("RGB", SIZE)), float)
    original, hidden = np.asarray(photograph(size), float), np.asarray(mask) > 0
    assert (black[~hidden] == original[~hidden]).all()
    white = replace(edit, original=Image.new("RGB", size, "white"))
    share = 1 - np.asarray(white.over(Image.new("RGB", SIZE)), float)[hidden] / 255  # of the drawn
    hard = np.asarray(white.over(Image.new("RGB", SIZE), blend=False))
    assert ((hard == 0).all(-1) == hidden).all() and ((hard == 255).all(-1) == ~hidden).all()
    assert share.min() == pytest.approx(1 / 4, abs=0.01) and share.max() == 1
    assert 0.5 < (share == 1).mean() < 0.9
    small = edit.scaled(SIZE)
    assert small.original.size == small.mask.size == SIZE and small.given is edit.given
    assert set(np.unique(np.asarray(small.mask))) == {0, 255}


def test_the_smallest_hole_is_filled(modules: dict[str, GeneratorModule]) -> None:
    """One code of an image of the model's size; and one pixel of a large one, shown so small."""
    edit = editing.edit(modules["any"], photograph(), mask_with((8, 8, 12, 12)))
    black = np.asarray(edit.over(Image.new("RGB", SIZE)))
    assert (black[8:12, 8:12] == 0).all() and (edit.given < 0).sum() == 1
    mask = Image.new("L", (240, 240))
    mask.putpixel((125, 49), 255)
    small = editing.edit(modules["any"], photograph((240, 240)), mask).scaled(SIZE)
    assert small.mask.getbbox() == (12, 4, 13, 5)


def test_a_part_that_reaches_the_border_is_not_softened_there() -> None:
    mask = mask_with((0, 12, 24, 24))
    edit = editing.Edit(Image.new("RGB", SIZE), mask, torch.empty(0), rows=1)
    rows = np.asarray(edit.over(Image.new("RGB", SIZE, "white")))[:, :, 0]
    assert rows[:, 0].tolist() == [0] * 12 + [63, 127, 191] + [255] * 9
    assert (rows == rows[:, :1]).all()


def test_what_an_image_says_as_a_mask() -> None:
    """Its transparent part; where it has none, its bright part."""
    clear = Image.new("RGBA", SIZE, "white")
    clear.paste((255, 255, 255, 0), (4, 4, 8, 8))
    bright = Image.new("RGB", SIZE)
    bright.paste("white", (4, 4, 8, 8))
    for image in (clear, bright, bright.convert("RGBA")):
        mask = editing.hole(image) or editing.bright(image)
        assert mask.getbbox() == (4, 4, 8, 8) and mask.getextrema() == (0, 255)
    found = editing.hole(clear)
    assert found is not None and found.getbbox() == (4, 4, 8, 8)
    assert editing.hole(bright) is editing.hole(bright.convert("RGBA")) is None
    with pytest.raises(UserError, match="as large as the image, 48x24, got 24x24"):
        editing.check_size(bright, (48, 24))


@pytest.mark.parametrize(
    ("size", "shape", "box"),
    [
        ((24, 24), (24, 24), (0, 0, 24, 24)),
        ((100, 60), (24, 24), (20, 0, 80, 60)),
        ((60, 100), (24, 24), (0, 20, 60, 80)),
        ((100, 60), (24, 20), (25, 0, 75, 60)),
        ((1, 9), (24, 24), (0, 4, 1, 5)),
    ],
)
def test_the_middle_has_the_models_shape(
    size: tuple[int, int], shape: tuple[int, int], box: editing.Box
) -> None:
    assert editing.middle(size, shape) == box


@pytest.mark.parametrize(
    ("size", "scale", "at_top", "canvas", "kept"),
    [
        ((12, 8), None, False, (24, 24), (6, 8, 18, 16)),  # smaller: its own pixels
        ((96, 48), None, False, (96, 96), (0, 24, 96, 72)),  # larger: as it fits
        ((96, 48), 0.5, False, (192, 192), (48, 72, 144, 120)),
        ((96, 48), None, True, (96, 96), (0, 0, 96, 48)),
    ],
)
def test_an_image_keeps_its_pixels_in_a_larger_canvas(
    size: tuple[int, int],
    scale: float | None,
    at_top: bool,
    canvas: tuple[int, int],
    kept: editing.Box,
) -> None:
    around, mask = editing.around(photograph(size), (24, 24), scale, at_top)
    assert around.size == mask.size == canvas
    assert around.crop(kept).tobytes() == photograph(size).tobytes()
    assert mask.crop(kept).getextrema() == (0, 0)
    assert np.asarray(mask).astype(bool).sum() == canvas[0] * canvas[1] - size[0] * size[1]


def test_a_canvas_is_bounded() -> None:
    with pytest.raises(UserError, match="has more than 67108864 pixels"):
        editing.around(Image.new("RGB", (400, 400)), (24, 24), 0.01, False)


def test_the_outside_is_drawn_around_what_is_kept(modules: dict[str, GeneratorModule]) -> None:
    module = modules["any"]
    whole, mask = editing.around(photograph((12, 12)), module.image_size, None, False)
    edit = editing.edit(module, whole, mask)
    assert int((edit.given >= 0).sum()) == 4  # of 6x6: those in which nothing is drawn
    codes = module.sample_codes(labels(7), Sampling(), [1], given=edit.given[None])
    shown = edit.over(to_image(module.decode(codes)[0]))
    assert shown.crop((6, 6, 18, 18)).tobytes() == photograph((12, 12)).tobytes()
