"""LlamaGen's checkpoint files (arXiv 2406.06525): their names for weights, and which model one is.

A file says nothing about itself, so everything is found out from the names and shapes inside: the
tokenizer's levels, the generator's size, its condition. Two things no shape shows, the grid and the
number of heads: they come from the rotary table where the file holds it, the heads else from the
paper's sizes and the grid from the file's name.
"""

import argparse
import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lgpl.checkpoints.files import MODEL, Checkpoint, check_weights, load_tensors
from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Transformer
from lgpl.generator.blocks import rotary_table
from lgpl.generator.conditions.classes import IMAGENET, read_names
from lgpl.generator.transformer import SIZES
from lgpl.tokenizer import TokenizerModule, VectorQuantizer
from lgpl.training import TrainingModule
from lgpl.training.build import build_described, build_module, one_sentence

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
IMAGENET_CLASSES = 1000


class Released(NamedTuple):
    """What a file holds, in lgpl's terms."""

    kind: str  # `tokenizer` or `generator`
    config: dict[str, Any]  # `class_path` and `init_args` of its module
    weights: dict[str, Tensor]  # state dict of the `VQModel` or `Transformer`
    summary: str  # one line for people


def llamagen_name(name: str) -> str:
    """LlamaGen's name of a weight of `VQModel` or `Transformer`."""
    for pattern, theirs in RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def read_released(path: str | Path, grid: int | None = None, heads: int | None = None) -> Released:
    """A .pt file of LlamaGen, released or saved by its training scripts; raises UserError where it
    is no such file, holds code, or lacks weights.

    Args:
        grid: codes on a side of a generator's image, where the file does not say.
        heads: heads of a generator of no size of the paper, where the file does not say.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .pt file of LlamaGen.")
    # The training scripts save their arguments as a Namespace, which is data.
    content = load_tensors(path, data_classes=[argparse.Namespace])
    held = content if isinstance(content, dict) else {}
    named = next((held[key] for key in WEIGHTS if isinstance(held.get(key), dict)), held)
    state = {WRAPPERS.sub("", str(n)): t for n, t in named.items() if isinstance(t, Tensor)}
    if not state:
        raise UserError(f"{path} holds no weights, neither bare nor under {', '.join(WEIGHTS)}.")
    rope = state.pop(ROPE, None)
    state.pop(USAGE, None)
    if "quantize.embedding.weight" in state:
        kind, config = "tokenizer", _tokenizer_config(state, path)
    else:
        kind, config = "generator", _generator_config(state, path, rope, grid, heads)
    expected = _state(config)
    check_weights(_renamed(expected), state, str(path), "LlamaGen's model")
    weights = {
        name: torch.zeros_like(tensor, device="cpu") if name == OURS else state[llamagen_name(name)]
        for name, tensor in expected.items()
    }
    millions = sum(tensor.numel() for tensor in state.values()) / 1e6
    options = config["init_args"][MODEL[kind]]["init_args"]
    named = options | options.get("condition", {}).get("init_args", {})
    plain = [f"{k} {v}" for k, v in named.items() if not isinstance(v, dict) and k != "names"]
    summary = ", ".join([kind, f"{millions:.1f}M weights", *plain])
    return Released(kind, config, weights, summary)


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
        theirs = _tokenizer_config(weights, checkpoint.path)
    else:
        model: Any = module.model
        heads, rows = model.heads, model.layout.rows
        theirs = _generator_config(weights, checkpoint.path, None, rows, heads)
    check_weights(_renamed(_state(theirs)), weights, source, "LlamaGen's model")
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


def _state(config: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of a config's model, on fake tensors."""
    with torch.device("meta"):
        module = build_module(config)
        module.configure_model()
    return getattr(module, MODEL[module.kind]).state_dict()


def _shape(state: dict[str, Tensor], name: str, path: Path) -> list[int]:
    """Of a matrix (or a kernel) that says how large the model is."""
    if name not in state:
        raise UserError(f"{path} has no weight {name}: it is not whole, or no model of LlamaGen.")
    if state[name].dim() < 2:
        raise UserError(f"{path} has {name} of {[*state[name].shape]}, which should be a matrix.")
    return [*state[name].shape]


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """How many of a numbered kind of layer there are."""
    found = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _entry(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def _tokenizer_config(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    codes, dim = _shape(state, "quantize.embedding.weight", path)[:2]
    levels = _count(state, "encoder.conv_blocks")
    if levels not in LEVELS:
        raise UserError(f"{path} has {levels} levels; VQ-16 has 5, VQ-8 has 4.")
    autoencoder = _entry(
        "lgpl.tokenizer.VQModel",
        quantizer=_entry("lgpl.tokenizer.VectorQuantizer", codebook_size=codes, dim=dim),
        multipliers=LEVELS[levels],
        z_channels=_shape(state, "quant_conv.weight", path)[1],
    )
    # It is released without what it was trained against.
    loss = _entry("lgpl.tokenizer.TokenizerLoss", perceptual=None, discriminator=None)
    return _entry("lgpl.tokenizer.TokenizerModule", autoencoder=autoencoder, loss=loss)


def _generator_config(
    state: dict[str, Tensor], path: Path, rope: Tensor | None, grid: int | None, heads: int | None
) -> dict[str, Any]:
    codes, dim = _shape(state, "tok_embeddings.weight", path)[:2]
    layers = _count(state, "layers")
    if "cls_embedding.uncond_embedding" in state:
        prefix, features = _shape(state, "cls_embedding.uncond_embedding", path)[:2]
        options: dict[str, Any] = {"features": features, "length": prefix, "trainable_null": False}
        if name := TEXT_ENCODERS.get(features):
            encoder = {"name": name, "max_length": prefix, "dtype": "bfloat16"}
            encoder["captions"] = "llamagen"  # its cleaning, which plain text would not match
            options["encoder"] = _entry("lgpl.text.TextEncoder", **encoder)
        condition = _entry("lgpl.generator.TextCondition", **options)
    else:
        prefix, rows = 1, _shape(state, "cls_embedding.embedding_table.weight", path)[0]
        # The last row is the null condition.
        options = {"num_classes": rows - 1}
        if rows - 1 == IMAGENET_CLASSES:
            options["names"] = read_names(IMAGENET)
        condition = _entry("lgpl.generator.ClassCondition", **options)
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
    transformer = _entry(
        "lgpl.generator.Transformer",
        size=names.get((layers, heads, dim), [layers, heads, dim]),
        codebook_size=codes,
        grid=[grid, grid],
        prefix_rope=prefix_rope,
        condition=condition,
    )
    return _entry("lgpl.generator.GeneratorModule", transformer=transformer)


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
