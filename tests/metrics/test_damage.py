"""The metrics of a real extractor grow with the damage done to real images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lgpl.metrics import EfficientNetLite0, compute_metrics
from lgpl.metrics.images import open_images
from tests.conftest import ROOT
from tests.metrics.test_metrics import summarise
from tests.shards import EMOJI_TRAIN

COUNT = 1300  # more than the extractor's 1280 features


def cifar10(folder: Path) -> list[Tensor]:
    """Training and test images, of the recipe's shards; fetched where they are not."""
    found = ROOT / "data/cifar10"
    if not (found / "val-0000.tar").exists():
        found = folder / "cifar10"
        recipe = [sys.executable, "data/recipes/cifar10.py", "--out", str(found)]
        subprocess.run(recipe, cwd=ROOT, check=True)
    sets = [open_images(f"{found}/{split}-0000.tar", 32) for split in ("train", "val")]
    return [next(iter(images.batches(COUNT))) for images in sets]


def emoji(folder: Path) -> list[Tensor]:
    """The same images twice: there are no others of which the covariance could be taken."""
    images = torch.cat([*open_images(EMOJI_TRAIN, 64).batches(COUNT)])[:COUNT]
    return [images, images]


def noisy(images: Tensor, strength: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(0, 255).byte()


def blurred(images: Tensor, sigma: float) -> Tensor:
    reach = round(3 * sigma)
    window = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    window = (window / window.sum()).expand(3, 1, 1, -1)
    for kernel in (window, window.transpose(2, 3)):
        sides = (reach, reach, 0, 0) if kernel.shape[3] > 1 else (0, 0, reach, reach)
        images = F.conv2d(F.pad(images.float(), sides, mode="reflect"), kernel, groups=3)
    return images.round().byte()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "size"),
    [(emoji, 64), pytest.param(cifar10, 224, marks=pytest.mark.network)],
    ids=["emoji", "CIFAR-10"],
)
def test_metrics_grow_with_blur_and_noise(data, size: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """FID and KID rise from the untouched images on, recall and coverage fall. Precision does not
    have to: a slight blur moves images to the middle of the real ones."""
    reference, images = data(tmp_path)
    extractor = EfficientNetLite0(size)
    real, _ = summarise(reference, extractor)
    clean = compute_metrics(real, summarise(images, extractor)[0], extractor)
    for damage, strengths in ((noisy, (12.0, 48.0)), (blurred, (0.7, 2.0))):
        worse = [summarise(damage(images, s), extractor)[0] for s in strengths]
        found = [clean, *(compute_metrics(real, one, extractor) for one in worse)]
        print(damage.__name__, *({k: round(v, 4) for k, v in one.items()} for one in found))
        for name in ("FID", "KID", "recall", "coverage"):
            values = [one[extractor.metric(name)] for one in found]
            falls = name in ("recall", "coverage")
            assert values == sorted(values, reverse=falls) and len(set(values)) == 3
