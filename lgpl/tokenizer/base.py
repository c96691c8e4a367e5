"""The contract between a tokenizer and what trains it or draws with it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lgpl.codes import CodeLayout, ImageSize
from lgpl.described import Described
from lgpl.errors import UserError
from lgpl.tokenizer.quantizers import Quantized


class Autoencoder(Described, nn.Module, ABC):
    """Images [B, 3, H, W] in [-1, 1] <-> codes [B, *layout.shape]."""

    codebook_size: int  # number of codes; those of an image are from 0 to it, exclusive
    pixels_at_once = 0  # so many a CPU decodes together, no image changed by another's rounding

    @abstractmethod
    def layout(self, height: int, width: int) -> CodeLayout:
        """Of the codes of an image of that size; a UserError where it cannot be tokenized."""

    @abstractmethod
    def image_size(self, layout: CodeLayout) -> ImageSize:
        """Of the image that codes of a layout are decoded to; a UserError where it has no such."""

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Codes [B, *layout.shape], int64."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Images, about [-1, 1], of codes [B, *layout.shape]."""

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction [B, 3, H, W] and what the quantizer did, for training."""

    def decode_partial(self, codes: Tensor, drawn: Tensor) -> Tensor:
        """Images of codes [B, *layout.shape], of which those of a place are all drawn where `drawn`
        [B, rows, columns] is true, and may be any elsewhere."""
        known = drawn if codes.dim() == drawn.dim() else drawn.unsqueeze(1)
        return self.decode(codes.where(known, 0))

    def observe(self, quantized: Quantized) -> dict[str, Any]:
        """Called once for each optimizer step with its last batch; gives metrics to log."""
        return {}

    @property
    def last_layer(self) -> Tensor:
        """The weight against whose gradient the adaptive adversarial weight is measured."""
        name = type(self).__name__
        raise UserError(f"loss.adaptive_weight must be false: {name} has no last_layer.")

    def pack(self) -> None:
        """Lay weights out for decoding, up to rounding; afterwards it can be neither trained nor
        saved."""

    def encoding_parts(self) -> Iterable[nn.Module]:
        """What decides which codes an image gets."""
        return [self]

    def fingerprint(self) -> str:
        """Of parameters, buffers, classes and their settings of all `encoding_parts`: equal only
        where `encode` gives equal codes."""
        digest = hashlib.sha256(_path(self).encode())
        for part in self.encoding_parts():
            for name, module in part.named_modules():
                settings = {  # plain attributes, which the constructor has set
                    key: value
                    for key, value in sorted(vars(module).items())
                    if not key.startswith("_") and key != "training" and _is_plain(value)
                }
                digest.update(f"{name} {_path(module)} {settings}".encode())
            for name, weight in [*part.named_parameters(), *part.named_buffers()]:
                digest.update(f"{name} {[*weight.shape]}".encode())
                digest.update(weight.detach().double().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))
