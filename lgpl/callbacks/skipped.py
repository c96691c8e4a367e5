"""Skipped samples in the loggers, by cause."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lgpl.data.loader import TrainLoader


class SkippedSamples(Callback):
    """Logs `data/skipped/CAUSE`, the number of samples that all ranks have skipped so far.

    Logged every `log_every_n_steps`, but only after the first skipped sample.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loader = trainer.train_dataloader
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every or not isinstance(loader, TrainLoader):
            return
        ranks = [loader.skipped] * trainer.world_size
        if trainer.world_size > 1:
            dist.all_gather_object(ranks, loader.skipped)
        skipped: Counter[str] = sum(ranks, Counter())
        metrics = {f"data/skipped/{cause}": float(count) for cause, count in skipped.items()}
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
