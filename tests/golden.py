"""Numbers that the original code of LlamaGen and LPD computes, and the weights for which it did.

`golden.json` holds the numbers; the weights follow a formula of the parameter's name in the
original. `schemas/` holds the names and shapes of the files that the original was released as.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.cli import main

HERE = Path(__file__).parent
GOLDEN: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
# Of LPD's code, for a small model.
LPD: dict[str, Any] = json.loads((HERE / "lpd.json").read_text())
NORMS = ("norm.weight", "norm1.weight", "norm2.weight", "norm_out.weight", "z_proj_ln.weight")
# golden.json's small generators in the place of the released sizes, kind -> size there -> here
SMALL = {
    "c2i": {768: 128, 2304: 384, 2048: 512, 1001: 11, 16384: 256},
    "t2i": {1280: 128, 3840: 384, 3584: 512, 2048: 48, 16384: 256},
}


def schema(name: str) -> dict[str, list[int]]:
    """Shapes by name of a released file: c2i_B, t2i_XL, vq_ds16 or vq_ds8."""
    return json.loads((HERE / f"schemas/{name}.json").read_text())


def fill(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    v = torch.arange(math.prod(shape), dtype=torch.float64)  # in place, which takes half the time
    v.mul_(12.9898).add_(zlib.crc32(name.encode()) % 1000).sin_().mul_(43758.5453)
    v = v.sub_(v.floor()).mul_(2).sub_(1).reshape(shape)
    return (1 + 0.1 * v if name.endswith(NORMS) else scale * v).float()


def released_tokenizer(name: str) -> dict[str, Tensor]:
    """Weights of VQ-16 or VQ-8 under the original's names, as golden.json fills them."""
    shapes = schema({"VQ-16": "vq_ds16", "VQ-8": "vq_ds8"}[name])
    scales = {"quantize.embedding.weight": 1.0, "quantize.codebook_used": 0.0}
    scale = GOLDEN[name]["scale"]
    return {n: fill(n, tuple(shape), scales.get(n, scale)) for n, shape in shapes.items()}


def released_generator(kind: str) -> dict[str, Tensor]:
    """Weights of golden.json's class (c2i) or text (t2i) model under the original's names."""
    shapes = schema({"c2i": "c2i_B", "t2i": "t2i_XL"}[kind])
    layers, small = GOLDEN[kind]["config"]["n_layer"], SMALL[kind]
    return {
        name: fill(name, tuple(small.get(n, n) for n in shape), GOLDEN[kind]["scale"])
        for name, shape in shapes.items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < layers
    }


def released_lpd() -> dict[str, Tensor]:
    """Weights of lpd.json's model under the original's names."""
    return {n: fill(n, tuple(shape), LPD["scale"]) for n, shape in LPD["shapes"].items()}


def released(name: str) -> dict[str, Tensor]:
    if name == "lpd":
        return released_lpd()
    return released_generator(name) if name in SMALL else released_tokenizer(name)


def import_golden(name: str, folder: Path) -> str:
    """One of golden.json's models as a released file, imported by the command; gives the folder."""
    torch.save({"model": released(name)}, folder / f"{name}.pt")
    told = ("--heads", "4") if name in (*SMALL, "lpd") else ()
    told += ("--grid", "4") if name in SMALL else ()
    main(["import", str(folder / f"{name}.pt"), "--out", str(folder / name), *told])
    return str(folder / name)
