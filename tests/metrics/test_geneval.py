"""GenEval's decisions on boxes made by hand, and the way from a detector to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.errors import UserError
from lgpl.metrics import CLIP
from lgpl.metrics.detection import COLORS, ColorNames, Detector
from lgpl.metrics.geneval import Box, fault, positions
from tests.metrics.pretrained import clip, detector

SMALL = Box(0, 0, 10, 10)


def at(x: float, y: float, side: float = 10) -> Box:
    """A square around a point."""
    return Box(x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def asked(*include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    groups = [{"count": 1, **group} for group in include]
    return {"tag": "", "prompt": "", "include": groups, "exclude": list(exclude)}


def colorless(name: str, boxes: Sequence[Box]) -> list[str]:
    raise AssertionError("nothing asks for a colour")


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-40, 0), {"left of"}),
        ((40, 0), {"right of"}),
        ((0, -40), {"above"}),
        ((0, 40), {"below"}),
        ((-40, -40), {"left of", "above"}),
        ((-40, 10), {"left of"}),
        ((-2, 0), set()),  # a tenth of both extents
        ((-3, 0), set()),  # clear by less than half of the distance
        ((-5, 0), {"left of"}),
        ((0, 0), set()),
    ],
)
def test_positions_are_seen_from_the_second(
    offset: tuple[float, float], expected: set[str]
) -> None:
    assert positions(at(100 + offset[0], 100 + offset[1]), at(100, 100)) == expected


def test_counts() -> None:
    four = asked({"class": "cat", "count": 4}, exclude=[{"class": "cat", "count": 5}])
    assert fault({"cat": [SMALL] * 4}, four, colorless) == ""
    assert fault({"cat": [SMALL] * 3}, four, colorless) == "3 of cat, not 4"
    assert fault({"cat": [SMALL] * 5}, four, colorless) == "5 of cat, not fewer than 5"
    both = asked({"class": "cat"}, {"class": "dog"})
    assert fault({"cat": [SMALL], "dog": [SMALL]}, both, colorless) == ""
    assert fault({"cat": [SMALL]}, both, colorless) == "0 of dog, not 1"


def test_colors_are_those_of_the_surest_objects() -> None:
    first, second = at(10, 10), at(50, 50)
    known = {first: "red", second: "blue"}

    def colors_of(name: str, boxes: Sequence[Box]) -> list[str]:
        return [known[box] for box in boxes]

    red = asked({"class": "car", "color": "red"})
    assert fault({"car": [first, second]}, red, colors_of) == ""
    assert fault({"car": [second, first]}, red, colors_of) == "car in blue, not red"
    two = asked({"class": "car", "count": 2, "color": "red"})
    assert fault({"car": [first, second]}, two, colors_of) == "car in red, blue, not red"
    bound = asked({"class": "car", "color": "red"}, {"class": "bus", "color": "blue"})
    assert fault({"car": [first], "bus": [second]}, bound, colors_of) == ""
    assert "car in blue" in fault({"car": [second], "bus": [first]}, bound, colors_of)


def test_a_position_is_that_of_all_of_both_groups() -> None:
    left = asked({"class": "dog"}, {"class": "cat", "position": ["left of", 0]})
    assert fault({"dog": [at(80, 20)], "cat": [at(20, 20)]}, left, colorless) == ""
    there = fault({"dog": [at(20, 20)], "cat": [at(80, 20)]}, left, colorless)
    assert there == "cat right of, not left of"
    there = fault({"cat": [at(80, 20)]}, left, colorless)
    assert there == "0 of dog, not 1; nothing for cat to be left of"
    pair = asked({"class": "dog", "count": 2}, {"class": "cat", "position": ["left of", 0]})
    assert "not left of" in fault(
        {"dog": [at(80, 20), at(10, 20)], "cat": [at(40, 20)]}, pair, colorless
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    labels = ("cat", "remote", "N/A")
    return detector(folder / "yolos", labels), clip(folder / "clip", ("cat", "red", "blue"))


def test_a_detectors_boxes_are_its_own_in_pixels(folders: tuple[str, str]) -> None:
    """Above the threshold, the surest first, in the pixels of each image."""
    found = Detector(folders[0])
    images = [Image.new("RGB", (40, 40), "red"), Image.new("RGB", (80, 80), "blue")]
    every = found(images, 0.0)
    assert sum(map(len, every[0].values())) == 6 and set(every[0]) <= {"cat", "tv remote", "n/a"}
    inputs = found.processor(images=images, return_tensors="pt")
    with torch.no_grad():
        out = found.net(**inputs)
    scores, labels = out.logits.softmax(-1)[..., :-1].max(-1)
    for image, objects, score, label, box in zip(
        images, every, scores, labels, out.pred_boxes, strict=True
    ):
        for number, name in found.labels.items():
            mine = (label == number).nonzero().flatten()
            mine = mine[score[mine].argsort(descending=True)]
            x, y, w, h = (box[mine] * image.width).T
            expected = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
            boxes = torch.tensor(objects.get(name, [])).reshape(-1, 4)
            torch.testing.assert_close(boxes, expected, atol=1e-3, rtol=1e-4)
    middle = float(scores[0].median())
    assert sum(map(len, found(images, middle)[0].values())) == int((scores[0] > middle).sum())


def test_a_class_that_a_detector_lacks_is_told(folders: tuple[str, str]) -> None:
    found = Detector(folders[0])
    found.require([asked({"class": "tv remote"}, {"class": "cat"})])
    with pytest.raises(UserError, match="knows no 'dog', which the prompts ask for"):
        found.require([asked({"class": "cat"}), asked({"class": "dog"})])
    with pytest.raises(UserError, match=r"The detector: .* cannot be loaded"):
        Detector(folders[1])


def test_colors_are_the_nearest_texts_of_a_crop(folders: tuple[str, str]) -> None:
    model = CLIP(folders[1])
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    boxes = [Box(2.2, 3.4, 30, 30), Box(-5, 10, 70, 90), Box(59.9, 39.9, 61, 41)]
    crops = [image.crop((2, 3, 30, 30)), image.crop((0, 10, 60, 40)), image.crop((59, 39, 60, 40))]
    found = ColorNames(model).of(image)("cat", boxes)
    for color, crop in zip(found, crops, strict=True):
        means = []
        for name in COLORS:
            texts = [f"a photo of a {name} cat", f"a photo of a {name}-colored cat"]
            means.append(model.text_features([*texts, f"a photo of a {name} object"]).mean(0))
        features = torch.nn.functional.normalize(torch.stack(means), dim=-1)
        assert color == COLORS[int((model.image_features([crop]) @ features.T).argmax())]
