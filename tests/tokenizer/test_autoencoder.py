"""VQModel against the original's numbers, the paper's size and its own promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lgpl.errors import UserError
from lgpl.tokenizer import TokenizerModule, VectorQuantizer, VQModel
from lgpl.training import load_module
from tests.golden import GOLDEN, fill, import_golden


def small(**changes: object) -> VQModel:
    options = {"multipliers": (1, 1), "width": 32, "blocks": 1, "z_channels": 32, **changes}
    return VQModel(VectorQuantizer(64, 8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["VQ-16", "VQ-8"])
@torch.inference_mode()
def test_golden_numbers(name: str, tmp_path: Path) -> None:
    """Codes, losses and images of a model that comes out of a released file."""
    golden = GOLDEN[name]
    module = load_module(import_golden(name, tmp_path), "tokenizer")
    assert isinstance(module, TokenizerModule)
    model = module.autoencoder
    x = torch.linspace(-1, 1, 64).expand(64, 64)
    y = x.T
    waves = torch.stack([(3 * x).sin(), (4 * y).cos(), (5 * x * y).sin()])
    image = 0.5 * waves + 0.5 * fill("image", (1, 3, 64, 64), 1.0)

    _, quantized = model(image)
    assert quantized.codes.flatten().tolist() == golden["codes"]
    assert quantized.parts["codebook"].item() == pytest.approx(golden["vq_loss"], rel=1e-4)
    assert quantized.parts["commitment"].item() == pytest.approx(
        golden["commit_loss(beta 0.25)"], rel=1e-4
    )
    assert torch.equal(model.encode(image), quantized.codes)
    decoded = model.decode(quantized.codes)
    corner = decoded[0, :, 0, :4].flatten()
    expected = torch.tensor(golden["decode[0,:,0,:4]"])
    # the file gives six decimals
    assert torch.allclose(corner, expected, rtol=1e-4, atol=1e-6)
    assert decoded.abs().mean().item() == pytest.approx(golden["decode_abs_mean"], rel=1e-4)


def test_paper_size() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in VQModel(VectorQuantizer(), name).parameters()) / 1e6
            for name in ("vq-16", "vq-8")
        }
    assert sizes == {"vq-16": pytest.approx(71.9, abs=0.05), "vq-8": pytest.approx(70, abs=0.5)}


@pytest.mark.parametrize("patch", [1, 2])
def test_shapes_follow_the_downsampling(patch: int) -> None:
    model = small(patch=patch)
    image = torch.zeros(2, 3, 32, 16)
    assert model.downsampling == 2 * patch
    codes = model.encode(image)
    assert codes.shape == (2, 32 // (2 * patch), 16 // (2 * patch))
    assert model.decode(codes).shape == image.shape


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: small().encode(torch.zeros(1, 3, 31, 32)), "multiples of 2"),
        (lambda: small(width=48), "multiple of 32"),
        (lambda: small(multipliers="vq-32"), "vq-16"),
    ],
)
def test_mistakes_are_named(make: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()  # type: ignore[operator]
