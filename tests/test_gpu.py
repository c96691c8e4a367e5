"""The same code on a CUDA device; the CPU tests of each part are its reference."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lgpl.cli import main
from lgpl.generator import Sampling, generate
from lgpl.metrics import ImageSet, compute_metrics
from lgpl.metrics.extractors import ModuleFeatures
from tests.conftest import TINY, TINY_TOKENIZER, Chain, fit_generator, logs, scalars
from tests.generator.test_decoders import LABELS
from tests.generator.test_training import BATCH, module
from tests.generator.test_transformer import small
from tests.metrics.pixels import Pixels
from tests.models import on, text
from tests.tokenizer.test_quantizers import QUANTIZERS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_greedy_codes_equal_the_cpu() -> None:
    model, sampling = small(), Sampling(guidance=2.0, temperature=0.0)
    expected = generate(model, LABELS, sampling=sampling)
    made = generate(model.cuda(), on(LABELS, "cuda"), sampling=sampling)
    assert torch.equal(made.cpu(), expected)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizer_gives_the_codes_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name]()
    z = torch.randn(4, quantizer.dim, 16, 16).bfloat16()
    expected = quantizer(z).codes
    quantizer.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        made = quantizer(z.cuda())
        assert torch.equal(quantizer.lookup(made.codes), made.z)
    assert (made.codes.cpu() == expected).float().mean() > 0.99  # all but ties within rounding


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the last checkpoint, all of them finite."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    weights: dict[str, torch.Tensor] = checkpoint["state_dict"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    return weights


def test_tokenizer_with_gan_trains_in_bf16(chain: Chain, tmp_path: Path) -> None:
    """Its losses are nearly those of the CPU in float32, and both networks move."""
    main(
        ["fit", "-c", "configs/tokenizer/emoji.yaml", "-c", "configs/trainer/gpu.yaml", *TINY,
         *TINY_TOKENIZER, *logs(tmp_path), "--data.epoch_samples", "64",
         "--trainer.max_epochs", "1",
         "--model.init_args.loss.init_args.discriminator", "lgpl.tokenizer.PatchGAN",
         "--model.init_args.discriminator_start", "1"]
    )  # fmt: skip
    expected, found = scalars(chain.folder / "tokenizer"), scalars(tmp_path / "tokenizer")
    for name in ("train/l2", "train/lpips", "val/psnr"):
        assert found[name] == pytest.approx(expected[name], rel=0.1)
    assert math.isfinite(found["train/discriminator/loss"])
    before = torch.load(chain.tokenizer, weights_only=True)["state_dict"]
    weights = trained(tmp_path / "tokenizer")
    name = "autoencoder.decoder.conv_out.weight"
    assert not torch.equal(weights[name], before[name])  # what the discriminator's loss adds


def test_compiled_and_recomputed_blocks_train_alike() -> None:
    options = {"size": (4, 4, 256), "dropout": 0.0, "token_dropout": 0.0, "condition_dropout": 0.0}
    plain, *others = (
        module(**options),
        module(compile=True, **options),
        module(activation_checkpointing=True, **options),
        module(compile=True, activation_checkpointing=True, **options),
    )
    batch = {name: tensor.cuda() for name, tensor in BATCH.items()}
    with torch.autocast("cuda", torch.bfloat16):
        expected = plain.cuda().loss(batch).mean().item()
        for other in others:
            loss = other.cuda().loss(batch).mean()
            loss.backward()
            assert loss.item() == pytest.approx(expected, rel=1e-2)


def test_padded_text_takes_the_flash_kernel() -> None:
    """No mask comes near the kernel, whatever the lengths."""
    model = small(text_features=8, text_length=6).cuda().to(torch.bfloat16)
    features = torch.randn(3, 6, 8, device="cuda", dtype=torch.bfloat16)
    codes = BATCH["codes"].flatten(1).cuda()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        logits = model(codes, text(features, torch.tensor([0, 3, 6], device="cuda")))
    assert logits.isfinite().all()


def test_generator_trains_in_bf16(chain: Chain, tmp_path: Path) -> None:
    gpu = ("-c", "configs/trainer/gpu.yaml")
    fit_generator(tmp_path, "stage2", chain.tokenizer, chain.codes, *gpu,
                  "--model.init_args.init_from", chain.stage1)  # fmt: skip
    expected, found = scalars(chain.folder / "stage2"), scalars(tmp_path / "stage2")
    for name in ("train/loss", "val/loss"):
        assert found[name] == pytest.approx(expected[name], rel=0.02)
    before = torch.load(chain.stage1, weights_only=True)["state_dict"]
    weights = trained(tmp_path / "stage2")
    assert not torch.equal(
        weights["transformer.output.weight"], before["transformer.output.weight"]
    )


def test_metrics_are_those_of_the_cpu() -> None:
    """Statistics are of float64 on either device: the extractor's rounding alone differs."""
    images = torch.randint(256, (80, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    found = []
    for device in ("cpu", "cuda"):
        extractor = ModuleFeatures(Pixels()).to(device)
        sets = []
        for part in (images, images.flip(0) // 2):
            made = ImageSet(extractor, len(part))
            made.update(part.to(device), torch.arange(len(part)))
            sets.append(made.compute())
        found.append(compute_metrics(sets[0], sets[1], extractor))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
