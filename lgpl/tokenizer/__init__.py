"""The VQ tokenizer: images to codes and back."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily
from lgpl.tokenizer.autoencoder import VQModel as VQModel
from lgpl.tokenizer.base import Autoencoder as Autoencoder
from lgpl.tokenizer.discriminators import PatchGAN as PatchGAN
from lgpl.tokenizer.losses import TokenizerLoss as TokenizerLoss
from lgpl.tokenizer.perceptual import LPIPS as LPIPS
from lgpl.tokenizer.quantizers import BSQ as BSQ
from lgpl.tokenizer.quantizers import FSQ as FSQ
from lgpl.tokenizer.quantizers import IBQ as IBQ
from lgpl.tokenizer.quantizers import Quantized as Quantized
from lgpl.tokenizer.quantizers import Quantizer as Quantizer
from lgpl.tokenizer.quantizers import ResidualQuantizer as ResidualQuantizer
from lgpl.tokenizer.quantizers import VectorQuantizer as VectorQuantizer

if TYPE_CHECKING:
    from lgpl.tokenizer.module import TokenizerModule as TokenizerModule

__getattr__ = lazily(__name__, module=("TokenizerModule",))
