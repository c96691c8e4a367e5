"""Generators for tests, and what they are conditioned on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lgpl.generator import ClassCondition, TextCondition, Transformer
from lgpl.generator.conditions import Inputs
from lgpl.text import TextEncoder


def transformer(
    *args: Any,
    num_classes: int | None = None,
    text_features: int | None = None,
    text_length: int = 120,
    condition_dropout: float = 0.1,
    trainable_null: bool = True,
    encoder: TextEncoder | None = None,
    **options: Any,
) -> Transformer:
    """A `Transformer` with a text condition where there are `text_features`, else with classes; of
    the paper's codebook and grid where nothing else is said.

    Args:
        args, options: of `Transformer`, without its condition.
    """
    if text_features is None:
        condition: Any = partial(ClassCondition, num_classes=num_classes, dropout=condition_dropout)
    else:
        condition = partial(
            TextCondition, features=text_features, length=text_length, dropout=condition_dropout,
            trainable_null=trainable_null, encoder=encoder,
        )  # fmt: skip
    named = dict(zip(("size", "codebook_size", "grid", "depth"), args, strict=False))
    papers = {"codebook_size": 16384, "grid": (16, 16)}
    return Transformer(condition, **{**papers, **named, **options})


def labels(*numbers: int) -> Inputs:
    """Inputs of a class condition."""
    return {"class": torch.tensor(numbers)}


def text(features: Tensor, lengths: Tensor | None = None) -> Inputs:
    """Inputs of a text condition.

    Args:
        features: [B, L, F], left-padded.
        lengths: of the real positions [B]; all are real by default.
    """
    if lengths is None:
        lengths = torch.full((len(features),), features.shape[1], device=features.device)
    return {"text": features, "text_lengths": lengths}


def some(inputs: Inputs, rows: slice | list[int] | Tensor) -> Inputs:
    """Inputs of some samples of a batch."""
    return {name: value[rows] for name, value in inputs.items()}


def on(inputs: Inputs, device: torch.device | str) -> Inputs:
    """Inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}
