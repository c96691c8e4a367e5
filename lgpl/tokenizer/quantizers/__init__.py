"""Quantizers: features [B, D, h, w] -> codes [B, h, w] and back, behind one interface."""

from lgpl.tokenizer.quantizers.base import Quantized, Quantizer
from lgpl.tokenizer.quantizers.bsq import BSQ
from lgpl.tokenizer.quantizers.fsq import FSQ
from lgpl.tokenizer.quantizers.ibq import IBQ
from lgpl.tokenizer.quantizers.residual import ResidualQuantizer
from lgpl.tokenizer.quantizers.vector import VectorQuantizer

__all__ = ["BSQ", "FSQ", "IBQ", "Quantized", "Quantizer", "ResidualQuantizer", "VectorQuantizer"]
