"""The residual quantizer: several codes a place, of any quantizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lgpl.errors import UserError
from lgpl.tokenizer import BSQ, FSQ, IBQ, Quantizer, ResidualQuantizer, VectorQuantizer

KINDS: dict[str, Callable[[], Quantizer]] = {
    "VQ": partial(VectorQuantizer, 32, 4, l2_norm=False),
    "normalised VQ": partial(VectorQuantizer, 32, 4),
    "FSQ": partial(FSQ, [5, 5, 4]),
    "BSQ": partial(BSQ, 6),
    "IBQ": partial(IBQ, 32, 4),
}


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_lookup_gives_back_the_features_to_the_bit(kind: str, depth: int) -> None:
    quantizer = ResidualQuantizer(KINDS[kind], depth)
    z = torch.randn(2, quantizer.dim, 3, 5, requires_grad=True)
    quantized = quantizer(z)
    shape = (2, 3, 5) if depth == 1 else (2, depth, 3, 5)
    assert quantized.codes.shape == shape and quantized.codes.max() < quantizer.codebook_size
    assert torch.equal(quantizer.lookup(quantized.codes), quantized.z)
    quantized.z.sum().backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0


def test_depth_one_is_the_quantizer_itself() -> None:
    torch.manual_seed(0)
    alone = VectorQuantizer(32, 4)
    inside = ResidualQuantizer(lambda: alone, 1)
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    grads = []
    for quantizer in (alone, inside):
        quantized = quantizer(z)
        (grad,) = torch.autograd.grad((quantized.z**2).sum() + quantized.loss, z)
        grads.append((quantized.z, quantized.codes, quantized.loss, grad))
    for mine, its in zip(*grads, strict=True):
        assert torch.equal(mine, its)


def test_each_depth_comes_nearer() -> None:
    """With codebooks of k-means of what the depths before have left."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(
        partial(VectorQuantizer, 16, 4, l2_norm=False, kmeans_iterations=5), 4
    )
    z = torch.randn(4, 4, 8, 8)
    quantizer.observe(z, quantizer(z).codes)
    codes = quantizer(z).codes
    errors = [
        (sum(q.lookup(codes[:, i]) for i, q in enumerate(quantizer.quantizers[:n])) - z).square()
        for n in range(1, 5)
    ]
    means = [error.mean().item() for error in errors]
    assert means == sorted(means, reverse=True) and means[3] < means[0] / 4


def test_the_straight_gradient_reaches_the_features_once() -> None:
    quantizer = ResidualQuantizer(partial(VectorQuantizer, 32, 4, l2_norm=False), 3)
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(z).z.sum(), z)
    assert torch.allclose(grad, torch.ones_like(z))


def test_revived_codes_are_counted_for_each_depth() -> None:
    quantizer = ResidualQuantizer(partial(VectorQuantizer, 64, 4, revive_after=1), 2)
    z = torch.randn(1, 4, 2, 2)
    found = quantizer.observe(z, quantizer(z).codes)
    assert set(found) == {"revived/0", "revived/1"} and min(found.values()) > 0


@pytest.mark.parametrize("depth", [0, 9])
def test_depths_that_are_none(depth: int) -> None:
    with pytest.raises(UserError, match=f"quantizer.depth must be from 1 to 8, got {depth}"):
        ResidualQuantizer(partial(VectorQuantizer, 32, 4), depth)
