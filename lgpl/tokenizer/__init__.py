"""The VQ tokenizer: images to codes and back."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily
from lgpl.tokenizer.autoencoder import VQModel
from lgpl.tokenizer.base import Autoencoder
from lgpl.tokenizer.discriminators import PatchGAN
from lgpl.tokenizer.losses import TokenizerLoss
from lgpl.tokenizer.perceptual import LPIPS
from lgpl.tokenizer.quantizers import BSQ, FSQ, IBQ, Quantized, Quantizer
from lgpl.tokenizer.quantizers.residual import ResidualQuantizer
from lgpl.tokenizer.quantizers.vector import VectorQuantizer

if TYPE_CHECKING:
    from lgpl.tokenizer.module import TokenizerModule

__all__ = [
    "Autoencoder",
    "BSQ",
    "FSQ",
    "IBQ",
    "LPIPS",
    "PatchGAN",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "TokenizerLoss",
    "TokenizerModule",
    "VQModel",
    "VectorQuantizer",
]

__getattr__ = lazily(__name__, {"module": ("TokenizerModule",)})
