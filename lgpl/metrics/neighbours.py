"""Metrics that need the features themselves: kernel distance, precision, recall, density,
coverage, retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image.kid import poly_mmd
from torchmetrics.utilities import dim_zero_cat

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
PRECISION_K = 3  # arXiv 1904.06991
DENSITY_K = 5  # arXiv 2002.09797
ROWS = 1024  # of a block of distances


class FeatureBank(Metric):
    """The features of the images of a set whose number is below `keep`."""

    features: list[Tensor]
    numbers: list[Tensor]
    full_state_update = False

    def __init__(self, dim: int, keep: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.keep = dim, keep
        self.add_state("features", [], "cat")
        self.add_state("numbers", [], "cat")

    def update(self, features: Tensor, number: Tensor) -> None:
        """Keep features [B, D] of the images of these numbers [B] that are below `keep`."""
        wanted = number < self.keep
        self.features.append(features[wanted].float())
        self.numbers.append(number[wanted])

    def compute(self) -> Tensor:
        """[N, D] in the order of the numbers."""
        return dim_zero_cat(self.features)[dim_zero_cat(self.numbers).argsort()]


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE
) -> float:
    """Mean of the unbiased squared MMD with the kernel (x·y / D + 1)³ (arXiv 1801.01401) of random
    subsets of the features [N, D] and [M, D], the same ones in every call; sets of no more than
    `size` features are compared whole."""
    size = min(size, len(real), len(fake))
    if size == len(real) == len(fake):
        subsets = 1
    rng = torch.Generator().manual_seed(0)
    distances = []
    for _ in range(subsets):
        x, y = (
            features[torch.randperm(len(features), generator=rng)[:size].to(features.device)]
            for features in (real, fake)
        )
        distances.append(poly_mmd(x.double(), y.double()))
    return torch.stack(distances).mean().item()


def precision_recall(real: Tensor, fake: Tensor, k: int = PRECISION_K) -> tuple[float, float]:
    """Shares of the fake within the real manifold and the reverse (arXiv 1904.06991).

    A set's manifold is the union of the balls around its points that reach to the k-th nearest of
    the others.
    """
    precision = _inside(real, _radii(real, k), fake).gt(0)
    recall = _inside(fake, _radii(fake, k), real).gt(0)
    return precision.double().mean().item(), recall.double().mean().item()


def density_coverage(real: Tensor, fake: Tensor, k: int = DENSITY_K) -> tuple[float, float]:
    """Mean number of real balls around a fake over k, and the share of real balls with a fake in
    them (arXiv 2002.09797)."""
    radii = _radii(real, k)
    density = _inside(real, radii, fake).double().mean().item() / k
    nearest = torch.cat([block.amin(1) for block in _distances(real, fake)])
    return density, (nearest < radii).double().mean().item()


def retrieval_accuracy(generated: Tensor, real: Tensor, target: Tensor, k: int) -> float:
    """Share of generated images whose own real image is among the k nearest by cosine.

    Args:
        generated: features [N, D].
        real: features [M, D] of all candidates.
        target: index of the right candidate for each generated image [N].
    """
    similarity = F.normalize(generated, dim=-1) @ F.normalize(real, dim=-1).T
    nearest = similarity.topk(k, dim=-1).indices
    return (nearest == target[:, None]).any(-1).float().mean().item()


def _inside(centres: Tensor, radii: Tensor, points: Tensor) -> Tensor:
    """How many of the centres' balls each point is in [N]."""
    return torch.cat([(block < radii).sum(1) for block in _distances(points, centres)])


def _radii(features: Tensor, k: int) -> Tensor:
    """Distance of each point to the k-th nearest of the others."""
    blocks = _distances(features, features)  # the point itself is the nearest of all
    return torch.cat([block.kthvalue(k + 1).values for block in blocks])


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Of the rows of a, a block at a time, from all of b."""
    return (torch.cdist(rows.double(), b.double()) for rows in a.split(ROWS))
