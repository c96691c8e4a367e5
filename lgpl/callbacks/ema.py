"""Exponential moving average of the weights, used wherever the model is evaluated."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """Keeps w' <- decay w' + (1 - decay) w after every optimizer step.

    Validation runs on the average, and the checkpoint's `state_dict` is the average, so that
    `validate`, `predict`, `sample` and a second stage take it by themselves; the raw weights stand
    in `current_model_state` for resuming. Buffers (counters, statistics) are copied, not averaged.

    Args:
        decay: of the average; the paper uses 0.9999.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
