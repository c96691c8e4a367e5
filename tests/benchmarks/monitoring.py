"""What monitoring costs a training step: every callback that logs, against none.

    python -m tests.benchmarks.monitoring [--module generator|tokenizer] [--batch 64]

A class-conditional generator and a tokenizer of the CIFAR-10 recipes' size are trained on one batch
that stays in memory. In one arm the modules' own figures go nowhere and nothing else is logged; in
the others TensorBoard gets them, with the callbacks of a recipe, and with all that there are. The
arms take turns; the time of a step is the median within a turn, then over the rounds. The machine
should do nothing else.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from tqdm import tqdm

from lgpl.callbacks import GradientNorms, NaNGuard, SkippedSamples, Throughput, TokenizerHealth
from lgpl.generator import GeneratorModule, Transformer
from lgpl.tokenizer import LPIPS, PatchGAN, TokenizerLoss, TokenizerModule, VectorQuantizer, VQModel
from tests.models import transformer

WARMUP = 5  # steps of a turn that are not counted
Batch = dict[str, Any]


class Clock(Callback):
    """Seconds of each step, from one batch's end to the next one's."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._ended: float | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._ended is not None:
            self.steps.append(now - self._ended)
        self._ended = now


def generator(images: int) -> tuple[pl.LightningModule, Batch]:
    def build() -> Transformer:
        return transformer([6, 6, 384], codebook_size=1024, grid=(8, 8), num_classes=10)

    module = GeneratorModule(build, lr=1e-4)
    codes = torch.randint(1024, (images, 8, 8))
    return module, {"codes": codes, "class": torch.randint(10, (images,))}


def tokenizer(images: int) -> tuple[pl.LightningModule, Batch]:
    quantizer = VectorQuantizer(codebook_size=1024, dim=8)
    model = VQModel(quantizer, multipliers=[1, 2], width=64, blocks=1, z_channels=64, patch=2)
    loss = TokenizerLoss(LPIPS("alex"), PatchGAN(width=32, layers=2))
    return TokenizerModule(model, loss, discriminator_start=0), {
        "image": torch.rand(images, 3, 32, 32) * 2 - 1
    }


MODULES = {"generator": generator, "tokenizer": tokenizer}


def recipe(kind: str) -> list[Callback]:
    return [Throughput()]


def everything(kind: str) -> list[Callback]:
    health = [TokenizerHealth()] if kind == "tokenizer" else []
    return [Throughput(), NaNGuard(), SkippedSamples(), GradientNorms(), *health]


ARMS = {"nothing": None, "the recipe's": recipe, "all": everything}


def turn(module: pl.LightningModule, batch: Batch, kind: str, arm: str, steps: int) -> float:
    """Median seconds of a step."""
    clock, chosen = Clock(), ARMS[arm]
    callbacks = [] if chosen is None else chosen(kind)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="auto", devices=1, precision="bf16-mixed", max_epochs=1,
            limit_train_batches=steps + WARMUP, log_every_n_steps=50,
            logger=False if chosen is None else TensorBoardLogger(folder),
            callbacks=[*callbacks, clock],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        if chosen is None:
            module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
        else:
            module.__dict__.pop("log", None), module.__dict__.pop("log_dict", None)
        trainer.fit(module, DataLoader([batch] * (steps + WARMUP), batch_size=None))
    return statistics.median(clock.steps[WARMUP - 1 :])


def main(args: list[str] | None = None) -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--module", choices=MODULES, nargs="+", default=list(MODULES))
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--rounds", type=int, default=5)
    options = p.parse_args(args)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"{'module':12}{'logged':16}{'ms a step':>12}{'more':>9}")
    for kind in options.module:
        module, batch = MODULES[kind](options.batch)
        batch["key"] = [f"{i:05d}" for i in range(options.batch)]
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        turns = [arm for _ in range(options.rounds) for arm in ARMS]
        for arm in tqdm(turns, unit="turn", leave=False):
            times[arm].append(turn(module, batch, kind, arm, options.steps))
        base = statistics.median(times["nothing"])
        for arm, of in times.items():
            t = statistics.median(of)
            print(f"{kind:12}{arm:16}{1e3 * t:12.1f}{t / base - 1:9.1%}")


if __name__ == "__main__":
    main()
