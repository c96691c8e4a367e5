"""What is logged beside the losses: the codebook's use, gradient norms, hyperparameters, skipped
samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lgpl.data.loader import TrainLoader
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
        layers: dict[str, list[Tensor]] = {}
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and id(parameter) in owned:
                layers.setdefault(layer_of(name), []).append(parameter.grad)
        metrics = {f"gradient_norm/{layer}": total_norm(layers[layer]) for layer in layers}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def total_norm(gradients: list[Tensor]) -> float:
    """The norm of all together, sharded ones too."""
    norm = get_total_norm(gradients)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


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
        found = trainer.callback_metrics.items()
        metrics = {n: value.item() for n, value in found if n.startswith(("val/", "test/"))}
        for logger in trainer.loggers:
            shown = {"metrics": metrics} if isinstance(logger, TensorBoardLogger) else {}
            logger.log_hyperparams(config, **shown)
            logger.save()


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
