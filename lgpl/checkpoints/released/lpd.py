"""LPD's checkpoint files (arXiv 2507.01957): their names for weights, and which model one is.

Everything but the number of heads is found out from the names and shapes inside; that comes from
the paper's sizes. Its generators draw codes of LlamaGen's tokenizer VQ-16.
"""

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.checkpoints.files import Checkpoint, check_weights
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
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, ParallelTransformer
from lgpl.generator.transformer import SIZES
from lgpl.training.build import build_described, one_sentence

# What no file of another family has; any of them may be what a damaged one lacks.
MARKS = {"fake_latent", "mask_token", "token_emb.weight", "z_proj_ln.bias", "z_proj_ln.weight"}
# (lgpl's names, LPD's); what they call by the same name is left out
RENAMED = (
    (r"^tok_embeddings\.", "token_emb."),
    (r"^input_norm\.", "z_proj_ln."),
    (r"^output\.", "head."),
    (r"^layers\.(\d+)\.attention_norm\.", r"blocks.\1.norm1."),
    (r"^layers\.(\d+)\.attention\.wqkv\.", r"blocks.\1.attn.qkv."),
    (r"^layers\.(\d+)\.attention\.wo\.", r"blocks.\1.attn.proj."),
    (r"^layers\.(\d+)\.ffn_norm\.", r"blocks.\1.norm2."),
    (r"^layers\.(\d+)\.feed_forward\.w1\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.feed_forward\.w2\.", r"blocks.\1.mlp.fc2."),
    (r"^positions$", "pos_embed"),
    (r"^query$", "mask_token"),
)
CLASSES = "condition.embedding.weight"  # here with the null class as its last row


def is_lpd(state: State) -> bool:
    """Whether weights are of this family, whole or not."""
    return bool(MARKS & state.keys())


def read(state: State, path: Path, grid: int | None, heads: int | None) -> Released:
    """What the weights of a file are; see `read_released`."""
    config = _config(state, path, grid, heads)
    return released("generator", config, state, path, "LPD", _to_theirs, _to_ours)


def to_lpd(checkpoint: Checkpoint, trust: Iterable[str] = ()) -> dict[str, State]:
    """The content of a file that LPD's own code loads; raises UserError where the model has
    something that it does not know."""
    with one_sentence(checkpoint.path), torch.device("meta"):
        module = build_described(checkpoint, trust=trust)
        module.configure_model()
    source = f"{checkpoint.path} cannot be written for LPD: it"
    if not isinstance(module, GeneratorModule):
        raise UserError(f"{source} is a {module.kind}, not a generator.")
    if unlike := differences(module):
        raise UserError(f"{source} {' and '.join(unlike)}.")
    model: Any = module.model
    weights = _to_theirs(checkpoint.weights())
    config = _config(weights, checkpoint.path, model.layout.rows, model.heads)
    check_weights(_to_theirs(model_state(config)), weights, source, "LPD's model")
    return {"model": weights}


def differences(module: GeneratorModule) -> list[str]:
    """What a module, which may be on the meta device, has that LPD's code does not know."""
    model = module.model
    if not isinstance(model, ParallelTransformer):
        return [f"is a {type(model).__name__}, not a ParallelTransformer"]
    unlike, layout = [], model.layout
    if not model.condition.tokens:
        unlike.append(f"has a {type(model.condition).__name__}, not classes")
    if layout.rows != layout.columns or layout.depth > 1:
        unlike.append(f"has codes of {layout}, not a square of single ones")
    return unlike


def _to_theirs(weights: Mapping[str, Tensor]) -> State:
    """A state dict in LPD's names and shapes."""
    theirs: State = {}
    for name, tensor in weights.items():
        if name == CLASSES:
            theirs["class_emb.weight"], theirs["fake_latent"] = tensor[:-1], tensor[-1:]
            continue
        for pattern, replaced in RENAMED:
            name = re.sub(pattern, replaced, name)
        if name in ("pos_embed", "mask_token"):
            tensor = tensor.view(1, -1, tensor.shape[-1])
        theirs[name] = tensor
    return theirs


def _to_ours(expected: Mapping[str, Tensor], state: State) -> State:
    """Weights of a file under lgpl's names, in the shapes of `expected`."""
    ours: State = {}
    for name, tensor in expected.items():
        found = _to_theirs({name: tensor})
        parts = [state[their] for their in found]
        ours[name] = (torch.cat(parts) if len(parts) > 1 else parts[0]).view(tensor.shape)
    return ours


def _config(state: State, path: Path, grid: int | None, heads: int | None) -> dict[str, Any]:
    codes, dim = shape_of(state, "token_emb.weight", path, "LPD")[:2]
    classes = shape_of(state, "class_emb.weight", path, "LPD")[0]
    places = shape_of(state, "pos_embed", path, "LPD")[1] - 1  # without the class
    side, layers = isqrt(max(1, places)), count(state, "blocks")
    if side**2 != places:
        raise UserError(f"{path} has a pos_embed for {places} codes, which are no square.")
    if grid not in (None, side):
        raise UserError(
            f"--grid: {grid} is not {path}'s, whose pos_embed is for {side}x{side} codes."
        )
    sizes = {(n, width): h for n, h, width in SIZES.values()}
    heads = heads or sizes.get((layers, dim))
    if heads is None:
        found = f"{path} needs --heads, unknown for {layers} layers of {dim}"
        raise UserError(f"{found}; if the model is LPD's own, the file is not whole.")
    names = {size: name for name, size in SIZES.items()}
    transformer = entry(
        "lgpl.generator.ParallelTransformer",
        size=names.get((layers, heads, dim), [layers, heads, dim]),
        codebook_size=codes,
        grid=[side, side],
        condition=class_condition(classes),
    )
    return entry("lgpl.generator.GeneratorModule", transformer=transformer)
