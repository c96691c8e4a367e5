"""Checkpoints -> what draws."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from lgpl.errors import UserError
from lgpl.generator.decoders.base import check_decoder
from lgpl.generator.module import GeneratorModule
from lgpl.generator.quantization import int8_weights
from lgpl.training import load_module


def usable_device(name: str) -> str:
    """`auto` is the GPU where there is one; any other name is tried at once."""
    if name == "auto":
        local = os.environ.get("LOCAL_RANK", "0")
        return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device: {name} cannot be used here ({reason}).") from error
    return name


def load_generator(
    path: str,
    tokenizer: str | None,
    device: str,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    trust: Iterable[str] = (),
) -> GeneratorModule:
    """The generator of a checkpoint with its tokenizer, ready to sample and for nothing else.

    Args:
        path: see `read_checkpoint`.
        tokenizer: checkpoint of its tokenizer, where it is not the one that the config names.
        device: where to draw.
        dtype: of the generator's weights.
        int8: keep them in 8 bits.
        trust: packages whose classes the checkpoints may name beside lgpl's own.
    """
    module = load_module(path, "generator", trust=trust)
    assert isinstance(module, GeneratorModule)
    module.use_tokenizer(tokenizer, path)
    module.to(device)
    module.check_tokenizer()
    check_decoder(module.model, module.decoder)
    module.model.to(dtype)
    if int8:
        int8_weights(module.model)
    module.model.pack()
    return module
