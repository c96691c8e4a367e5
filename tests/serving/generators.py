"""Small exported models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lgpl.checkpoints import write_checkpoint
from lgpl.generator import GeneratorModule, Model
from lgpl.tokenizer import VectorQuantizer, VQModel
from lgpl.training import build_module

Config = dict[str, Any]
FEATURES, TEXT_LENGTH = 24, 10


def class_config(number: int) -> Config:
    """The config of a class condition."""
    return {"class_path": "lgpl.generator.ClassCondition", "init_args": {"num_classes": number}}


def text_config(features: int, length: int, encoder: Config | None = None) -> Config:
    """The config of a text condition."""
    options = {"features": features, "length": length, "encoder": encoder}
    return {"class_path": "lgpl.generator.TextCondition", "init_args": options}


# Draws in an order that is no raster: any part of an image can be drawn anew.
EVEN_FIRST: Config = {"class_path": "tests.contracts.EvenFirst", "init_args": {}}
# The condition of captions that the text encoder minilm reads.
MINILM = text_config(
    384, 24, {"class_path": "lgpl.text.TextEncoder", "init_args": {"max_length": 24}}
)


def export_generator(
    folder: Path,
    condition: Config,
    decoder: Config | None = None,
    model: str = "Transformer",
    **changes: Any,
) -> Model:
    """Write a generator of a model of `lgpl.generator` as `lgpl export` does, and give that."""
    sizes = {"size": [2, 4, 64], "codebook_size": 48, "grid": [6, 5], **changes}
    built = {
        "class_path": f"lgpl.generator.{model}",
        "init_args": {"condition": condition, **sizes},
    }
    config = {
        "class_path": "lgpl.generator.GeneratorModule",
        "init_args": {
            "transformer": built,
            "tokenizer": str(folder.parent / "tokenizer"),
            "decoder": decoder,
        },
    }
    module = build_module(config)
    assert isinstance(module, GeneratorModule)
    torch.manual_seed(0)
    made = module.model.eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.3)  # far from each other, so that no rounding decides
    write_checkpoint(folder, "generator", config, made.state_dict())
    return made


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
