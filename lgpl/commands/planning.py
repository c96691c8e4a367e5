"""What `lgpl plan` does: the estimate of a step of a run that is built on the meta device."""

import sys
from typing import Any

import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lgpl.callbacks import EMA
from lgpl.checkpoints.released.llamagen import differences
from lgpl.commands.parsing import require_positive
from lgpl.commands.plan import add_devices
from lgpl.commands.training import CommandLine
from lgpl.errors import UserError
from lgpl.training import ShardedStrategy
from lgpl.training.estimate import SAMPLES, StepEstimate, estimate_step

GIB = 2**30
NOT_COUNTED = "not counted: the driver (about 1 GiB), fragmentation, a frozen tokenizer or encoder"


class Plan(CommandLine):
    """The configs of a run with its size, built on the meta device and without a Trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add_devices(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        require_positive(self.config, "gpus")
        if not self.config.memory > 0:
            raise UserError(f"--memory must be > 0, got {self.config.memory:g}")

    def instantiate_trainer(self, **_: Any) -> None:  # type: ignore[override]
        """None: the GPUs may be elsewhere."""

    def report(self) -> str:
        trainer, gpus = self.config_init.trainer, self.config_init.gpus
        callbacks = trainer.callbacks
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        sharded = isinstance(trainer.strategy, (ModelParallelStrategy, FSDPStrategy))
        sharded = sharded or str(trainer.strategy).startswith("fsdp")
        precision = str(trainer.precision or "32-true")
        accumulate = getattr(self.model, "accumulate", trainer.accumulate_grad_batches)
        batch_size, size = self.datamodule.train_batch(gpus, accumulate), self.datamodule.image_size
        own = trainer.strategy if isinstance(trainer.strategy, ShardedStrategy) else None
        reshard, replicas = (own.reshard, own.replicas) if own else (True, 1)
        step = estimate_step(self.model, batch_size, size, precision, sharded, reshard)
        averaged = any(isinstance(callback, EMA) for callback in callbacks)
        lines = per_device(step, gpus, sharded, averaged, replicas)
        used, memory = sum(lines.values()) / GIB, self.config_init.memory
        batches = gpus * accumulate
        rows = {name: f"{size / GIB:.2f} GiB" for name, size in lines.items()}
        rows["together"] = f"{used:.2f} GiB on each of {gpus}, {memory:g} GiB there"
        rows["trainable weights"] = f"{step.weights / 1e6:.1f}M"
        rows["tokens a step"] = f"{step.tokens * batches:,}"
        rows["FLOPs a step"] = f"{step.flops * batches / 1e12:,.4g} T"
        if step.cache:
            rows[f"KV cache of {SAMPLES}"] = f"{step.cache / GIB:.2f} GiB, sampling with guidance"
        if unlike := differences(self.model):
            rows["for LlamaGen"] = f"no export: it {' and '.join(unlike)}"
        spare = memory - used
        fits = f"fits, {spare:.1f} GiB to spare"
        verdict = fits if spare >= 0 else f"does NOT fit: {-spare:.1f} GiB too much"
        return "\n".join([*(f"{name:<18}{rows[name]}" for name in rows), verdict, NOT_COUNTED])


def plan(args: list[str]) -> str:
    """The report on the run of a command line."""
    sys.argv[1:] = args
    with torch.device("meta"):
        planned = Plan(run=False)
    return planned.report()


def per_device(
    step: StepEstimate, gpus: int, sharded: bool, averaged: bool, replicas: int = 1
) -> dict[str, int]:
    """Bytes on each of so many devices, by what they are for; `sharded` is FSDP instead of DDP, in
    so many `replicas`, and `averaged` an EMA of the weights. The step is of a device that holds the
    whole model."""
    lines = {
        "parameters": step.parameters,
        "gradients": step.gradients,
        "optimizer state": step.optimizer,
    }
    if averaged:
        lines["moving average"] = step.parameters
    if sharded:
        lines = {name: -(-size // max(1, gpus // replicas)) for name, size in lines.items()}
        lines["gathered by FSDP"] = step.gathered
    elif gpus > 1:
        lines["buckets of DDP"] = step.gradients
    return {**lines, "activations": step.activations}
