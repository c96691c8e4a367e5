"""Metrics of pairs: a reconstruction and its original, an image and its caption."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.functional.image import structural_similarity_index_measure

from lgpl.data.transforms import normalize
from lgpl.metrics.extractors import to_bytes
from lgpl.text.pretrained import load_pretrained
from lgpl.tokenizer.perceptual import LPIPS


class Similarity(nn.Module):
    """PSNR, SSIM and, by the net `vgg` or `alex`, LPIPS of image pairs; means over the images."""

    def __init__(self, lpips: str | None = "vgg") -> None:
        super().__init__()
        self.lpips = None if lpips is None else LPIPS(lpips)  # type: ignore[arg-type]
        names = ("PSNR", "SSIM") if lpips is None else ("PSNR", "SSIM", "LPIPS")
        self.means: Any = nn.ModuleDict({n: MeanMetric().set_dtype(torch.float64) for n in names})

    @torch.no_grad()
    def update(self, image: Tensor, reconstruction: Tensor) -> None:
        """Add pairs [B, 3, H, W] in [-1, 1], both rounded as a file would round them."""
        if not len(image):
            return
        a, b = (normalize(to_bytes(pixels)) for pixels in (image, reconstruction))
        with torch.autocast(a.device.type, enabled=False):
            mse = (a - b).double().square().mean((1, 2, 3)) / 4  # of images in [0, 1]
            self.means["PSNR"].update(-10 * mse.clamp(min=1e-10).log10())
            unit = (a.double() + 1) / 2, (b.double() + 1) / 2
            similar = structural_similarity_index_measure(*unit, data_range=1.0, reduction="none")
            assert isinstance(similar, Tensor)
            self.means["SSIM"].update(similar)
            if self.lpips is not None:
                self.means["LPIPS"].update(self.lpips(a, b).double())

    def compute(self) -> dict[str, float]:
        """All ranks must call this."""
        return {name: mean.compute().item() for name, mean in self.means.items()}

    def reset(self) -> None:
        for mean in self.means.values():
            mean.reset()


class CLIPScore(MeanMetric):
    """Mean of 100 max(cos, 0) between the CLIP features of images and captions (arXiv 2104.08718,
    without its factor of 2.5), by a model of transformers with its tokenizer, name or folder.
    torchmetrics' class takes a fixed list of models, and torchvision."""

    def __init__(self, model: str = "openai/clip-vit-large-patch14", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokenizer, self.clip = load_pretrained(
            model, "The CLIP model", lambda transformers, _: transformers.CLIPModel
        )
        self.size = self.clip.config.vision_config.image_size
        self.length = self.clip.config.text_config.max_position_embeddings
        # What every CLIP was trained with.
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        self.pixel_mean = nn.Buffer(torch.tensor(mean)[:, None, None], persistent=False)
        self.pixel_std = nn.Buffer(torch.tensor(std)[:, None, None], persistent=False)

    @torch.no_grad()
    def scores(self, image: Tensor, captions: list[str]) -> Tensor:
        """[B] of square images [B, 3, H, W] in [-1, 1] and their captions."""
        pixels = (normalize(to_bytes(image)) + 1) / 2
        pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
        pixels = (pixels.clamp(0, 1) - self.pixel_mean) / self.pixel_std
        tokens = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        ids, mask = (tokens[name].to(image.device) for name in ("input_ids", "attention_mask"))
        with torch.autocast(image.device.type, enabled=False):
            a, b = self.clip.get_image_features(pixels), self.clip.get_text_features(ids, mask)
        # transformers 4 gives the features, 5 an output that holds them.
        a, b = (getattr(found, "pooler_output", found) for found in (a, b))
        return 100 * F.cosine_similarity(a.double(), b.double()).clamp(min=0)

    def update(self, image: Tensor, captions: list[str]) -> None:  # type: ignore[override]
        if len(image):
            super().update(self.scores(image, captions))
