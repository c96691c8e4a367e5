"""Speed, waiting time and memory of a run."""

from __future__ import annotations

import copy
import resource
import sys
import time
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from lgpl.data import ShardDataModule
from lgpl.generator.blocks import Block
from lgpl.generator.module import GeneratorModule
from lgpl.training import TrainingModule, build_module
from lgpl.training.estimate import estimate_step

GIB = 2**30
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


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
            config = copy.deepcopy(pl_module.config)
            config["init_args"]["compile"] = False
            with isolate_rng():
                with torch.device("meta"):
                    module = build_module(config)
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
            "train/peak_gib": peak_memory(pl_module.device) / GIB,
        }
        if isinstance(pl_module, GeneratorModule):
            tokens = pl_module.model.layout.codes
            metrics["train/tokens_per_second"] = rate * trainer.world_size * tokens
        if self._flops_per_image is not None:
            achieved = rate * self._flops_per_image
            metrics["train/tflops"] = achieved / 1e12
            kind = DTYPES.get(str(trainer.precision).split("-")[0], torch.float32)
            available = get_available_flops(pl_module.device, kind)
            if available:
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
