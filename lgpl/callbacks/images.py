"""Images in the loggers: reconstructions beside originals, samples with their captions."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lgpl.data.transforms import to_uint8
from lgpl.generator.conditions import rows
from lgpl.generator.module import GeneratorModule
from lgpl.generator.sampling import Sampling
from lgpl.image_files import grid
from lgpl.tokenizer.module import TokenizerModule


def show(trainer: Trainer, name: str, images: Tensor, captions: list[str] | None) -> None:
    """To TensorBoard and W&B; other loggers take no images."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, to_uint8(grid(images, captions)), step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [grid(images, captions)], step)


class ReconstructionImages(Callback):
    """The first `count` validation images, each with its reconstruction to the right."""

    def __init__(self, count: int = 16) -> None:
        self.count = count

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        if indices[0] or not trainer.is_global_zero or trainer.sanity_checking:
            return
        assert isinstance(pl_module, TokenizerModule)
        pairs = torch.cat((batch["image"], outputs), dim=-1)[: self.count]  # side by side
        show(trainer, "val/reconstructions", pairs, batch.get("caption"))


class SampleImages(Callback):
    """Samples for the first conditions of the validation set, the same seeds every time.

    All ranks of a sharded model (FSDP2) sample together; the images of the first one are shown.

    Args:
        count: number of images.
        sampling: how their codes are drawn.
    """

    def __init__(self, count: int = 16, sampling: Sampling = Sampling()) -> None:
        self.count, self.sampling = count, sampling

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, GeneratorModule)
        pl_module.check_sampling(self.sampling)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        assert isinstance(pl_module, GeneratorModule)
        if indices[0] or trainer.sanity_checking or pl_module.tokenizer_path is None:
            return
        if not trainer.is_global_zero and pl_module.device_mesh is None:
            return
        condition = pl_module.model.condition
        inputs = {name: v[: self.count] for name, v in condition.inputs(batch).items()}
        images = pl_module.sample(inputs, self.sampling, list(range(rows(inputs))))
        if trainer.is_global_zero:
            captions = batch.get("caption") or condition.captions(batch) or []
            show(trainer, "val/samples", images, captions[: self.count] or None)
