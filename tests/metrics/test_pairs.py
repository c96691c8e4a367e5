"""Similarity of pairs against the definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from lgpl.metrics import Similarity
from lgpl.metrics.extractors import to_bytes


def smooth(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=rng) * 2 - 1
    return F.interpolate(small, (64, 64), mode="bicubic").clamp(-1, 1)


def test_means_over_images_of_the_bytes() -> None:
    a = smooth(5, 0)
    b = (a + 0.1 * smooth(5, 1)).clamp(-1, 1)
    metric = Similarity("alex")
    metric.update(a[:3], b[:3])
    metric.update(a[3:], b[3:])
    metric.update(a[:0], b[:0])  # a rank whose last batch is padding
    found = metric.compute()
    x, y = (to_bytes(pixels).double() for pixels in (a, b))
    psnr = 10 * (255**2 / (x - y).square().mean((1, 2, 3))).log10()
    ssim = [
        structural_similarity_index_measure(p[None], q[None], data_range=255.0).item()
        for p, q in zip(x, y, strict=True)
    ]
    assert found["PSNR"] == pytest.approx(psnr.mean().item(), rel=1e-6)
    assert found["SSIM"] == pytest.approx(sum(ssim) / 5, rel=1e-4)
    metric.reset()
    metric.update(a, a)
    assert metric.compute()["SSIM"] == pytest.approx(1) and metric.compute()["LPIPS"] == 0


def test_lpips_of_the_real_weights_grows_with_the_damage() -> None:
    a, noise = smooth(4, 0), smooth(4, 7)
    found = []
    for strength in (0.0, 0.1, 0.3, 0.6):
        metric = Similarity("vgg")
        metric.update(a, (a + strength * noise).clamp(-1, 1))
        found.append(metric.compute()["LPIPS"])
    assert found[0] == 0 and found == sorted(found) and found[3] > 0.05
