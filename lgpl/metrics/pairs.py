"""Metrics of a reconstruction and its original."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.functional.image import structural_similarity_index_measure

from lgpl.data.transforms import normalize
from lgpl.metrics.extractors import to_bytes
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
