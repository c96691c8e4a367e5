"""CLIP models of the transformers library (arXiv 2103.00020): features of images and of texts, and
the score of images with their captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lgpl.data.transforms import normalize, to_image
from lgpl.text.pretrained import image_processor, load_pretrained, tokenizer


class CLIP(nn.Module):
    """A CLIP with its own preprocessing of images and texts.

    Args:
        model: name on the hub, or folder; raises a UserError where it cannot be had whole.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model, self.name = model, Path(model).name
        (self.tokenizer, self.processor), self.clip = load_pretrained(
            model, "The CLIP model", _class, _preparation, whole=True, dtype=torch.float32
        )
        self.length = self.clip.config.text_config.max_position_embeddings

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D] of length 1, float64, of RGB images."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        with torch.autocast(self.clip.device.type, enabled=False):
            return _unit(self.clip.get_image_features(pixels.to(self.clip.device)))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N, D] of length 1, float64; long texts are cut."""
        cut = {"padding": True, "truncation": True, "max_length": self.length}
        tokens = self.tokenizer(list(texts), return_tensors="pt", **cut).to(self.clip.device)
        with torch.autocast(self.clip.device.type, enabled=False):
            found = self.clip.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return _unit(found)


class CLIPScore(MeanMetric):
    """100 cos of the CLIP features of images and captions, their mean, and at least 0 (arXiv
    2104.08718 without its factor of 2.5), as torchmetrics has it for a fixed list of models.

    Args:
        model: see `CLIP`.
        prefix: what stands before each caption, such as the paper's "A photo depicts ".
    """

    def __init__(self, model: str, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)  # of the sum, before there is a model
        self.clip, self.prefix = CLIP(model), prefix

    @property
    def name(self) -> str:
        """Of the metric, with its model."""
        return f"CLIP score[{self.clip.name}]"

    def scores(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """100 cos [N] of RGB images with their captions."""
        texts = self.clip.text_features([self.prefix + caption for caption in captions])
        return 100 * (self.clip.image_features(images) * texts).sum(-1)

    def update(self, image: Tensor, captions: Sequence[str]) -> None:  # type: ignore[override]
        """Add images [B, 3, H, W], uint8, or in [-1, 1] and rounded as a file would round them, and
        the caption of each."""
        if len(image):
            shown = image if image.is_floating_point() else normalize(image)
            super().update(self.scores([to_image(one) for one in shown], captions))

    def compute(self) -> Tensor:
        """All ranks must call this."""
        return super().compute().clamp(min=0)

    def provenance(self, count: int) -> dict[str, Any]:
        """What the mean of so many pairs depends on, in plain values."""
        return {"model": self.clip.model, "prefix": self.prefix, "N": count}


def _class(transformers: Any, config: Any) -> Any:
    if config.model_type != "clip":
        raise ValueError(f"it is a model of the type {config.model_type}, not clip")
    return transformers.CLIPModel


def _preparation(transformers: Any, source: str, config: Any) -> tuple[Any, Any]:
    try:
        images = image_processor(transformers, source, config)
    except OSError:  # a folder without its settings: every CLIP is trained with these
        side = config.vision_config.image_size
        crop = {"height": side, "width": side}
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop)
    return tokenizer(transformers, source, config), images


def _unit(found: Any) -> Tensor:
    # transformers 4 gives the features, 5 an output that holds them.
    return F.normalize(getattr(found, "pooler_output", found).double(), dim=-1)
