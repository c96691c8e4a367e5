"""Small exported models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lgpl.checkpoints import write_checkpoint
from lgpl.generator import Transformer
from lgpl.tokenizer import VectorQuantizer, VQModel

FEATURES, TEXT_LENGTH = 24, 10


# Those of the text encoder minilm.
MINILM = {"text_features": 384, "text_length": 24}


def export_generator(folder: Path, **changes: Any) -> Transformer:
    """Write a generator as `lgpl export` does, and give its model."""
    arguments: dict[str, Any] = {"size": [2, 4, 64], "codebook_size": 48, "grid": [6, 5]}
    arguments.update(changes)
    torch.manual_seed(0)
    model = Transformer(**arguments).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.3)  # far from each other, so that no rounding decides
    built = {"class_path": "lgpl.generator.Transformer", "init_args": arguments}
    encoder = {
        "class_path": "lgpl.text.TextEncoder",
        "init_args": {"max_length": MINILM["text_length"]},
    }
    reads_minilm = arguments.get("text_features") == MINILM["text_features"]
    config = {
        "class_path": "lgpl.generator.GeneratorModule",
        "init_args": {
            "transformer": built,
            "tokenizer": str(folder.parent / "tokenizer"),
            "text_encoder": encoder if reads_minilm else None,
        },
    }
    write_checkpoint(folder, "generator", config, model.state_dict())
    return model


def export_tokenizer(folder: Path, codebook_size: int = 48) -> None:
    """Write a tokenizer that makes 4 pixels a side of each code."""
    quantizer = {"codebook_size": codebook_size, "dim": 8}
    sizes: dict[str, Any] = {"width": 32, "multipliers": [1, 1, 1], "z_channels": 32}
    torch.manual_seed(0)
    model = VQModel(quantizer=VectorQuantizer(**quantizer), **sizes)
    built = {"class_path": "lgpl.tokenizer.VectorQuantizer", "init_args": quantizer}
    config = {
        "class_path": "lgpl.tokenizer.TokenizerModule",
        "init_args": {
            "autoencoder": {
                "class_path": "lgpl.tokenizer.VQModel",
                "init_args": {"quantizer": built, **sizes},
            },
            "loss": {
                "class_path": "lgpl.tokenizer.TokenizerLoss",
                "init_args": {"perceptual": None, "discriminator": None},
            },
        },
    }
    write_checkpoint(folder, "tokenizer", config, model.state_dict())
