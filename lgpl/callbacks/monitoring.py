"""What is logged beside the losses: the codebook's use, gradient norms, hyperparameters."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lgpl.tokenizer.module import TokenizerModule
from lgpl.training import TrainingModule


class CodebookHistogram(Callback):
    """How often the codes occur in validation, as a histogram in TensorBoard or W&B.

    A code of average frequency lies at 1, one that never occurs at 0. Only the first rank's images
    count.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TokenizerModule)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        counts, step = pl_module.val_usage.counts.double(), trainer.global_step
        if not counts.sum():
            return
        relative = (counts * len(counts) / counts.sum()).cpu()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram("val/codes", relative, step)
            elif isinstance(logger, WandbLogger):
                from wandb import Histogram

                logger.log_metrics({"val/codes": Histogram(relative.tolist())}, step)  # type: ignore[dict-item]


class GradientNorms(Callback):
    """The norm of each layer's gradient, `gradient_norm/LAYER`, before it is clipped; a tokenizer's
    module clips by itself, before this.

    A layer is a module of a list, such as a transformer's block, or else the first two parts of a
    parameter's name.

    Args:
        every: optimizer steps between two measurements; each waits for the device.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if (trainer.global_step + 1) % self.every:
            return
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        layers: dict[str, list[torch.Tensor]] = {}
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and id(parameter) in owned:
                layers.setdefault(layer_of(name), []).append(parameter.grad)
        metrics = {}
        for layer, gradients in layers.items():
            norm = get_total_norm(gradients)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            metrics[f"gradient_norm/{layer}"] = norm.item()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def layer_of(parameter: str) -> str:
    """`transformer.layers.3` of `transformer.layers.3.attention.wqkv.weight`."""
    parts = parameter.split(".")[:-1]
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2]) or parameter


class HyperParameters(Callback):
    """The config and, at the end, the last validation metrics: TensorBoard's HParams tab; other
    loggers get the config."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        config: dict[str, Any] = {"model": pl_module.config or {}}
        metrics = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("val/", "test/"))
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(config, metrics)
            else:
                logger.log_hyperparams(config)
            logger.save()
