"""Checkpoints that the end of a run does not fall between."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which with `every_n_train_steps` and `save_last` also saves
    `last.ckpt` at the end of every epoch; else the steps after the last multiple are lost."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        saved = self._last_global_step_saved == trainer.global_step
        if not saved and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
