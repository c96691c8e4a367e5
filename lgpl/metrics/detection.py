"""What is in an image, by models of the transformers library: a detector's boxes, and the colors in
them by a CLIP."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from lgpl.errors import UserError
from lgpl.metrics.clip import CLIP
from lgpl.metrics.geneval import Box, ColorsOf, Objects
from lgpl.text.pretrained import image_processor, load_pretrained

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # of a detection's score
MOST_OBJECTS = 16  # of a class
COLORS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
# What some detectors call the classes that its prompts name.
ALSO_CALLED = {
    "mouse": "computer mouse",
    "keyboard": "computer keyboard",
    "remote": "tv remote",
    "tvmonitor": "tv",
    "sofa": "couch",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
}


class Detector:
    """An object detector of transformers.

    Args:
        model: name on the hub, or folder; raises a UserError where it cannot be had whole.
        device: where it runs.
    """

    def __init__(self, model: str, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.processor, net = load_pretrained(
            model, "The detector", _class, image_processor, whole=True, dtype=torch.float32
        )
        self.net = net.to(device)
        labels = {int(number): name.lower() for number, name in net.config.id2label.items()}
        self.labels = {n: ALSO_CALLED.get(name, name) for n, name in labels.items()}

    def require(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Raises a UserError where it does not know a class that is asked for."""
        asked = {g["class"] for row in rows for g in (*row["include"], *row.get("exclude", ()))}
        if unknown := sorted(asked - {*self.labels.values()}):
            said = f"{self.model} knows no {unknown[0]!r}, which the prompts ask for"
            raise UserError(f"--detector: {said}; take one that was trained on COCO.")

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], threshold: float) -> list[Objects]:
        """The objects of each RGB image whose score is above the threshold."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.net.device)
        sizes = torch.tensor([(image.height, image.width) for image in images])
        found = self.processor.post_process_object_detection(
            self.net(**inputs), threshold=threshold, target_sizes=sizes.to(self.net.device)
        )
        return [self._objects(one) for one in found]

    def _objects(self, found: Mapping[str, torch.Tensor]) -> Objects:
        objects: dict[str, list[Box]] = defaultdict(list)
        for index in found["scores"].argsort(descending=True).tolist():
            name = self.labels.get(int(found["labels"][index]), "")
            if len(objects[name]) < MOST_OBJECTS:
                objects[name].append(Box(*found["boxes"][index].tolist()))
        return objects


class ColorNames:
    """The colours of objects, by what a CLIP takes their crops for."""

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip
        self._known: dict[str, torch.Tensor] = {}  # classes -> features of the colours [C, D]

    def of(self, image: Image.Image) -> ColorsOf:
        """The colours of boxes in an RGB image, all of one class."""
        return functools.partial(self._named, image)

    def _named(self, image: Image.Image, name: str, boxes: Sequence[Box]) -> list[str]:
        if name not in self._known:
            texts = [
                f"a photo of a {form}"
                for color in COLORS
                for form in (f"{color} {name}", f"{color}-colored {name}", f"{color} object")
            ]
            means = self.clip.text_features(texts).unflatten(0, (len(COLORS), -1)).mean(1)
            self._known[name] = torch.nn.functional.normalize(means, dim=-1)
        crops = [image.crop(_pixels(box, image)) for box in boxes]
        best = (self.clip.image_features(crops) @ self._known[name].T).argmax(-1)
        return [COLORS[index] for index in best.tolist()]


def _pixels(box: Box, image: Image.Image) -> tuple[int, int, int, int]:
    """At least one, inside the image."""
    left, top = (min(max(round(x), 0), s - 1) for x, s in zip(box[:2], image.size, strict=True))
    right, bottom = (min(round(x), s) for x, s in zip(box[2:], image.size, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _class(transformers: Any, config: Any) -> Any:
    return transformers.AutoModelForObjectDetection
