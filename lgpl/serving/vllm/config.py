"""How an exported generator says what it is, without vLLM and without transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lgpl.checkpoints import Checkpoint
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Transformer
from lgpl.training import build_described


def outline(config: dict[str, Any], trust: Iterable[str] = ()) -> Transformer:
    """The `Transformer` that a generator's config builds, on the meta device.

    Args:
        config: `class_path` and `init_args` of the module.
        trust: packages whose classes it may name beside lgpl's own.

    Raises:
        UserError: the config builds another model, or cannot be built.
    """
    checkpoint = Checkpoint(Path("config.json"), "generator", config, dict)
    with torch.device("meta"):
        module = build_described(checkpoint, trust=trust)
        module.configure_model()
    assert isinstance(module, GeneratorModule)
    if not isinstance(module.model, Transformer):
        raise UserError(
            f"vLLM runs lgpl.generator.Transformer, not {type(module.model).__name__}; "
            "`lgpl serve` without --engine vllm takes it."
        )
    if module.model.layout.depth > 1:
        raise UserError(
            f"vLLM runs generators with one code a place, not {module.model.layout.depth}; `lgpl "
            "serve` without --engine vllm takes this one."
        )
    return module.model
