"""LlamaGen's checkpoint files (arXiv 2406.06525): their names for weights, and which model one is.

A file says nothing about itself, so everything is found out from the names and shapes inside: the
tokenizer's levels, the generator's size, its condition. Two things no shape shows, the grid and the
number of heads: they come from the rotary table where the file holds it, the heads else from the
paper's sizes and the grid from the file's name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.checkpoints import Checkpoint, check_weights, load_tensors
from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Transformer
from lgpl.generator.rotary import rotary_table
from lgpl.generator.transformer import SIZES
from lgpl.tokenizer import TokenizerModule, VectorQuantizer
from lgpl.training import build_described, build_module
from lgpl.training.build import one_sentence

# Where a file keeps its weights, the averaged ones first; it may also be nothing but weights.
WEIGHTS = ("ema", "model", "module", "state_dict")
# Left in front of names by DDP and FSDP (module) and torch.compile (_orig_mod).
WRAPPERS = re.compile(r"(^|(?<=\.))(module|_fsdp_wrapped_module|_orig_mod)\.")
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


@dataclass(frozen=True)
class Released:
    """What a file holds, in lgpl's terms.

    Attributes:
        kind: `tokenizer` or `generator`.
        config: `class_path` and `init_args` of its module.
        weights: state dict of the `VQModel` or `Transformer`.
        summary: one line for people.
    """

    kind: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    summary: str


def llamagen_name(name: str) -> str:
    """LlamaGen's name of a weight of `VQModel` or `Transformer`."""
    for pattern, theirs in RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def read_released(path: str | Path, grid: int | None = None, heads: int | None = None) -> Released:
    """A file of LlamaGen: released, or saved by its training scripts.

    Args:
        path: the .pt file.
        grid: codes on a side of a generator's image, where the file does not tell.
        heads: heads of a generator of no size of the paper, where the file does not tell.

    Raises:
        UserError: it is no such file, holds code, does not tell what it is, or lacks weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .pt file of LlamaGen.")
    # The training scripts save their arguments as a Namespace, which is data.
    state = _weights(load_tensors(path, data_classes=[argparse.Namespace]), path)
    rope = state.pop(ROPE, None)
    state.pop(USAGE, None)
    if "quantize.embedding.weight" in state:
        config = _tokenizer_config(state, path)
    elif "tok_embeddings.weight" in state:
        config = _generator_config(state, path, rope, grid, heads)
    else:
        raise UserError(
            f"{path} is no model of LlamaGen: it has neither quantize.embedding.weight, as a "
            "tokenizer has, nor tok_embeddings.weight, as a generator has."
        )
    module, expected = _outline(config)
    check_weights(
        {llamagen_name(name): tensor for name, tensor in expected.items() if name != OURS},
        state,
        str(path),
        "LlamaGen's model",
    )
    weights = {
        name: torch.zeros_like(tensor, device="cpu") if name == OURS else state[llamagen_name(name)]
        for name, tensor in expected.items()
    }
    millions = sum(tensor.numel() for tensor in state.values()) / 1e6
    options = config["init_args"]["autoencoder" if module.kind == "tokenizer" else "transformer"]
    told = options["init_args"] | options["init_args"].get("condition", {}).get("init_args", {})
    summary = ", ".join(
        f"{key} {value}" for key, value in told.items() if not isinstance(value, dict)
    )
    summary = f"{module.kind}, {millions:.1f}M weights, {summary}"
    return Released(module.kind, config, weights, summary)


def to_llamagen(checkpoint: Checkpoint, trust: Iterable[str] = ()) -> dict[str, dict[str, Tensor]]:
    """The content of a .pt file that LlamaGen's own code loads.

    Args:
        checkpoint: the model.
        trust: packages whose classes its config may name beside lgpl's own.

    Raises:
        UserError: the model has something that LlamaGen's code does not know.
    """
    with one_sentence(checkpoint.path), torch.device("meta"):
        module = build_described(checkpoint, trust=trust)
        module.configure_model()
    config = checkpoint.described()
    weights = {llamagen_name(n): t for n, t in checkpoint.weights().items() if n != OURS}
    source = f"{checkpoint.path} cannot be written for LlamaGen: it"
    if isinstance(module, TokenizerModule):
        quantizer = getattr(module.autoencoder, "quantizer", None)
        if not isinstance(quantizer, VectorQuantizer) or not quantizer.l2_norm:
            raise UserError(f"{source} has another quantizer than VectorQuantizer with l2_norm.")
        theirs = _tokenizer_config(weights, checkpoint.path)
    else:
        assert isinstance(module, GeneratorModule)
        model = module._outline()
        if not isinstance(model, Transformer):
            raise UserError(f"{source} is a {type(model).__name__}, not a Transformer.")
        if model.prefix_rope != "zero":
            raise UserError(f"{source} was trained with prefix_rope {model.prefix_rope}, not zero.")
        for name in ("qk_norm", "target_positions"):
            if config["init_args"]["transformer"]["init_args"].get(name):
                raise UserError(f"{source} has {name}, which LlamaGen's model has not.")
        layout = model.layout
        if layout.rows != layout.columns or layout.depth > 1:
            raise UserError(f"{source} has codes of {layout}, not a square of single ones.")
        theirs = _generator_config(weights, checkpoint.path, None, layout.rows, model.heads)
    expected = {llamagen_name(n): t for n, t in _outline(theirs)[1].items() if n != OURS}
    check_weights(expected, weights, source, "LlamaGen's model")
    if isinstance(module, TokenizerModule):
        weights[USAGE] = torch.zeros(65536)  # its loading is strict
    return {"model": weights}


def _outline(config: dict[str, Any]) -> tuple[GeneratorModule | TokenizerModule, dict[str, Tensor]]:
    """The module of a config on fake tensors, and the state dict of its model."""
    with torch.device("meta"):
        module = build_module(config)
        module.configure_model()
    if isinstance(module, TokenizerModule):
        return module, module.autoencoder.state_dict()
    assert isinstance(module, GeneratorModule)
    return module, module.model.state_dict()


def _weights(content: Any, path: Path) -> dict[str, Tensor]:
    for key in WEIGHTS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = content.items() if isinstance(content, dict) else ()
    state = {WRAPPERS.sub("", str(n)): t for n, t in tensors if isinstance(t, Tensor)}
    if not state:
        raise UserError(f"{path} holds no weights, neither bare nor under {', '.join(WEIGHTS)}.")
    return state


def _shape(state: Mapping[str, Tensor], name: str, path: Path) -> list[int]:
    """Of a matrix (or a kernel) that says how large the model is."""
    if name not in state:
        raise UserError(f"{path} has no weight {name}: it is not whole, or no model of LlamaGen.")
    if state[name].dim() < 2:
        raise UserError(f"{path} has {name} of {[*state[name].shape]}, which should be a matrix.")
    return [*state[name].shape]


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many of a numbered kind of layer there are."""
    found = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _tokenizer_config(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    codes, dim = _shape(state, "quantize.embedding.weight", path)[:2]
    z_channels = _shape(state, "quant_conv.weight", path)[1]
    levels = _count(state, "encoder.conv_blocks")
    if levels not in LEVELS:
        raise UserError(f"{path} has {levels} levels; VQ-16 has 5, VQ-8 has 4.")
    quantizer = {"codebook_size": codes, "dim": dim}
    autoencoder = {
        "quantizer": {"class_path": "lgpl.tokenizer.VectorQuantizer", "init_args": quantizer},
        "multipliers": LEVELS[levels],
        "z_channels": z_channels,
    }
    # It is released without what it was trained against.
    loss: dict[str, Any] = {"perceptual": None, "discriminator": None}
    return {
        "class_path": "lgpl.tokenizer.TokenizerModule",
        "init_args": {
            "autoencoder": {"class_path": "lgpl.tokenizer.VQModel", "init_args": autoencoder},
            "loss": {"class_path": "lgpl.tokenizer.TokenizerLoss", "init_args": loss},
        },
    }


def _generator_config(
    state: Mapping[str, Tensor],
    path: Path,
    rope: Tensor | None,
    grid: int | None,
    heads: int | None,
) -> dict[str, Any]:
    codes, dim = _shape(state, "tok_embeddings.weight", path)[:2]
    layers = _count(state, "layers")
    condition: dict[str, Any]
    if "cls_embedding.uncond_embedding" in state:
        prefix, features = _shape(state, "cls_embedding.uncond_embedding", path)[:2]
        kind, condition = "Text", {"features": features, "length": prefix, "trainable_null": False}
        if features in TEXT_ENCODERS:
            encoder = {"name": TEXT_ENCODERS[features], "max_length": prefix, "dtype": "bfloat16"}
            condition["encoder"] = {"class_path": "lgpl.text.TextEncoder", "init_args": encoder}
    else:
        prefix, rows = 1, _shape(state, "cls_embedding.embedding_table.weight", path)[0]
        kind, condition = "Class", {"num_classes": rows - 1}  # the last is the null condition
    prefix_rope = "zero"  # of all that LlamaGen trained
    if rope is not None:
        grid, heads, prefix_rope = _read_rope(rope, path, prefix, dim, grid)
    sizes = {(n, width): h for n, h, width in SIZES.values()}
    heads = heads or sizes.get((layers, dim))
    if heads is None:
        raise UserError(
            f"{path} has {layers} layers {dim} wide, no size of the paper, and does not tell its "
            "heads: give --heads."
        )
    sides = {name: int(name) // DOWNSAMPLING for name in re.findall(r"_(256|384|512)", path.stem)}
    if grid is None and len(sides) == 1:
        (grid,) = sides.values()
    if grid is None:
        raise UserError(
            f"{path} does not tell the size of its images, neither in its name (_256, _384, "
            "_512) nor inside: give --grid, the codes on a side (24 for 384 px)."
        )
    names = {size: name for name, size in SIZES.items()}
    transformer = {
        "size": names.get((layers, heads, dim), [layers, heads, dim]),
        "codebook_size": codes,
        "grid": [grid, grid],
        "prefix_rope": prefix_rope,
        "condition": {
            "class_path": f"lgpl.generator.{kind}Condition",
            "init_args": condition,
        },
    }
    return {
        "class_path": "lgpl.generator.GeneratorModule",
        "init_args": {
            "transformer": {"class_path": "lgpl.generator.Transformer", "init_args": transformer},
        },
    }


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
