"""Metrics of two sets of features: of their Gaussians, by a kernel, by nearest neighbours."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from lgpl.errors import UserError
from lgpl.metrics.extractors import Extractor
from lgpl.metrics.summary import FeatureSummary, Gaussian

MANIFOLD_K, DENSITY_K = 3, 5  # nearest neighbours, as the papers below take them


def compute_metrics(
    real: FeatureSummary, fake: FeatureSummary, extractor: Extractor
) -> dict[str, float]:
    """Every metric of `fake` against `real` that both allow and are large enough for, see
    `left_out`; a UserError where features differ."""
    have, want = len(real.pooled.mean), len(fake.pooled.mean)
    if have != want:
        said = f"The reference is of {have} features, those of {extractor.name} are {want}"
        raise UserError(f"{said}; make it with the same extractor.")
    few, found = _too_few(real, fake), dict[str, float]()
    if "FID" not in few:
        found["FID"] = frechet_distance(real.pooled, fake.pooled)
    if real.spatial is not None and fake.spatial is not None and "sFID" not in few:
        found["sFID"] = frechet_distance(real.spatial, fake.spatial)
    if fake.inception_score is not None and "IS" not in few:
        found["IS"], found["IS std"] = fake.inception_score
    if real.features is not None and fake.features is not None:
        features = real.features.to(fake.features.device), fake.features
        if "KID" not in few:
            found["KID"] = kernel_distance(*features)
        if "precision" not in few:
            found["precision"], found["recall"] = precision_recall(*features)
        if "density" not in few:
            found["density"], found["coverage"] = density_coverage(*features)
    return {extractor.metric(name): value for name, value in found.items()}


def left_out(real: FeatureSummary, fake: FeatureSummary, extractor: Extractor) -> dict[str, str]:
    """Metrics for which the sets are too small, each with what it needs."""
    return {extractor.metric(name): why for name, why in _too_few(real, fake).items()}


def _too_few(real: FeatureSummary, fake: FeatureSummary) -> dict[str, str]:
    found: dict[str, str] = {}

    def needs(names: str, least: tuple[int, int], have: tuple[int, int], what: str) -> None:
        if have[0] < least[0] or have[1] < least[1]:
            each = f"{least[0]} real and {least[1]} other images, {what}"
            for name in names.split():
                found[name] = f"needs at least {each}; there are {have[0]} and {have[1]}"

    # The covariance of D features of fewer than D + 1 images is singular.
    for name, a, b in (("FID", real.pooled, fake.pooled), ("sFID", real.spatial, fake.spatial)):
        if a is not None and b is not None:
            dim = len(b.mean)
            what = f"for the covariance of {dim} features"
            needs(name, (dim + 1, dim + 1), (a.images, b.images), what)
    if fake.inception_score is not None:
        needs("IS", (0, 1), (real.count, fake.count), "for a score")
    if real.features is not None and fake.features is not None:
        have = len(real.features), len(fake.features)
        needs("KID", (2, 2), have, "for the distances within each set")
        k = MANIFOLD_K + 1
        needs("precision recall", (k, k), have, f"for {MANIFOLD_K} nearest neighbours")
        needs("density coverage", (DENSITY_K + 1, 1), have, f"for {DENSITY_K} nearest neighbours")
    return found


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^(1/2)) (arXiv 1706.08500). The trace of the root of C C' is
    the sum of the roots of the eigenvalues of the symmetric C^(1/2) C' C^(1/2), which are real, and
    never far below zero."""
    mean, covariance = a.mean.to(b.mean.device), a.covariance.to(b.mean.device)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ b.covariance @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    means = (mean - b.mean).square().sum()
    distance = means + covariance.trace() + b.covariance.trace() - 2 * trace
    return max(0.0, distance.item())


def kernel_distance(real: Tensor, fake: Tensor, subsets: int = 100, size: int = 1000) -> float:
    """Mean of the unbiased squared MMD with the kernel (x·y / D + 1)³ (arXiv 1801.01401) of random
    subsets of the features [N, D] and [M, D], the same ones in every call; sets of no more than
    `size` features are compared whole."""
    size = min(size, len(real), len(fake))
    if size == len(real) == len(fake):
        subsets = 1
    rng = torch.Generator().manual_seed(0)
    distances = []
    for _ in range(subsets):
        x, y = (f[torch.randperm(len(f), generator=rng)[:size].to(f.device)] for f in (real, fake))
        distances.append(poly_mmd(x.double(), y.double()))
    return torch.stack(distances).mean().item()


def precision_recall(real: Tensor, fake: Tensor, k: int = MANIFOLD_K) -> tuple[float, float]:
    """Shares of the fake within the real manifold and the reverse (arXiv 1904.06991): the union of
    the balls around a set's points that reach to the k-th nearest of the others."""
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
    """Share of generated images [N, D] whose own real image, `target` [N] of the candidates [M, D],
    is among the k nearest by cosine."""
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
    return (torch.cdist(rows.double(), b.double()) for rows in a.split(1024))
