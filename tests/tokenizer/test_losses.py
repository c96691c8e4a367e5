"""The tokenizer's objective, term by term."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lgpl.tokenizer import LPIPS, Autoencoder, PatchGAN, TokenizerLoss
from lgpl.tokenizer.losses import LeCam, discriminator_adversarial_loss, generator_adversarial_loss


def test_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    loss = discriminator_adversarial_loss(real, fake, "hinge")
    assert loss.item() == pytest.approx(0.5 * (0.5 + 1.0))


def test_non_saturating_is_binary_cross_entropy_of_the_logits() -> None:
    real, fake = torch.randn(8), torch.randn(8)
    expected = 0.5 * (
        F.binary_cross_entropy_with_logits(real, torch.ones(8))
        + F.binary_cross_entropy_with_logits(fake, torch.zeros(8))
    )
    assert torch.allclose(discriminator_adversarial_loss(real, fake, "non-saturating"), expected)


@pytest.mark.parametrize("kind", ["hinge", "non-saturating"])
def test_generator_wants_to_look_real(kind: str) -> None:
    fake = torch.zeros(4, requires_grad=True)
    generator_adversarial_loss(fake, kind).backward()
    assert (fake.grad < 0).all()


def test_patchgan_has_the_receptive_field_of_70_pixels() -> None:
    disc = PatchGAN()
    for module in disc.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().track_running_stats = False
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    plain = nn.Sequential(*(m for m in disc.layers if not isinstance(m, nn.BatchNorm2d)))
    plain(image)[0, 0, 7, 7].backward()
    touched = image.grad.abs().sum((0, 1)) > 0
    assert touched.any(0).sum() == 70 and touched.any(1).sum() == 70
    assert not dict(disc.named_buffers())  # nothing that could differ between ranks


def test_adaptive_weight_balances_the_gradients() -> None:
    torch.manual_seed(0)
    last = nn.Conv2d(3, 3, 1)
    disc = PatchGAN(8, 1)
    image, features = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    loss = TokenizerLoss(discriminator=disc, adaptive_weight=True, adversarial_weight=1.0)
    made = last(features)
    reconstruction, _ = loss.reconstruction(made, image, torch.zeros(()))
    autoencoder = cast(Autoencoder, SimpleNamespace(last_layer=last.weight))
    term, parts = loss.adversarial_term(made, reconstruction, autoencoder)
    norm_r = torch.autograd.grad(reconstruction, last.weight, retain_graph=True)[0].norm()
    norm_a = torch.autograd.grad(term, last.weight)[0].norm()
    assert norm_a.item() == pytest.approx(norm_r.item(), rel=1e-2)
    assert parts["adversarial_weight"] != 1


def test_lecam_pulls_logits_to_the_averages_of_the_other_kind() -> None:
    lecam = LeCam(decay=0.5)
    real, fake = torch.tensor([3.0, 5.0], requires_grad=True), torch.tensor([-1.0, -3.0])
    first = lecam(real, fake)
    assert (lecam.real.item(), lecam.fake.item()) == (2, -1)  # half way from 0
    assert first.item() == pytest.approx((16 + 36) / 2 + (9 + 25) / 2)
    first.backward()
    assert real.grad is not None and real.grad.tolist() == [4, 6]  # towards -1
    lecam(real, fake)
    assert (lecam.real.item(), lecam.fake.item()) == (3, -1.5)


def test_lecam_is_part_of_the_discriminator_loss_and_of_checkpoints_where_asked_for() -> None:
    torch.manual_seed(0)
    image, made = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    without = TokenizerLoss(discriminator=PatchGAN(8, 1))
    assert not any("lecam" in name for name in without.state_dict())  # older checkpoints still fit
    with_it = TokenizerLoss(discriminator=without.discriminator, lecam_weight=0.5)
    plain, _ = without.discriminator_loss(made, image)
    total, parts = with_it.discriminator_loss(made, image)
    assert total.item() == pytest.approx(plain.item() + 0.5 * parts["lecam"].item())

    resumed = TokenizerLoss(discriminator=PatchGAN(8, 1), lecam_weight=0.5)
    resumed.load_state_dict(with_it.state_dict())
    figures = [loss.discriminator_loss(made, image)[0] for loss in (with_it, resumed)]
    assert torch.equal(*figures) and figures[0] != total


def test_weights_and_parts() -> None:
    loss = TokenizerLoss(pixel="l1", pixel_weight=2.0, codebook_weight=3.0)
    total, parts = loss.reconstruction(
        torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), torch.tensor(0.5)
    )
    assert total.item() == pytest.approx(2 * 1 + 3 * 0.5) and parts["l1"].item() == 1


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_with_published_weights(net: str) -> None:
    lpips = LPIPS(net)  # type: ignore[arg-type]
    torch.manual_seed(0)
    image = F.interpolate(torch.rand(2, 3, 8, 8) * 2 - 1, (64, 64), mode="bicubic").clamp(-1, 1)
    noise = torch.randn_like(image)
    distances = [lpips(image, (image + s * noise).clamp(-1, 1)).mean() for s in (0, 0.1, 0.3, 0.9)]
    assert distances[0] == 0 and sorted(distances) == distances and distances[3] > 0.2
    assert not lpips.state_dict() and not lpips.load_state_dict({}).missing_keys
    assert not any(p.requires_grad for p in lpips.parameters())


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_heads_are_those_of_torchmetrics(net: str) -> None:
    from pathlib import Path

    import torchmetrics

    folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
    heads = torch.load(folder / f"{net}.pth", weights_only=True, map_location="cpu")
    for i, head in enumerate(LPIPS(net).heads):  # type: ignore[arg-type]
        assert torch.equal(head, heads[f"lin{i}.model.1.weight"].flatten())


def test_lpips_gradient_flows_to_the_reconstruction() -> None:
    image = torch.rand(1, 3, 64, 64)
    made = torch.rand(1, 3, 64, 64, requires_grad=True)
    LPIPS("alex")(made, image).sum().backward()
    assert made.grad.abs().sum() > 0
