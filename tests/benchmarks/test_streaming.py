"""The memory that FID's statistics take does not depend on the number of images."""

from __future__ import annotations

import pytest

from tests.benchmarks.metrics import alone


@pytest.mark.slow
def test_fifty_thousand_images_take_the_memory_of_ten_thousand() -> None:
    _, (first, middle, last) = alone("lgpl", images=50_000, features=2048)
    assert 2048**2 * 8 / 2**20 < first < 400  # MiB: a handful of matrices [D, D] in float64
    assert middle - first < 8 and last - first < 8  # the features themselves would be 312 more
