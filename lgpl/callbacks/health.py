"""Runs that go wrong: gradients not finite, collapsing codebooks, saturated discriminators."""

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lgpl.callbacks.monitoring import total_norm
from lgpl.errors import UserError
from lgpl.tokenizer.module import TokenizerModule

log = logging.getLogger(__name__)

KEYS = 8  # of a batch, in a message


class NaNGuard(Callback):
    """Skips steps whose gradients are not finite, and ends a run after several in a row.

    A skipped step changes neither weights nor the optimizer's state; it is counted in
    `health/skipped_steps` and in the checkpoint. Every step waits for the gradients' norm.

    Args:
        patience: number of skipped steps in a row that end the run.
    """

    def __init__(self, patience: int = 5) -> None:
        if patience < 1:
            raise UserError(f"NaNGuard.patience must be >= 1, got {patience}")
        self.patience = patience
        self.skipped = self._in_a_row = 0
        self._finite: list[bool] = []  # the gradients of each step of the last batches
        self._keys: list[str] = []  # of the batches since the last step

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:  # Lightning does not see all of its steps
            for optimizer in trainer.optimizers:  # which are made anew for every fit
                optimizer.register_step_pre_hook(self._check)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if pl_module.automatic_optimization:
            self._check(optimizer)

    def _check(self, optimizer: Optimizer, *_: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in weights if p.grad is not None]
        if not gradients:
            return
        self._finite.append(math.isfinite(total_norm(gradients)))
        if not self._finite[-1]:
            for weight in weights:
                weight.grad = None  # which an optimizer leaves alone

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._keys += batch["key"]
        if not self._finite:  # gradients are still being accumulated
            return
        keys, failed = self._keys, not all(self._finite)
        self._keys, self._finite = [], []
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if not failed:
            return
        self.skipped += 1
        named = ", ".join(keys[:KEYS]) + (", ..." if len(keys) > KEYS else "")
        where = f"samples {named} on rank {trainer.global_rank}"
        log.warning("Step skipped: gradients that are not finite (%s).", where)
        for logger in trainer.loggers:
            logger.log_metrics({"health/skipped_steps": self.skipped}, step=trainer.global_step)
        if self._in_a_row >= self.patience:
            said = f"{self._in_a_row} steps in a row had gradients that are not finite"
            advice = "lower model.lr or model.gradient_clip, or go on from an earlier checkpoint"
            raise UserError(f"{said}, the last with the {where}: {advice}.")


class TokenizerHealth(Callback):
    """Warns when the codebook collapses or the discriminator saturates, and names options.

    Args:
        every: training batches between two checks.
        usage: share of the codebook below which it counts as collapsed.
        discriminator_loss: below it the discriminator separates all images.
        patience: number of bad checks in a row before a warning.
    """

    def __init__(
        self,
        every: int = 100,
        usage: float = 0.1,
        discriminator_loss: float = 0.05,
        patience: int = 5,
    ) -> None:
        self.every, self.patience = every, patience
        self.least = {"train/usage": usage, "train/discriminator/loss": discriminator_loss}
        self._bad = dict.fromkeys(self.least, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.every:
            return
        assert isinstance(pl_module, TokenizerModule)
        for name, least in self.least.items():
            if (value := trainer.callback_metrics.get(name)) is None:
                continue
            self._bad[name] = self._bad[name] + 1 if value.item() < least else 0
            if self._bad[name] == self.patience:  # once, until it has recovered
                log.warning("%s", self._advice(name, value, pl_module))

    def _advice(self, name: str, value: torch.Tensor, module: TokenizerModule) -> str:
        if name == "train/usage":
            quantizer = getattr(module.autoencoder, "quantizer", module.autoencoder)
            options = {"revive_after": "set {} to 50 or so", "entropy_weight": "raise {}"}
            ways = [way.format(name) for name, way in options.items() if hasattr(quantizer, name)]
            return (
                f"The codebook collapses: {value.item():.1%} of its codes are in use. For the "
                f"{type(quantizer).__name__}: {', '.join([*ways, 'lower model.lr'])}."
            )
        return (
            f"The discriminator saturates: its loss is {value.item():.3f}. Lower "
            f"loss.init_args.adversarial_weight ({module.loss.adversarial_weight:g}), make the "
            f"discriminator smaller, or raise discriminator_start ({module.discriminator_start})."
        )
