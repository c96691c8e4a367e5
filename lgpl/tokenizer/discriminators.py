"""Discriminators: image [B, 3, H, W] -> logits of realness."""

from torch import Tensor, nn

from lgpl.described import Described


class PatchGAN(Described, nn.Module):
    """Convolutional discriminator that judges overlapping patches (pix2pix, arXiv 1611.07004).

    Args:
        width: channels of the first layer; doubled per layer, at most eightfold.
        layers: strided layers after the first; 3 gives a receptive field of 70 pixels.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        previous = width
        for index in range(1, layers + 1):
            channels = width * min(2**index, 8)
            stride = 2 if index < layers else 1
            blocks += [
                nn.Conv2d(previous, channels, 4, stride=stride, padding=1, bias=False),
                # Training mode only, so no running statistics: they alone would differ by rank.
                nn.BatchNorm2d(channels, track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
            previous = channels
        blocks.append(nn.Conv2d(previous, 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*blocks)
        for layer in blocks:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, 1, h, w], one for each patch."""
        return self.layers(image)
