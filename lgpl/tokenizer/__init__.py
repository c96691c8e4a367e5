"""The VQ tokenizer: images to codes and back."""

from lgpl.tokenizer.autoencoder import VQModel
from lgpl.tokenizer.discriminators import PatchGAN
from lgpl.tokenizer.losses import TokenizerLoss
from lgpl.tokenizer.module import TokenizerModule
from lgpl.tokenizer.perceptual import LPIPS
from lgpl.tokenizer.quantizers import BSQ, FSQ, IBQ, Quantized, Quantizer, VectorQuantizer

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LPIPS",
    "PatchGAN",
    "Quantized",
    "Quantizer",
    "TokenizerLoss",
    "TokenizerModule",
    "VQModel",
    "VectorQuantizer",
]
