"""Autoencoders of diffusers as baselines: what they are given, what is refused, the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor, nn

from lgpl.cli import main
from lgpl.errors import UserError
from lgpl.tokenizer.baseline import Baseline, load_baseline
from tests.shards import EMOJI_VAL

with_diffusers = pytest.mark.skipif(
    not RequirementCache("diffusers"), reason="needs pip install 'lgpl[baselines]'"
)
COMMON = (
    *("evaluate", "reconstruction", "--data", EMOJI_VAL, "--lpips", "none", "--device", "cpu"),
    *("--extractor", "tests.metrics.pixels.Pixels"),
)


class Clamped(nn.Module):
    """Gives back what lies between two values, with the noise of the image's rng."""

    def __init__(self, low: float, high: float, noise: float = 0.0) -> None:
        super().__init__()
        self.range, self.noise = (low, high), noise

    def forward(self, image: Tensor, sample_posterior: bool, generator: list[Any]) -> Any:
        assert sample_posterior and len(generator) == len(image)
        noise = [torch.randn(image.shape[1:], generator=rng) for rng in generator]
        return SimpleNamespace(sample=image.clamp(*self.range) + self.noise * torch.stack(noise))


def images() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_rng_of_an_image_is_its_number_in_whatever_batch() -> None:
    baseline = Baseline("x", Clamped(-1, 1, noise=0.1), 8)
    whole = baseline(images(), torch.arange(4))
    halves = [baseline(images()[2:], torch.tensor([2, 3])), baseline(images()[:2], torch.arange(2))]
    assert torch.equal(torch.cat(halves[::-1]), whole)
    assert not torch.equal(whole[0] - images()[0], whole[1] - images()[1])


def test_another_scaling_is_found_by_its_reconstructions() -> None:
    Baseline("x", Clamped(-1, 1), 8)(images(), torch.arange(4))
    Baseline("x", Clamped(0, 0), 8)(images(), torch.arange(4))  # grey, on whatever scaling
    with pytest.raises(UserError, match=r"x is of another scaling: .* error of 0 on \[0, 1\]"):
        Baseline("x", Clamped(0, 1), 8)(images(), torch.arange(4))


def test_sides_must_be_whole_positions() -> None:
    with pytest.raises(UserError, match=r"image of 16x12 px: .* multiples of 8, for x\."):
        Baseline("x", Clamped(-1, 1), 8)(images()[..., :12, :], torch.arange(4))


@pytest.fixture
def vae(tmp_path: Path) -> str:
    """A folder of a tiny AutoencoderKL of random weights, fourfold in downsampling."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 8], norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


@with_diffusers
def test_the_report_of_a_baseline(vae: str, tmp_path: Path) -> None:
    import diffusers

    from lgpl.data.transforms import normalize
    from lgpl.metrics import Similarity
    from lgpl.metrics.images import open_images

    out = tmp_path / "rfid.json"
    main([*COMMON, "--baseline", vae, "--image-size", "32", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["baseline"] == vae and report["model"].startswith("AutoencoderKL of diffusers ")
    assert report["protocol"] == "rfid" and report["N"] == 93 and "checkpoint" not in report
    assert not any("codebook" in name for name in report["metrics"])

    model, pairs = diffusers.AutoencoderKL.from_pretrained(vae).eval(), Similarity(None)
    first = 0
    for batch in open_images(EMOJI_VAL, (32, 32)).batches(16):
        with torch.inference_mode():
            posterior = model.encode(normalize(batch)).latent_dist
            noise = [
                torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(first + i))
                for i in range(len(batch))
            ]
            latents = posterior.mean + posterior.std * torch.stack(noise)
            pairs.update(normalize(batch), model.decode(latents).sample)
        first += len(batch)
    by_hand = pairs.compute()
    for name, value in by_hand.items():
        assert report["metrics"][name] == pytest.approx(value, rel=1e-4)


@with_diffusers
def test_the_consistency_decoder(tmp_path: Path) -> None:
    """Which draws noise when it decodes, too."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.ConsistencyDecoderVAE(
        encoder_block_out_channels=[8, 8], encoder_down_block_types=["DownEncoderBlock2D"] * 2,
        encoder_norm_num_groups=4, decoder_block_out_channels=[8, 8], decoder_norm_num_groups=4,
        decoder_down_block_types=["ResnetDownsampleBlock2D"] * 2,
        decoder_up_block_types=["ResnetUpsampleBlock2D"] * 2, decoder_layers_per_block=1,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    baseline = load_baseline(str(tmp_path))
    assert baseline.downsampling == 2
    whole = baseline(images(), torch.arange(4))
    halves = [baseline(images()[2:], torch.tensor([2, 3])), baseline(images()[:2], torch.arange(2))]
    assert torch.allclose(torch.cat(halves[::-1]), whole, atol=1e-5)
    again = baseline(images(), torch.arange(1, 5))
    assert (again - whole).abs().mean() > 0.01


@with_diffusers
def test_what_is_no_baseline_is_named(
    vae: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = (*COMMON, "--out", str(tmp_path / "a.json"), "--baseline")
    assert "multiples of 4" in fails(*command, vae, "--image-size", "30")
    said = fails(*command, str(tmp_path / "nowhere"), "--image-size", "32")
    assert "nowhere' cannot be loaded: " in said
    said = fails(*command, "no-such/vae", "--image-size", "32")
    assert said.endswith("it is not in the cache, and the hub cannot be reached.")
    config = Path(vae) / "config.json"
    described = json.loads(config.read_text())
    config.write_text(json.dumps({**described, "_class_name": "UNet2DModel"}))
    said = fails(*command, vae, "--image-size", "32")
    assert "holds UNet2DModel; it should be AutoencoderKL or ConsistencyDecoderVAE" in said
    config.write_text(json.dumps(described))
    weights = Path(vae) / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))  # only pickles have that name
    assert "cannot be loaded: " in fails(*command, vae, "--image-size", "32")


def test_without_diffusers_and_two_ways_at_once(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*COMMON, "--out", str(tmp_path / "a.json"), "--image-size", "32")
    said = "Give one of --checkpoint, --baseline and --samples."
    assert fails(*command) == fails(*command, "--baseline", "x", "--samples", "y") == said
    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda package: False)
    said = fails(*command, "--baseline", "stabilityai/sd-vae-ft-mse")
    assert said == "--baseline needs diffusers: pip install 'lgpl[baselines]'."
