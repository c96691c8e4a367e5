"""A set of images in the features of one extractor: sums that are streamed, over all ranks."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lgpl.codes import ImageSize
from lgpl.data.transforms import normalize
from lgpl.metrics.extractors import Extractor, resize

SPLITS = 10  # of the inception score
KEPT = 50_000  # images; ADM's evaluator keeps the features of as many samples


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] in float64 of the features, and the number of images."""

    mean: Tensor
    covariance: Tensor
    images: int


class FeatureGaussian(Metric):
    """Sums of D features and of their products, in float64: the memory does not grow."""

    total: Tensor
    products: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
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
        return Gaussian(mean, scatter / (self.count - 1).clamp(min=1), int(self.count))


class FeatureBank(Metric):
    """The features of the images of a set whose number is below `keep`."""

    features: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep
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


class StreamedInceptionScore(Metric):
    """exp of the mean divergence of p(class | image) from p(class) (arXiv 1606.03498), over splits
    in the order of the images, whose numbers lie below `total`."""

    entropy: Tensor
    marginal: Tensor
    count: Tensor

    def __init__(self, classes: int, total: int) -> None:
        super().__init__()
        self.total = total
        self.add_state("entropy", torch.zeros(SPLITS, dtype=torch.float64), "sum")
        self.add_state("marginal", torch.zeros(SPLITS, classes, dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros(SPLITS, dtype=torch.float64), "sum")

    def update(self, logits: Tensor, number: Tensor) -> None:
        """Add logits [B, K] of the images of these numbers [B]."""
        log_p = logits.double().log_softmax(-1)
        p = log_p.exp()
        split = (number * SPLITS // self.total).clamp(max=SPLITS - 1)
        self.entropy = self.entropy.index_add(0, split, (p * log_p).sum(-1))
        self.marginal = self.marginal.index_add(0, split, p)
        self.count = self.count.index_add(0, split, torch.ones_like(split, dtype=torch.float64))

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits."""
        p = self.marginal / self.count[:, None]
        divergence = self.entropy / self.count - (p * p.clamp(min=1e-300).log()).sum(-1)
        scores = divergence[self.count > 0].exp()
        return scores.mean().item(), scores.std(correction=0).item()


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
    """Summarises images as they come, those of all ranks together, `total` in number."""

    def __init__(
        self,
        extractor: Extractor,
        total: int,
        keep: int = KEPT,  # images whose features are kept, for the metrics of neighbours
        numbers: int | None = None,  # the images' lie below it, evenly; None: below `total`
        size: ImageSize | None = None,  # to which images are resized; None leaves them as they are
    ) -> None:
        super().__init__()
        self.extractor, self.size = extractor, size
        blank = torch.zeros(1, 3, 64, 64, device=extractor.device)
        pooled, spatial, logits = extractor.features(blank)
        numbers = numbers or total
        self.pooled = FeatureGaussian(pooled.shape[1])
        self.bank = FeatureBank(keep * numbers // total)
        self.spatial, self.score = None, None
        if spatial is not None:
            self.spatial = FeatureGaussian(spatial.shape[1])
        if logits is not None:
            self.score = StreamedInceptionScore(logits.shape[1], numbers)
        self.to(extractor.device)
        # An empty list, of a rank without an image, has no shape and could not be gathered.
        self.bank.update(pooled[:0], torch.empty(0, dtype=torch.int64, device=pooled.device))

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
        spatial = None if self.spatial is None else self.spatial.compute()
        score = None if self.score is None else self.score.compute()
        return FeatureSummary(self.pooled.compute(), spatial, self.bank.compute(), score)
