"""Every quantizer: codes and back, gradients, and the care of the codebook."""

from __future__ import annotations

import pytest
import torch

from lgpl.errors import UserError
from lgpl.tokenizer import Quantizer, VectorQuantizer

QUANTIZERS = {
    "l2": lambda: VectorQuantizer(128, 8),
    "euclidean": lambda: VectorQuantizer(128, 8, l2_norm=False),
    "entropy": lambda: VectorQuantizer(128, 8, entropy_weight=0.1),
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    return QUANTIZERS[request.param]()


def test_round_trip(quantizer: Quantizer) -> None:
    z = torch.randn(3, quantizer.dim, 4, 5)
    quantized = quantizer(z)
    assert quantized.codes.shape == (3, 4, 5)
    assert quantized.codes.min() >= 0 and quantized.codes.max() < quantizer.codebook_size
    assert torch.allclose(quantizer.lookup(quantized.codes), quantized.z, atol=1e-6)
    assert torch.equal(quantizer(quantizer.lookup(quantized.codes)).codes, quantized.codes)


def test_gradients_reach_input_and_codebook(quantizer: Quantizer) -> None:
    z = torch.randn(3, quantizer.dim, 4, 5, requires_grad=True)
    quantized = quantizer(z)
    (quantized.z.sum() + quantized.loss).backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_nearest_code_wins() -> None:
    quantizer = VectorQuantizer(64, 4)
    vectors = quantizer.vectors().detach()
    near = (vectors[10] * 3 + 0.01).view(1, 4, 1, 1)  # the direction counts, not the length
    assert quantizer(near).codes.item() == 10


def test_kmeans_start_and_revival_use_the_whole_codebook() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 4, kmeans_iterations=10, revive_after=3)
    centres = torch.nn.functional.normalize(torch.randn(64, 4), dim=-1)

    def features() -> torch.Tensor:
        z = centres[torch.randint(64, (2, 16, 16))] + 0.02 * torch.randn(2, 16, 16, 4)
        return z.permute(0, 3, 1, 2)

    used = []
    for _ in range(30):
        z = features()
        codes = quantizer(z).codes
        used.append(len(codes.unique()) / 64)
        quantizer.observe(z, codes)
    assert used[0] < 0.9  # the uniform start leaves codes out
    assert max(used[-5:]) > 0.95


def test_revival_replaces_only_dead_codes() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4, revive_after=2)
    z = quantizer.lookup(torch.zeros(1, 2, 2, dtype=torch.int64)).detach()
    before = quantizer.codebook.weight.clone()
    assert quantizer.observe(z, quantizer(z).codes) == {"revived": 0.0}
    assert quantizer.observe(z, quantizer(z).codes) == {"revived": 7.0}
    changed = (quantizer.codebook.weight != before).any(-1)
    assert changed.tolist() == [False] + [True] * 7


def test_kmeans_of_too_few_features() -> None:
    quantizer = VectorQuantizer(64, 4, kmeans_iterations=1)
    z = torch.randn(1, 4, 2, 2)
    with pytest.raises(UserError, match=r"codebook_size = 64 features .* holds 4"):
        quantizer.observe(z, quantizer(z).codes)
