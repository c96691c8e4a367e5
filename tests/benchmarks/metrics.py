"""Time and memory of FID's statistics of 50 000 images, beside torchmetrics and scipy.

    python -m tests.benchmarks.metrics [--images 50000] [--features 2048] [--rounds 3]

Random features, 500 at a time, are what an extractor would hand over. Each arm sums them in a
process of its own and says the most memory that it held so far, less what stood before; then the
distance of two such sets is computed, the arms taking turns. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

from lgpl.metrics.comparison import frechet_distance
from lgpl.metrics.summary import FeatureGaussian, Gaussian

BATCH = 500
MARKS = (0.2, 0.5, 1.0)  # of the images: where memory is looked at


class Given(nn.Module):
    """torchmetrics' way to features of one's own: here the images are the features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, image: Tensor) -> Tensor:
        return image


def lgpls(features: int) -> Callable[[Tensor], None]:
    return FeatureGaussian(features).update


def torchmetrics(features: int) -> Callable[[Tensor], None]:
    metric = FrechetInceptionDistance(feature=Given(features))
    return lambda batch: metric.update(batch, real=True)


ARMS: dict[str, Callable[[int], Callable[[Tensor], None]]] = {
    "lgpl": lgpls,
    "torchmetrics": torchmetrics,
}


def stream(images: int, features: int, seed: int = 0) -> Iterator[Tensor]:
    """Batches of correlated features, drawn from one matrix that is made beforehand."""
    rng = torch.Generator().manual_seed(seed)
    pool = torch.randn(4 * BATCH, features, generator=rng)
    pool[:, 1:] += pool[:, :-1] / 2
    for _ in range(0, images, BATCH):
        yield pool[torch.randint(len(pool), (BATCH,), generator=rng)] + 0.3


def peak() -> float:
    """MiB that this process has held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summed(arm: str, images: int, features: int) -> tuple[float, list[float]]:
    """Seconds in `update` alone, and the MiB at each mark."""
    torch.set_num_threads(1)
    for _ in stream(2 * BATCH, features):  # what it takes is none of the arm's
        pass
    before, update = peak(), ARMS[arm](features)
    marks = [round(mark * images / BATCH) for mark in MARKS]
    seconds, held = 0.0, []
    for index, batch in enumerate(stream(images, features), 1):
        start = time.perf_counter()
        update(batch)
        seconds += time.perf_counter() - start
        if index in marks:
            held.append(peak() - before)
    return seconds, held


def alone(arm: str, images: int, features: int) -> tuple[float, list[float]]:
    """`summed` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(summed, (arm, images, features))


def of_scipy(a: Gaussian, b: Gaussian) -> float:
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    covariances = (a.covariance + b.covariance).numpy()
    distance = (a.mean - b.mean).square().sum().item()
    return distance + float(np.trace(covariances - 2 * root))


def of_torchmetrics(a: Gaussian, b: Gaussian) -> float:
    return _compute_fid(a.mean, a.covariance, b.mean, b.covariance).item()


DISTANCES: dict[str, Callable[[Gaussian, Gaussian], float]] = {
    "lgpl": frechet_distance,
    "torchmetrics": of_torchmetrics,
    "scipy": of_scipy,
}


def gaussian(images: int, features: int, seed: int) -> Gaussian:
    metric = FeatureGaussian(features)
    for batch in stream(images, features, seed):
        metric.update(batch)
    return metric.compute()


def main(args: list[str] | None = None) -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--images", type=int, default=50_000)
    p.add_argument("--features", type=int, default=2048)
    p.add_argument("--rounds", type=int, default=3)
    options = p.parse_args(args)
    size: tuple[Any, ...] = (options.images, options.features)
    runs = {name: [] for name in ARMS}  # type: dict[str, list[tuple[float, list[float]]]]
    for _ in range(options.rounds):
        for name in ARMS:
            runs[name].append(alone(name, *size))
    print(f"{'statistics, one thread':24}{'s':>8}{'ratio':>8}" + "".join(
        f"{f'MiB at {round(mark * options.images)}':>16}" for mark in MARKS
    ))  # fmt: skip
    times = {name: statistics.median(seconds for seconds, _ in of) for name, of in runs.items()}
    for name, of in runs.items():
        memory = "".join(f"{mib:16.0f}" for mib in of[0][1])
        print(f"{name:24}{times[name]:8.2f}{times[name] / times['lgpl']:8.2f}{memory}")
    sets = [gaussian(*size, seed) for seed in (0, 1)]
    spent: dict[str, list[float]] = {name: [] for name in DISTANCES}
    found = {}
    for _ in range(options.rounds):
        for name, distance in DISTANCES.items():
            start = time.perf_counter()
            found[name] = distance(sets[0], sets[1])
            spent[name].append(time.perf_counter() - start)
    print(f"\n{'distance':24}{'s':>8}{'ratio':>8}{'value':>16}")
    for name, seconds in spent.items():
        t = statistics.median(seconds)
        print(f"{name:24}{t:8.2f}{t / statistics.median(spent['lgpl']):8.2f}{found[name]:16.6f}")


if __name__ == "__main__":
    main()
