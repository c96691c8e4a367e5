"""A set of images in the features of one extractor, and the metrics that compare two sets."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lgpl.codes import ImageSize
from lgpl.data.transforms import normalize
from lgpl.errors import UserError
from lgpl.metrics import neighbours
from lgpl.metrics.extractors import Extractor, resize
from lgpl.metrics.gaussian import FeatureGaussian, Gaussian, frechet_distance
from lgpl.metrics.inception_score import StreamedInceptionScore

log = logging.getLogger(__name__)


@dataclass
class FeatureSummary:
    """Statistics of a set of images, from which the metrics are computed."""

    pooled: Gaussian
    spatial: Gaussian | None = None  # where the extractor has spatial features
    features: Tensor | None = None  # of the first images [n, D], where they are known
    inception_score: tuple[float, float] | None = None  # mean and deviation, of a classifier

    @property
    def count(self) -> int:
        return self.pooled.images


class ImageSet(nn.Module):
    """Summarises images as they come, those of all ranks together.

    Args:
        total: number of images that will come, over all ranks.
        keep: number of images whose features are kept, for the metrics of neighbours; ADM's
            evaluator takes those of all its 50 000 samples.
        numbers: the images' numbers lie below it, evenly; by default they are those below `total`.
        size: height and width to which images are resized, pixels; None leaves them as they are.
        name: of the set, for messages.

    Raises:
        UserError: they are too few for the covariance.
    """

    def __init__(
        self,
        extractor: Extractor,
        total: int,
        keep: int = 50_000,
        numbers: int | None = None,
        size: ImageSize | None = None,
        name: str = "the set",
    ) -> None:
        super().__init__()
        self.extractor, self.size = extractor, size
        blank = torch.zeros(1, 3, 64, 64, device=extractor.device)
        pooled, spatial, logits = extractor.features(blank)
        metric, dim = extractor.metric("FID"), pooled.shape[1]
        if total <= dim:  # the covariance of D features of fewer than D + 1 images is singular
            raise UserError(
                f"{metric} needs at least {dim + 1} images, for the covariance of {dim} features; "
                f"{name} has {total}."
            )
        numbers = numbers or total
        self.pooled = FeatureGaussian(dim)
        self.bank = neighbours.FeatureBank(dim, keep * numbers // total)
        self.spatial, self.score = None, None
        if spatial is not None and total > spatial.shape[1]:
            self.spatial = FeatureGaussian(spatial.shape[1])
        elif spatial is not None:
            log.warning(
                "No s%s: %d images are too few for the covariance of %d spatial features.",
                *(metric, total, spatial.shape[1]),
            )
        if logits is not None:
            self.score = StreamedInceptionScore(logits.shape[1], numbers)
        self.to(extractor.device)

    def update(self, image: Tensor, number: Tensor) -> None:
        """Add images [B, 3, H, W], uint8, or in [-1, 1] and rounded as a file would round them, and
        the number of each in the set [B]."""
        if not len(image):
            return
        image = resize(image.to(self.pooled.device), self.size)
        number = number.to(image.device)
        with torch.autocast(image.device.type, enabled=False):
            found = self.extractor.features(normalize(image))
        self.pooled.update(found.pooled)
        self.bank.update(found.pooled, number)
        if self.spatial is not None:
            assert found.spatial is not None
            self.spatial.update(found.spatial)
        if self.score is not None:
            assert found.logits is not None
            self.score.update(found.logits, number)

    def compute(self) -> FeatureSummary:
        """All ranks must call this, also those without an image."""
        # An empty list has no shape, and could not be gathered.
        empty = torch.empty(0, self.bank.dim, device=self.bank.device)
        self.bank.update(empty, torch.empty(0, dtype=torch.int64, device=self.bank.device))
        return FeatureSummary(
            self.pooled.compute(),
            None if self.spatial is None else self.spatial.compute(),
            self.bank.compute(),
            None if self.score is None else self.score.compute(),
        )


def compute_metrics(
    real: FeatureSummary, fake: FeatureSummary, extractor: Extractor
) -> dict[str, float]:
    """Every metric of `fake` against `real` that both allow, by its name.

    Raises:
        UserError: the reference is of other features.
    """
    have, want = len(real.pooled.mean), len(fake.pooled.mean)
    if have != want:
        raise UserError(
            f"The reference is of {have} features, those of {extractor.name} are {want}; make it "
            "with the same extractor."
        )
    found = {"FID": frechet_distance(real.pooled, fake.pooled)}
    if real.spatial is not None and fake.spatial is not None:
        found["sFID"] = frechet_distance(real.spatial, fake.spatial)
    if fake.inception_score is not None:
        found["IS"], found["IS std"] = fake.inception_score
    if real.features is not None and fake.features is not None:
        features = real.features.to(fake.features.device), fake.features
        found["KID"] = neighbours.kernel_distance(*features)
        found["precision"], found["recall"] = neighbours.precision_recall(*features)
        found["density"], found["coverage"] = neighbours.density_coverage(*features)
    return {extractor.metric(name): value for name, value in found.items()}
