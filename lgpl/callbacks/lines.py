"""The progress of a run, for a log file: lines, without codes of a terminal."""

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar

from lgpl.progress import PAUSE, SECONDS, SHARE


class LineProgress(ProgressBar):
    """A line after a tenth of an epoch or of a pass, or a minute, with the metrics that a bar would
    show; and those of a validation when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._shown, self._said, self._said_at = True, 0.0, time.monotonic()

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def _log(
        self, what: str, done: int, total: float, pause: float = PAUSE, more: str = ""
    ) -> None:
        known = math.isfinite(total) and total > 0
        share, now = done / total if known else 0.0, time.monotonic()
        if share < self._said:  # another epoch
            self._said = 0.0
        passed = now - self._said_at
        if passed >= SECONDS or (passed >= pause and share >= self._said + SHARE - 1e-9):
            self._said, self._said_at = share, now
            of = f" of {total:.0f} ({share:.0%})" if known else ""
            if self._shown:
                print(f"{what}: {done}{of} batches{more}", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        more = "".join(f", {one}" for one in self._metrics(trainer, pl_module))
        epoch, total = f"epoch {trainer.current_epoch}", self.total_train_batches
        self._log(epoch, batch_idx + 1, total, 0.0, more)  # a loss is worth a line

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = self._metrics(trainer, pl_module, "val/")
        if found and self._shown and trainer.global_step:  # else `lgpl validate` prints them
            print(f"validation at step {trainer.global_step}: {', '.join(found)}", flush=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *at: int
    ) -> None:
        if trainer.state.fn == "validate":  # that of a training is short
            self._log("validation", at[0] + 1, trainer.num_val_batches[at[1] if at[1:] else 0])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *at: int
    ) -> None:
        self._log("test", at[0] + 1, trainer.num_test_batches[at[1] if at[1:] else 0])

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *at: int
    ) -> None:
        self._log("predict", at[0] + 1, trainer.num_predict_batches[at[1] if at[1:] else 0])

    def _metrics(self, trainer: Trainer, module: LightningModule, start: str = "") -> list[str]:
        found = self.get_metrics(trainer, module).items()
        said = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found)
        return [one for one in said if one.startswith(start)]


class ParameterCounts(ModelSummary):
    """The parts of a model and their parameters; Lightning's own counts no FLOPs, and says 0."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        columns = dict(summary_data)
        names, kinds = columns["Name"], columns["Type"]
        counts = columns.get("Params") or columns["Params per Device"]
        for name, kind, count in zip(names, kinds, counts, strict=True):
            if count.strip() != "0":
                print(f"{name:<16}{kind:<20}{count:>10}")
        trained = f"{trainable_parameters:,} are trained"
        print(f"{total_parameters:,} parameters, {trained}", flush=True)
