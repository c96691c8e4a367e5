"""Cross-entropy by rows: torch's value and gradient, and less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lgpl.generator.loss import ROWS, cross_entropy
from lgpl.training.estimate import LiveBytes


def plain(logits: Tensor, codes: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), codes, reduction="none")


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
def test_equals_torchs(dtype: torch.dtype, near: float) -> None:
    torch.manual_seed(0)
    logits = (4 * torch.randn(ROWS + 100, 500)).to(dtype)
    codes, weight = torch.randint(500, (ROWS + 100,)), torch.rand(ROWS + 100)
    results = []
    for loss in (plain, cross_entropy):
        leaf = logits.clone().requires_grad_()
        losses = loss(leaf, codes)
        (losses * weight).sum().backward()
        assert losses.dtype == torch.float32 and leaf.grad is not None
        results.append((losses, leaf.grad))
    (losses, grad), (ours, our_grad) = results
    assert torch.allclose(ours, losses, rtol=1e-6, atol=1e-6)
    assert torch.allclose(our_grad, grad, rtol=near, atol=1e-6)


def test_far_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 1e4] and logits.grad is not None
    assert logits.grad.tolist() == [[0.0, 0.0], [-1.0, 1.0]]


def test_peak_memory() -> None:
    """In bf16, for 32 images of 256 codes, in sizes of the logits, which are among it."""
    positions, codebook = 32 * 256, 16384

    def peak(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        with FakeTensorMode():
            hidden, head = (torch.empty(n, 8, dtype=torch.bfloat16) for n in (positions, codebook))
            codes = torch.zeros(positions, dtype=torch.int64)
            with LiveBytes(nn.Module()) as live:
                loss(F.linear(hidden, head.requires_grad_()), codes).sum().backward()
        return live.peak / (positions * codebook * 2)

    assert peak(cross_entropy) < 2.4  # their gradient, and some rows in float32
    assert peak(plain) > 5
