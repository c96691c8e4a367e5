"""What the moving average holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lgpl.callbacks import EMA


class Weight(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))


def averaged(values: list[float], decay: float) -> float:
    """The average after steps that left these weights."""
    module, ema = Weight(), EMA(decay)
    trainer: Any = SimpleNamespace(global_step=0)
    ema.on_train_start(trainer, module)
    for value in values:
        with torch.no_grad():
            module.w.fill_(value)
        trainer.global_step += 1
        ema.on_train_batch_end(trainer, module, None, None, 0)
    ema.on_fit_end(trainer, module)
    return module.w.item()


def test_a_short_run_forgets_its_first_weights() -> None:
    """With a constant 0.9999, nine tenths of the average would be the first step's."""
    assert averaged([100.0] + [1.0] * 999, 0.9999) < 1.001


def test_the_decay_is_reached_and_kept() -> None:
    values = [float(i % 7) for i in range(50)]
    expected = values[0]
    for step, value in enumerate(values[1:], 2):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert averaged(values, 0.5) == pytest.approx(expected, rel=1e-5)
