"""LlamaGen's checkpoint files (arXiv 2406.06525): their names for weights, and which model one is.

A file says nothing about itself, so everything is found out from the names and shapes inside: the
tokenizer's levels, the generator's size, its condition. Two things no shape shows, the grid and the
number of heads: they come from the rotary table where the file holds it, the heads else from the
paper's sizes and the grid from the file's name.
"""

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.checkpoints.files import Checkpoint, check_weights
from lgpl.checkpoints.released.discriminator import (
    Discriminator,
    take_discriminator,
    tokenizer_config,
    with_discriminator,
)
from lgpl.checkpoints.released.state import (
    Released,
    State,
    class_condition,
    count,
    entry,
    model_state,
    released,
    shape_of,
)
from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Transformer
from lgpl.generator.blocks import rotary_table
from lgpl.generator.transformer import SIZES
from lgpl.tokenizer import TokenizerModule, VectorQuantizer
from lgpl.training import TrainingModule
from lgpl.training.build import build_described, one_sentence

FAMILY = "LlamaGen"
# (pattern in lgpl's names, LlamaGen's)
RENAMED = (
    (r"^condition\.embedding\.", "cls_embedding.embedding_table."),
    (r"^condition\.fc", "cls_embedding.cap_proj.fc"),
    (r"^condition\.null_features$", "cls_embedding.uncond_embedding"),
    (r"^quantizer\.codebook\.", "quantize.embedding."),
    (r"^(encoder\..*)\.resample\.", r"\1.downsample."),
    (r"^(decoder\..*)\.resample\.", r"\1.upsample."),
)
OURS = "quantizer.idle"  # counts since a code was last used; nothing in LlamaGen
USAGE = "quantize.codebook_used"  # the last 65536 codes of its training, a statistic
ROPE = "freqs_cis"  # the rotary table, computed here
LEVELS = {5: "vq-16", 4: "vq-8"}
TEXT_ENCODERS = {2048: "google/flan-t5-xl"}  # width of its features -> the paper's encoder
DOWNSAMPLING = 16  # of the tokenizer under every released generator


def llamagen_name(name: str) -> str:
    """LlamaGen's name of a weight of `VQModel` or `Transformer`."""
    for pattern, theirs in RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def read(state: State, path: Path, grid: int | None, heads: int | None) -> Released:
    """What the weights of a file are; see `read_released`."""
    rope, against = state.pop(ROPE, None), take_discriminator(state)
    state.pop(USAGE, None)
    if "quantize.embedding.weight" in state:
        kind, config = "tokenizer", _tokenizer_config(state, path, against)
    else:
        kind, config = "generator", _generator_config(state, path, rope, grid, heads)
    found = released(kind, config, state, path, FAMILY, _renamed, _ours)
    return with_discriminator(found, against)


def to_llamagen(checkpoint: Checkpoint, trust: Iterable[str] = ()) -> dict[str, dict[str, Tensor]]:
    """The content of a .pt file that LlamaGen's own code loads; raises UserError where the model
    has something that it does not know."""
    with one_sentence(checkpoint.path), torch.device("meta"):
        module = build_described(checkpoint, trust=trust)
        module.configure_model()
    weights = _renamed(checkpoint.weights())
    source = f"{checkpoint.path} cannot be written for LlamaGen: it"
    if unlike := differences(module):
        raise UserError(f"{source} {' and '.join(unlike)}.")
    if isinstance(module, TokenizerModule):
        theirs = _tokenizer_config(weights, checkpoint.path, Discriminator())
    else:
        model: Any = module.model
        heads, rows = model.heads, model.layout.rows
        theirs = _generator_config(weights, checkpoint.path, None, rows, heads)
    check_weights(_renamed(model_state(theirs)), weights, source, "LlamaGen's model")
    if isinstance(module, TokenizerModule):
        weights[USAGE] = torch.zeros(65536)  # its loading is strict
    return {"model": weights}


def differences(module: TrainingModule) -> list[str]:
    """What a module, which may be on the meta device, has that LlamaGen's code does not know."""
    if isinstance(module, TokenizerModule):
        quantizer = getattr(module.autoencoder, "quantizer", None)
        if isinstance(quantizer, VectorQuantizer) and quantizer.l2_norm:
            return []
        return ["has another quantizer than VectorQuantizer with l2_norm"]
    assert isinstance(module, GeneratorModule)
    model = module.model
    if not isinstance(model, Transformer):
        return [f"is a {type(model).__name__}, not a Transformer"]
    unlike = []
    if model.prefix_rope != "zero":
        unlike.append(f"has prefix_rope {model.prefix_rope}, not zero")
    if any("q_norm" in name for name, _ in model.named_parameters()):
        unlike.append("has qk_norm, which LlamaGen's model has not")
    if model.target is not None:
        unlike.append("has target_positions, which LlamaGen's model has not")
    layout = model.layout
    if layout.rows != layout.columns or layout.depth > 1:
        unlike.append(f"has codes of {layout}, not a square of single ones")
    return unlike


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in LlamaGen's names, without what it has not."""
    return {llamagen_name(n): tensor for n, tensor in weights.items() if n != OURS}


def _ours(expected: Mapping[str, Tensor], state: State) -> State:
    """A file's weights in lgpl's names, as far as it has them."""
    return {
        name: torch.zeros_like(tensor, device="cpu") if name == OURS else state[llamagen_name(name)]
        for name, tensor in expected.items()
    }


def _tokenizer_config(state: State, path: Path, against: Discriminator) -> dict[str, Any]:
    codes, dim = shape_of(state, "quantize.embedding.weight", path, FAMILY)[:2]
    levels = count(state, "encoder.conv_blocks")
    if levels not in LEVELS:
        raise UserError(f"{path} has {levels} levels; VQ-16 has 5, VQ-8 has 4.")
    autoencoder = entry(
        "lgpl.tokenizer.VQModel",
        quantizer=entry("lgpl.tokenizer.VectorQuantizer", codebook_size=codes, dim=dim),
        multipliers=LEVELS[levels],
        z_channels=shape_of(state, "quant_conv.weight", path, FAMILY)[1],
    )
    return tokenizer_config(autoencoder, against)


def _generator_config(
    state: State, path: Path, rope: Tensor | None, grid: int | None, heads: int | None
) -> dict[str, Any]:
    codes, dim = shape_of(state, "tok_embeddings.weight", path, FAMILY)[:2]
    layers = count(state, "layers")
    if "cls_embedding.uncond_embedding" in state:
        prefix, features = shape_of(state, "cls_embedding.uncond_embedding", path, FAMILY)[:2]
        options: dict[str, Any] = {"features": features, "length": prefix, "trainable_null": False}
        if name := TEXT_ENCODERS.get(features):
            encoder = {"name": name, "max_length": prefix, "dtype": "bfloat16"}
            encoder["captions"] = "llamagen"  # its cleaning, which plain text would not match
            options["encoder"] = entry("lgpl.text.TextEncoder", **encoder)
        condition = entry("lgpl.generator.TextCondition", **options)
    else:
        prefix, rows = 1, shape_of(state, "cls_embedding.embedding_table.weight", path, FAMILY)[0]
        # The last row is the null condition.
        condition = class_condition(rows - 1)
    prefix_rope = "zero"  # of all that LlamaGen trained
    if rope is not None:
        grid, heads, prefix_rope = _read_rope(rope, path, prefix, dim, grid)
    sizes = {(n, width): h for n, h, width in SIZES.values()}
    heads = heads or sizes.get((layers, dim))
    sides = {int(side) // DOWNSAMPLING for side in re.findall(r"_(256|384|512)", path.stem)}
    grid = grid or (sides.pop() if len(sides) == 1 else None)
    missing = []
    if heads is None:
        missing.append(f"--heads, unknown for {layers} layers of {dim}")
    if grid is None:
        where = "of which neither its name (_256, _384, _512) nor its content says anything"
        missing.append(f"--grid, the codes on a side (24 for 384 px), {where}")
    if heads is None or grid is None:
        raise UserError(f"{path} needs {', and '.join(missing)}.")
    names = {size: name for name, size in SIZES.items()}
    transformer = entry(
        "lgpl.generator.Transformer",
        size=names.get((layers, heads, dim), [layers, heads, dim]),
        codebook_size=codes,
        grid=[grid, grid],
        prefix_rope=prefix_rope,
        condition=condition,
    )
    return entry("lgpl.generator.GeneratorModule", transformer=transformer)


def _read_rope(
    rope: Tensor, path: Path, prefix: int, dim: int, grid: int | None
) -> tuple[int, int, str]:
    """Grid, heads and prefix rule of a rotary table [prefix + grid^2, head dim / 2, 2]."""
    side = isqrt(max(1, len(rope) - prefix))
    if grid not in (None, side):
        raise UserError(f"--grid: {grid} is not {path}'s, whose {ROPE} is for {side}x{side} codes.")
    for rule in ("zero", "identity"):
        if rope.dim() == 3 and rope.shape[1] and dim % (2 * rope.shape[1]) == 0:
            table = rotary_table(prefix, CodeLayout(side, side), 2 * rope.shape[1], rule)
            # the table may have been saved in half precision
            if table.shape == rope.shape and torch.allclose(rope.float(), table, atol=1e-2):
                return side, dim // (2 * rope.shape[1]), rule
    raise UserError(f"{path} has a {ROPE} of {[*rope.shape]} that is no rotary table of LlamaGen.")
