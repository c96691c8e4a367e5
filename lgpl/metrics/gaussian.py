"""The Gaussian of a set of features, and the Fréchet distance of two (arXiv 1706.08500)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] in float64 of the features, and the number of images."""

    mean: Tensor
    covariance: Tensor
    images: int


class FeatureGaussian(Metric):
    """Sums of D features and of their products, streamed in float64: the memory does not grow."""

    total: Tensor
    products: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(dim, dtype=torch.float64), "sum")
        self.add_state("products", torch.zeros(dim, dim, dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, features: Tensor) -> None:
        """Add features [B, D]."""
        features = features.double()
        # In place: a new matrix each time would leave the heap in pieces, which grows.
        self.total += features.sum(0)
        self.products.addmm_(features.T, features)
        self.count += len(features)

    def compute(self) -> Gaussian:
        mean = self.total / self.count
        scatter = self.products - self.count * mean.outer(mean)
        return Gaussian(mean, scatter / (self.count - 1), int(self.count))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^(1/2)).

    The trace of the root of C C' is the sum of the roots of the eigenvalues of the symmetric
    C^(1/2) C' C^(1/2), which are real, and never far below zero.
    """
    mean, covariance = a.mean.to(b.mean.device), a.covariance.to(b.mean.device)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ b.covariance @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean - b.mean).square().sum()
    distance = distance + covariance.trace() + b.covariance.trace() - 2 * trace
    return max(0.0, distance.item())
