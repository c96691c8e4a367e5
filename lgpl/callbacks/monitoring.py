"""What is logged beside the losses: speed, memory, codes, gradients, config, skipped samples."""

import resource
import sys
import time
from collections import Counter
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lgpl.data import ShardDataModule
from lgpl.data.loader import TrainLoader
from lgpl.generator.blocks import Block
from lgpl.generator.module import GeneratorModule
from lgpl.tokenizer.module import TokenizerModule
from lgpl.training import TrainingModule, build_module
from lgpl.training.estimate import HALF, estimate_step


class Throughput(Callback):
    """Logs how well a run uses its devices, averaged over the batches since the last log.

    `images_per_second` over all ranks, and `tokens_per_second` of a generator; `data_wait`, the
    share of the time between a batch's end and the next one's start; `peak_gib`, of the device's
    memory or else of the process; `tflops` achieved by a device, and `mfu`, their share of its rate
    where that is known. Nothing waits for the device; validation is left out.

    Args:
        every: training batches between two logs.
        flops: count the operations of a step once, on the meta device, as `lgpl plan` does: a
            tokenizer's with its discriminator, without what the backward pass recomputes. None
            counts them on GPUs.
    """

    def __init__(self, every: int = 20, flops: bool | None = None) -> None:
        self.every, self.flops = every, flops
        self._flops_per_image: float | None = None
        self._forget()

    def _forget(self) -> None:
        self._since: float | None = None
        self._ended: float | None = None
        self._images, self._waited = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wanted = pl_module.device.type == "cuda" if self.flops is None else self.flops
        data = getattr(trainer, "datamodule", None)
        if not wanted or not trainer.is_global_zero or not isinstance(data, ShardDataModule):
            return
        if isinstance(pl_module, TrainingModule) and pl_module.config is not None:
            arguments = pl_module.config["init_args"] | {"compile": False}
            with isolate_rng():
                with torch.device("meta"):
                    module = build_module(pl_module.config | {"init_args": arguments})
                    module.configure_model()
                for part in module.modules():
                    if isinstance(part, Block):
                        part.recompute = False
                step = estimate_step(module, 1, data.image_size, str(trainer.precision))
            self._flops_per_image = step.flops

    def on_train_batch_start(self, *_: Any) -> None:
        if self._ended is not None:
            self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = now = time.perf_counter()
        if self._since is None:
            self._since = now
            return
        self._images += len(batch["key"])
        if (batch_idx + 1) % self.every:
            return
        seconds = now - self._since
        rate = self._images / seconds
        metrics = {
            "train/images_per_second": rate * trainer.world_size,
            "train/data_wait": self._waited / seconds,
            "train/peak_gib": peak_memory(pl_module.device) / 2**30,
        }
        if isinstance(pl_module, GeneratorModule):
            tokens = pl_module.model.layout.codes
            metrics["train/tokens_per_second"] = rate * trainer.world_size * tokens
        if self._flops_per_image is not None:
            achieved = rate * self._flops_per_image
            metrics["train/tflops"] = achieved / 1e12
            kind = HALF.get(str(trainer.precision).split("-")[0], torch.float32)
            if available := get_available_flops(pl_module.device, kind):
                metrics["train/mfu"] = achieved / available
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self._forget()

    def on_validation_start(self, *_: Any) -> None:
        self._forget()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes of a GPU, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class CodebookHistogram(Callback):
    """How often the codes occur in the first rank's validation, as a histogram in TensorBoard or
    W&B; a code of average frequency lies at 1, one that never occurs at 0."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TokenizerModule)
        counts, step = pl_module.val_usage.counts.double(), trainer.global_step
        if trainer.sanity_checking or not trainer.is_global_zero or not counts.sum():
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
    """Logs `data/skipped/CAUSE`, the number of samples that all ranks have skipped so far, every
    `log_every_n_steps`, but only after the first skipped sample."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loader = trainer.train_dataloader
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every or not isinstance(loader, TrainLoader):
            return
        skipped = skipped_of_all_ranks(trainer, loader)
        metrics = {f"data/skipped/{cause}": float(count) for cause, count in skipped.items()}
        for logger in trainer.loggers if metrics else ():
            logger.log_metrics(metrics, step=trainer.global_step)


def skipped_of_all_ranks(trainer: Trainer, loader: Any) -> Counter[str]:
    """Samples that a loader has skipped so far, by cause; all ranks must call this."""
    own = getattr(loader, "skipped", None) or Counter[str]()
    ranks = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(ranks, own)
    return sum(ranks, Counter())
