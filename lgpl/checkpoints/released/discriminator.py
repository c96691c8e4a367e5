"""The discriminator that a file of a tokenizer may hold beside it."""

import re
from typing import Any, NamedTuple

import torch

from lgpl.checkpoints.released.state import LOSS, Released, State, entry
from lgpl.tokenizer import PatchGAN

# Of pix2pix's NLayerDiscriminator. Its running statistics are none: it judges in training alone.
PART = re.compile(r"\.main\.(\d+\.(?:weight|bias))$")
OTHERS = "perceptual_loss."  # the nets of another term, which lgpl has by itself


class Discriminator(NamedTuple):
    config: dict[str, Any] | None = None  # of the `PatchGAN`; None without one
    weights: State = {}
    said: tuple[str, ...] = ()  # for people


def take_discriminator(state: State) -> Discriminator:
    """Take all weights of the loss out of a file's, and find the discriminator among them."""
    loss = {name: state.pop(name) for name in [*state] if name.startswith(LOSS)}
    found = {f"layers.{match[1]}": t for n, t in loss.items() if (match := PART.search(n))}
    kernels = [tensor for tensor in found.values() if tensor.dim() == 4]
    if len(kernels) > 2:
        sizes = {"width": len(kernels[0]), "layers": len(kernels) - 2}
        with torch.device("meta"):
            expected = PatchGAN(**sizes).state_dict()
        if {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}:
            config = entry("lgpl.tokenizer.PatchGAN", **sizes)
            return Discriminator(config, found, ("with its discriminator",))
    if all(OTHERS in name for name in loss):
        return Discriminator()
    return Discriminator(said=("without its discriminator, which is no PatchGAN",))


def tokenizer_config(autoencoder: dict[str, Any], found: Discriminator) -> dict[str, Any]:
    """Of a module with the discriminator and no other term: a training names those anew."""
    terms = {"perceptual": None, "discriminator": found.config}
    loss = entry("lgpl.tokenizer.TokenizerLoss", **terms)
    return entry("lgpl.tokenizer.TokenizerModule", autoencoder=autoencoder, loss=loss)


def with_discriminator(released: Released, found: Discriminator) -> Released:
    summary = ", ".join((released.summary, *found.said))
    return released._replace(summary=summary, discriminator=found.weights)
