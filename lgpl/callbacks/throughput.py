"""Images and tokens per second."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lgpl.generator.module import GeneratorModule


class Throughput(Callback):
    """Logs `images_per_second` over all ranks, and `tokens_per_second` of a generator.

    Measured between two logging steps, so it costs no synchronisation; validation is left out.

    Args:
        every: training batches between two figures.
    """

    def __init__(self, every: int = 20) -> None:
        self.every = every
        self._forget()

    def _forget(self) -> None:
        self._since: float | None = None
        self._images = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        if self._since is None:
            self._since = time.perf_counter()
            return
        self._images += len(batch["key"]) * trainer.world_size
        if (batch_idx + 1) % self.every:
            return
        rate = self._images / (time.perf_counter() - self._since)
        figures = {"train/images_per_second": rate}
        if isinstance(pl_module, GeneratorModule):
            figures["train/tokens_per_second"] = rate * pl_module.model.code_count
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        self._forget()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget()
