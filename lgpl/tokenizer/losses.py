"""The tokenizer's objective: reconstruction + perceptual + adversarial + codebook terms, as of
LlamaGen (arXiv 2406.06525, section 2.2), after VQGAN (arXiv 2012.09841, section 3.1)."""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.described import Described
from lgpl.tokenizer.base import Autoencoder

Terms = tuple[Tensor, dict[str, Tensor]]  # a loss, and its terms by name, detached


def discriminator_adversarial_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Of logits. Hinge: mean relu(1 - D(x)) / 2 + mean relu(1 + D(x')) / 2 (arXiv 1705.02894);
    non-saturating: binary cross-entropy, real = 1 and fake = 0 (arXiv 1406.2661), halved too."""
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_adversarial_loss(fake: Tensor, kind: str) -> Tensor:
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


class LeCam(nn.Module):
    """Keeps a discriminator's logits near averages of the other kind's, which decay with each step
    (arXiv 2104.03310, equation 4); that steadies a GAN on few images."""

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.real, self.fake = nn.Buffer(torch.zeros(())), nn.Buffer(torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean (D(x) - average D(x'))^2 + mean (D(x') - average D(x))^2 of logits."""
        means = torch.stack((real.detach().mean(), fake.detach().mean()))
        if dist.is_available() and dist.is_initialized():  # the averages are those of all ranks
            dist.all_reduce(means)
            means /= dist.get_world_size()
        self.real.lerp_(means[0], 1 - self.decay)
        self.fake.lerp_(means[1], 1 - self.decay)
        return (real - self.fake).square().mean() + (fake - self.real).square().mean()


class TokenizerLoss(Described, nn.Module):
    """Weighs the terms of the autoencoder's loss and holds its discriminator.

    Args:
        perceptual: distance of image pairs -> [B]; None leaves the term out.
        discriminator: judges images; None trains without a GAN.
        pixel: `l2` (the paper) or `l1`.
        pixel_weight, perceptual_weight, adversarial_weight, codebook_weight: the weights.
        adversarial: the kind of GAN loss.
        adaptive_weight: scale the adversarial term by the ratio of the gradients' norms at the
            decoder's last layer (arXiv 2012.09841, equation 7).
        lecam_weight: weight of LeCam regularisation in the discriminator's loss; 0 leaves it out.
    """

    def __init__(
        self,
        perceptual: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        pixel: Literal["l2", "l1"] = "l2",
        pixel_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        adversarial_weight: float = 0.5,
        codebook_weight: float = 1.0,
        adversarial: Literal["hinge", "non-saturating"] = "hinge",
        adaptive_weight: bool = False,
        lecam_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.perceptual, self.discriminator = perceptual, discriminator
        self.pixel, self.pixel_weight = pixel, pixel_weight
        self.perceptual_weight, self.codebook_weight = perceptual_weight, codebook_weight
        self.adversarial, self.adversarial_weight = adversarial, adversarial_weight
        self.adaptive_weight, self.lecam_weight = adaptive_weight, lecam_weight
        self.lecam = LeCam() if lecam_weight else None  # so that checkpoints without it still load

    def reconstruction(self, reconstructed: Tensor, image: Tensor, codebook_loss: Tensor) -> Terms:
        """All but the adversarial term, weighted; the images are [B, 3, H, W] in [-1, 1]."""
        distance = F.mse_loss if self.pixel == "l2" else F.l1_loss
        pixel = distance(reconstructed.float(), image)
        parts: dict[str, Tensor] = {self.pixel: pixel.detach()}
        loss = self.pixel_weight * pixel + self.codebook_weight * codebook_loss
        if self.perceptual is not None:
            perceptual = self.perceptual(reconstructed, image).mean()
            parts["lpips"] = perceptual.detach()
            loss = loss + self.perceptual_weight * perceptual
        return loss, parts

    def adversarial_term(
        self, reconstructed: Tensor, reconstruction_loss: Tensor, autoencoder: Autoencoder
    ) -> Terms:
        """The autoencoder's part of the GAN game, weighted."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(reconstructed).float()
        loss = generator_adversarial_loss(logits, self.adversarial)
        weight = loss.new_full((), self.adversarial_weight)
        if self.adaptive_weight:
            last = autoencoder.last_layer
            wanted, present = (
                torch.autograd.grad(term, last, retain_graph=True)[0].norm()
                for term in (reconstruction_loss, loss)
            )
            weight = weight * (wanted / (present + 1e-4)).clamp(0.0, 1e4).detach()
        return weight * loss, {"adversarial": loss.detach(), "adversarial_weight": weight.detach()}

    def discriminator_loss(self, reconstructed: Tensor, image: Tensor) -> Terms:
        """The discriminator's loss on detached images [B, 3, H, W], and its logits' means."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(True)
        real = self.discriminator(image).float()
        fake = self.discriminator(reconstructed.detach()).float()
        loss = discriminator_adversarial_loss(real, fake, self.adversarial)
        parts = {"real": real.detach().mean(), "fake": fake.detach().mean()}
        if self.lecam is not None:
            lecam = self.lecam(real, fake)
            loss = loss + self.lecam_weight * lecam
            parts["lecam"] = lecam.detach()
        return loss, parts
