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


def test_the_first_decays_are_a_quarter_and_four_thirteenths() -> None:
    """(1 + t) / (10 + t) of the steps 2 and 3, of a weight that falls from 1 to 0."""
    assert averaged([1.0, 0.0], 0.9999) == pytest.approx(1 / 4)
    assert averaged([1.0, 0.0, 0.0], 0.9999) == pytest.approx(1 / 4 * 4 / 13)


def test_the_decay_is_reached_and_kept() -> None:
    """From step 8 on a decay of 0.5 halves what a step has added, with every further step."""
    for later, share in enumerate((0.5, 0.25, 0.125)):
        assert averaged([0.0] * 7 + [1.0] + [0.0] * later, 0.5) == pytest.approx(share)
        assert averaged([0.0] * 50 + [1.0] + [0.0] * later, 0.5) == pytest.approx(share)
