"""taming's VQGANs (arXiv 2012.09841), LlamaGen's baseline, with those of latent diffusion (arXiv
2112.10752): the architecture of `VQModel`, other names, and a codebook of points, not directions.

Levels, widths and codebook show in the shapes. Attention stands at the lowest level, as in every
VQGAN of LlamaGen's table.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lgpl.checkpoints.released.discriminator import (
    take_discriminator,
    tokenizer_config,
    with_discriminator,
)
from lgpl.checkpoints.released.llamagen import OURS
from lgpl.checkpoints.released.state import Released, State, count, entry, released, shape_of
from lgpl.errors import UserError

FAMILY = "taming"
CODEBOOK = "quantize.embedding.weight"
AVERAGE = "model_ema."  # that latent diffusion may keep in buffers beside the weights
LEVEL = re.compile(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.(res|attn|resample)\.")
ATTENDED = re.compile(r"encoder\.down\.(\d+)\.attn\.")
MIDDLE = ("block_1", "attn_1", "block_2")


def is_vqgan(state: State) -> bool:
    """Whether weights are of this family, whole or not."""
    return any(name.startswith(("encoder.down.", "decoder.up.")) for name in state)


def read(state: State, path: Path, grid: int | None = None, heads: int | None = None) -> Released:
    """What the weights of a file are; see `read_released`."""
    against = take_discriminator(state)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(AVERAGE)}
    if CODEBOOK not in state:
        without = f"{path} is an autoencoder without {CODEBOOK}, a codebook of vectors"
        raise UserError(f"{without}: it is no VQGAN that lgpl reads (a KL or Gumbel one is none).")
    levels, width = (
        count(state, "encoder.down"),
        shape_of(state, "encoder.conv_in.weight", path, FAMILY)[0],
    )
    attended = {int(match[1]) for name in state if (match := ATTENDED.match(name))}
    if attended != {levels - 1}:
        found_at = ", ".join(map(str, sorted(attended))) or "none"
        where = f"attention at levels {found_at} of {levels}"
        raise UserError(f"{path} has {where}, and lgpl's VQModel at the last one alone.")
    first = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    codes, dim = shape_of(state, CODEBOOK, path, FAMILY)[:2]
    quantizer = {"codebook_size": codes, "dim": dim, "l2_norm": False}
    autoencoder = entry(
        "lgpl.tokenizer.VQModel",
        quantizer=entry("lgpl.tokenizer.VectorQuantizer", **quantizer),
        multipliers=[shape_of(state, name, path, FAMILY)[0] // width for name in first],
        width=width,
        blocks=count(state, "encoder.down.0.block"),
        z_channels=shape_of(state, "quant_conv.weight", path, FAMILY)[1],
    )
    config = tokenizer_config(autoencoder, against)
    ways = (partial(_to_theirs, levels=levels), partial(_to_ours, levels=levels))
    found = released("tokenizer", config, state, path, FAMILY, *ways)
    return with_discriminator(found, against)


def taming_name(name: str, levels: int) -> str:
    """taming's name of a weight of `VQModel`; its decoder counts the levels from the finest."""

    def level(match: re.Match[str]) -> str:
        index, last = int(match[2]), levels - 1
        way, at = ("down", index) if match[1] == "encoder" else ("up", last - index)
        kind = {"res": "block", "attn": "attn", "resample": f"{way}sample"}[match[3]]
        return f"{match[1]}.{way}.{at}.{kind}."

    name = LEVEL.sub(level, name.replace("quantizer.codebook.", "quantize.embedding."))
    return re.sub(r"\.mid\.(\d)\.", lambda match: f".mid.{MIDDLE[int(match[1])]}.", name)


def _to_theirs(weights: Mapping[str, Tensor], levels: int) -> State:
    return {taming_name(name, levels): t for name, t in weights.items() if name != OURS}


def _to_ours(expected: Mapping[str, Tensor], state: State, levels: int) -> State:
    return {
        name: torch.zeros_like(t, device="cpu")
        if name == OURS
        else state[taming_name(name, levels)]
        for name, t in expected.items()
    }
