"""A checkpoint at the end of every epoch."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which with `every_n_train_steps` and `save_last` also saves
    `last.ckpt` at the end of every epoch; else the steps after the last multiple are lost."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        saved = self._last_global_step_saved == trainer.global_step
        if not saved and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
