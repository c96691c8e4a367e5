"""Numbers that LlamaGen's original code computes, and the weights for which it computed them.

`golden.json` holds the numbers; the weights follow a formula of the parameter's name in the
original.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lgpl.checkpoints import from_llamagen

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
NORMS = ("norm.weight", "norm1.weight", "norm2.weight", "norm_out.weight")
ORIGINAL_NAMES = (
    (r"^condition\.embedding\.", "cls_embedding.embedding_table."),
    (r"^condition\.(fc\d)", r"cls_embedding.cap_proj.\1"),
    (r"^condition\.null_features$", "cls_embedding.uncond_embedding"),
    (r"^quantizer\.codebook\.", "quantize.embedding."),
    (r"^encoder\.(.*)\.resample\.", r"encoder.\1.downsample."),
    (r"^decoder\.(.*)\.resample\.", r"decoder.\1.upsample."),
)


def fill(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    t = torch.arange(math.prod(shape), dtype=torch.float64)
    v = torch.sin(12.9898 * t + zlib.crc32(name.encode()) % 1000) * 43758.5453
    v = (2 * (v - v.floor()) - 1).reshape(shape)
    return (1 + 0.1 * v if name.endswith(NORMS) else scale * v).float()


def original_name(name: str) -> str:
    for pattern, original in ORIGINAL_NAMES:
        name = re.sub(pattern, original, name)
    return name


def fill_weights(model: nn.Module, scale: float, **scales: float) -> None:
    """Fill a model as if a released file held the formula's weights, under the original's names."""
    released = {}
    for name, tensor in model.state_dict().items():
        if name == "quantizer.idle":
            continue
        original = original_name(name)
        released[original] = fill(original, tuple(tensor.shape), scales.get(original, scale))
    missing, unexpected = model.load_state_dict(from_llamagen(released), strict=False)
    assert not unexpected and set(missing) <= {"quantizer.idle"}
