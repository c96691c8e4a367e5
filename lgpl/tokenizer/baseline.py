"""Continuous autoencoders of the `diffusers` library, as baselines of reconstruction: they have no
codes, so nothing is trained on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lgpl.errors import UserError
from lgpl.lazy import needs

# Class in diffusers -> the setting that lists a width for each level; each but the last halves the
# side. Both classes are given pixels in [-1, 1].
KINDS = {
    "AutoencoderKL": "block_out_channels",
    "ConsistencyDecoderVAE": "encoder_block_out_channels",
}
# Mean squared, of pixels in [-1, 1]: 16 dB. An autoencoder is far below it on its own scaling.
STRANGE = 0.1


class Baseline(nn.Module):
    """Images through an autoencoder of diffusers and back.

    Args:
        source: its name on the hub, or its folder.
        model: called with images, `sample_posterior` and a `generator` for each of them.
        downsampling: pixels on a side of a position of its latents.
    """

    def __init__(self, source: str, model: nn.Module, downsampling: int) -> None:
        super().__init__()
        self.source, self.model, self.downsampling = source, model, downsampling
        self._seen = False

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        """Reconstructions of images [B, 3, H, W] in [-1, 1]. The latents are drawn from their
        posterior, as LlamaGen's baselines are; the seed of each is the image's number [B]. Raises
        UserError for sides that it cannot halve as often as it does, or another scaling."""
        height, width = image.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            multiple = f"both sides must be multiples of {self.downsampling}, for {self.source}"
            raise UserError(f"--image-size: image of {width}x{height} px: {multiple}.")
        rebuilt = self._rebuild(image, numbers)
        if not self._seen and len(image):
            self._check_scaling(image, rebuilt, numbers)
            self._seen = True
        return rebuilt

    def _rebuild(self, image: Tensor, numbers: Tensor) -> Tensor:
        rngs = [torch.Generator().manual_seed(int(number)) for number in numbers]
        return self.model(image, sample_posterior=True, generator=rngs).sample

    def _check_scaling(self, image: Tensor, rebuilt: Tensor, numbers: Tensor) -> None:
        """A config does not say which pixels a model was trained on, its reconstructions do."""
        error = _error(rebuilt, image)
        if error < STRANGE:
            return
        unit = (image + 1) / 2
        on_unit = 4 * _error(self._rebuild(unit, numbers), unit)  # in the same units
        if on_unit < error / 4:
            errors = (
                f"a mean squared error of {on_unit:.2g} on [0, 1] and of {error:.2g} on [-1, 1]"
            )
            raise UserError(f"--baseline: {self.source} is of another scaling: it has {errors}.")


def _error(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).square().mean().item()


def load_baseline(source: str) -> Baseline:
    """By a name on the hub or a folder, in evaluation mode. Raises UserError where diffusers is
    missing, or the model is no such autoencoder or can be neither read nor fetched; weights are
    read from safetensors alone."""
    needs("--baseline", "diffusers", "baselines")
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    try:
        config: Any = diffusers.AutoencoderKL.load_config(source)
        name = config.get("_class_name")
        if name in KINDS:
            kind = getattr(diffusers, name)
            model = kind.from_pretrained(source, use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:  # it is anybody's folder
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        if (
            type(error.__context__).__name__ == "LocalEntryNotFoundError"
        ):  # and what it says is wrong
            reason = "it is not in the cache, and the hub cannot be reached"
        raise UserError(f"--baseline: {source!r} cannot be loaded: {reason}.") from error
    if name not in KINDS:
        known = " or ".join(KINDS)
        raise UserError(f"--baseline: {source} holds {name or 'no model'}; it should be {known}.")
    channels = model.config.get("in_channels", 3), model.config.get("out_channels", 3)
    if channels != (3, 3):
        raise UserError(f"--baseline: {source} has {channels[0]} channels, and images have 3.")
    levels = len(model.config[KINDS[name]])
    return Baseline(source, model.eval().requires_grad_(False), 2 ** (levels - 1))
