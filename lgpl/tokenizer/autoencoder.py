"""Convolutional encoder and decoder of the VQ tokenizer, and the VQModel that joins them.

Architecture: VQGAN (arXiv 2012.09841, appendix) as used by LlamaGen (arXiv 2406.06525, section
2.2): GroupNorm + swish residual blocks, single-head attention at the lowest level and in the
middle, strided convolution down and nearest-neighbour up.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.codes import CodeLayout, ImageSize
from lgpl.errors import UserError
from lgpl.tokenizer.base import Autoencoder
from lgpl.tokenizer.quantizers import Quantized, Quantizer

# Width multipliers of the levels, highest resolution first; each but the last halves the side.
MULTIPLIERS: dict[str, tuple[int, ...]] = {"vq-16": (1, 1, 2, 2, 4), "vq-8": (1, 2, 2, 4)}
SEAM_CHANNELS = 8  # at full resolution, where patches are unfolded

norm = partial(nn.GroupNorm, 32, eps=1e-6)  # of so many channels


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        qkv = (layer(h).flatten(2).mT.unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(*qkv)  # [B, 1, H*W, C]
        return x + self.proj_out(h.squeeze(1).mT.reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # one column right, one row below


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks from each of the widths to the next, with attention behind each where asked,
    then a resampling."""

    def __init__(
        self, widths: Sequence[int], attention: bool, resample: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.res = nn.ModuleList(ResidualBlock(i, o, dropout) for i, o in pairs)
        self.attn = nn.ModuleList(AttentionBlock(o) for _, o in pairs if attention)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.resample(x)


def levels(
    widths: Sequence[int], blocks: int, attended: int, resample: type[nn.Module], dropout: float
) -> nn.ModuleList:
    """A level from each of the widths to the next, with a resampling after all but the last."""
    made = nn.ModuleList()
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        leads_on = nn.Identity() if index == len(widths) - 2 else resample(after)
        made.append(Level([before] + [after] * blocks, index == attended, leads_on, dropout))
    return made


def middle(channels: int, dropout: float) -> nn.ModuleList:
    block = partial(ResidualBlock, channels, channels, dropout)
    return nn.ModuleList((block(), AttentionBlock(channels), block()))


class ConvEncoder(nn.Module):
    """Image [B, 3, H, W] in [-1, 1] -> features [B, z_channels, H/f, W/f]."""

    def __init__(
        self, widths: Sequence[int], blocks: int, z_channels: int, patch: int, dropout: float
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)
        self.conv_blocks = levels(widths, blocks, len(widths) - 2, Downsample, dropout)
        self.mid = middle(widths[-1], dropout)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ConvDecoder(nn.Module):
    """Features [B, z_channels, h, w] -> image [B, 3, h*f, w*f]; one residual block more a level."""

    def __init__(
        self, widths: Sequence[int], blocks: int, z_channels: int, patch: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], dropout)
        self.conv_blocks = levels(widths, blocks + 1, 0, Upsample, dropout)
        last = widths[-1]
        self.norm_out = norm(last)
        self.unfold: nn.Module = nn.Identity()
        if patch > 1:  # a few channels at full resolution, where the last convolution mends seams
            unfolded = nn.Conv2d(last, SEAM_CHANNELS * patch**2, 3, padding=1)
            self.unfold = nn.Sequential(unfolded, nn.PixelShuffle(patch), nn.SiLU())
            last = SEAM_CHANNELS
        self.conv_out = nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(self.unfold(F.silu(self.norm_out(x))))


class VQModel(Autoencoder):
    """Image tokenizer: a code, or several of a quantizer with depth, for each square of pixels.

    Args:
        quantizer: what turns features into codes; its `dim` sets the width of the code vectors.
        multipliers: a name of `MULTIPLIERS` or the width multipliers of the levels, highest
            resolution first. The factor of reduction is patch * 2^(levels - 1).
        width: channels of the first level; a multiple of 32.
        blocks: residual blocks a level in the encoder; the decoder has one more.
        z_channels: channels between the encoder and the projection to code vectors.
        patch: fold patches of so many pixels a side into channels before the first convolution,
            which spares the costly full resolution; 1 as in the paper.
        dropout: inside the residual blocks.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        multipliers: str | tuple[int, ...] = "vq-16",
        width: int = 128,
        blocks: int = 2,
        z_channels: int = 256,
        patch: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(multipliers, str):
            if multipliers not in MULTIPLIERS:
                known = ", ".join(MULTIPLIERS)
                raise UserError(f"multipliers: {multipliers!r} is no list, nor one of {known}.")
            multipliers = MULTIPLIERS[multipliers]
        if width % 32:
            raise UserError(f"width: {width} is not a multiple of 32, the groups of GroupNorm.")
        self.downsampling = patch * 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in multipliers]
        self.encoder = ConvEncoder([width, *widths], blocks, z_channels, patch, dropout)
        self.decoder = ConvDecoder([widths[-1], *widths[::-1]], blocks, z_channels, patch, dropout)
        self.quantizer = quantizer
        self.codebook_size = quantizer.codebook_size
        self.quant_conv = nn.Conv2d(z_channels, quantizer.dim, 1)
        self.post_quant_conv = nn.Conv2d(quantizer.dim, z_channels, 1)

    def layout(self, height: int, width: int) -> CodeLayout:
        f = self.downsampling
        if height % f or width % f or not height or not width:
            raise UserError(f"image of {width}x{height} px: both sides must be multiples of {f}.")
        return CodeLayout(height // f, width // f, self.quantizer.depth)

    def image_size(self, layout: CodeLayout) -> ImageSize:
        if layout.depth != (depth := self.quantizer.depth):
            raise UserError(f"the tokenizer has depth {depth}, not the {layout.depth} of {layout}.")
        return layout.rows * self.downsampling, layout.columns * self.downsampling

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    def pack(self) -> None:
        from lgpl.tokenizer.packing import PIXELS, pack_decoder

        if pack_decoder(self.decoder):
            self.pixels_at_once = PIXELS

    def encoding_parts(self) -> Iterable[nn.Module]:
        return self.encoder, self.quant_conv, self.quantizer

    def features(self, image: Tensor) -> Tensor:
        """Continuous features [B, dim, h, w] of an image, before quantization."""
        self.layout(*image.shape[-2:])
        return self.quant_conv(self.encoder(image))

    def encode(self, image: Tensor) -> Tensor:
        return self.quantizer(self.features(image)).codes

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quantizer.lookup(codes)))

    def decode_partial(self, codes: Tensor, drawn: Tensor) -> Tensor:
        """What is not drawn is grey; rows of which no image has anything are not decoded."""
        begun = drawn.any(-1).any(0).nonzero()  # rows
        last = int(begun.max()) + 1 if len(begun) else 1
        seen = super().decode_partial(codes[..., :last, :], drawn[:, :last])
        places = drawn[:, None].float()
        known = F.interpolate(places, scale_factor=self.downsampling, mode="nearest")  # pixels
        image = F.pad(seen, (0, 0, 0, known.shape[2] - seen.shape[2]))
        return image * known.to(image.dtype)

    def forward(self, image: Tensor) -> tuple[Tensor, Quantized]:
        z = self.features(image)
        quantized = self.quantizer(z)
        quantized.features = z.detach()
        return self.decoder(self.post_quant_conv(quantized.z)), quantized

    def observe(self, quantized: Quantized) -> dict[str, Any]:
        assert quantized.features is not None
        return self.quantizer.observe(quantized.features, quantized.codes)
