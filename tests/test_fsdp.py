"""FSDP2 on two ranks of gloo trains like one rank: the same losses, norms, averages and resumes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgpl.atomic import exchange
from lgpl.checkpoints import read_checkpoint
from tests.conftest import CONDITION, ROOT, TINY, TINY_GENERATOR, Chain, logs

GENERATOR = "--model.init_args.transformer.init_args"
KINDS = {
    "class": [
        *("-c", "configs/generator/cifar10.yaml", f"{CONDITION}.num_classes", "9"),
        *(f"{GENERATOR}.dropout", "0", f"{GENERATOR}.token_dropout", "0"),
        *(f"{CONDITION}.dropout", "0"),
    ],
    "recomputed": [
        *("-c", "configs/generator/cifar10.yaml", f"{CONDITION}.num_classes", "9"),
        *(f"{GENERATOR}.activation_checkpointing", "true", f"{GENERATOR}.dropout", "0"),
        *(f"{GENERATOR}.token_dropout", "0", f"{CONDITION}.dropout", "0"),
    ],
    "parallel": ["-c", "configs/generator/parallel/emoji_parallel.yaml"],
    # Its null condition never gets a gradient.
    "text": ["-c", "configs/generator/emoji_stage2.yaml", "--model.init_args.init_from", "null"],
}
CALLBACKS = """
trainer:
  callbacks:
    - class_path: lgpl.callbacks.EMA
      init_args: {decay: 0.9}
    - class_path: lgpl.callbacks.SampleImages
      init_args: {count: 2, sampling: {guidance: 2.0}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: %d, save_last: true, enable_version_counter: false}
"""


class Run:
    """A generator's training with 16 samples a step on any number of ranks, in its own folder."""

    def __init__(self, chain: Chain, kind: str, folder: Path, steps: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.steps = folder, steps
        (folder / "callbacks.yaml").write_text(CALLBACKS % (steps // 2))
        self.options = [
            *(*KINDS[kind], "-c", str(folder / "callbacks.yaml"), *TINY, *TINY_GENERATOR),
            *("--trainer.limit_val_batches", "null", "--data.eval_batch_size", "16"),
            *("--data.train", f"{chain.codes}/train-*.tar", "--data.partitions", "4"),
            *("--data.val", f"{chain.codes}/val-*.tar", "--data.num_workers", "0"),
            *("--data.epoch_samples", str(steps * 8), "--trainer.max_epochs", "2"),
            *("--model.init_args.tokenizer", chain.tokenizer, "--model.init_args.muon_lr", "null"),
            *(*logs(folder), "--trainer.logger.init_args.name", "run"),
        ]

    def train(self, ranks: int, *more: str, sharded: bool = True) -> None:
        strategy: list[str] = []
        if sharded:
            path = "--trainer.strategy.init_args.data_parallel_size"
            strategy = ["-c", "configs/trainer/fsdp.yaml", path, str(ranks)]
        subprocess.run(
            [sys.executable, "-m", "tests.test_fsdp", "fit", *self.options, *strategy,
             "--trainer.accelerator", "cpu", "--trainer.devices", str(ranks),
             "--trainer.precision", "32-true", "--data.batch_size", str(16 // ranks), *more],
            cwd=ROOT, check=True, timeout=600,
            env={**os.environ, "RECORD": str(self.folder / "rank"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    @property
    def last(self) -> str:
        return str(self.folder / "run/checkpoints/last.ckpt")

    @property
    def validated(self) -> float:
        """Loss of the average after the last step."""
        return float((self.folder / "validated").read_text())

    def curve(self, name: str) -> list[float]:
        """A figure of every step, the mean over the ranks."""
        ranks = [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(self.folder.glob("rank*"))
        ]
        steps: dict[int, list[float]] = {}
        for line in (line for rank in ranks for line in rank):
            steps.setdefault(line["step"], []).append(line[name])
        assert sorted(steps) == list(range(1, self.steps + 1))
        return [sum(steps[step]) / len(steps[step]) for step in sorted(steps)]


def parted(one: Run, other: Run) -> dict[str, float]:
    """How far two runs' curves, validations and averages part."""
    far = {
        name: max(abs(a - b) for a, b in zip(one.curve(name), other.curve(name), strict=True))
        for name in ("loss", "norm")
    }
    far["validation"] = abs(one.validated - other.validated)
    first, second = (read_checkpoint(run.last, "generator").weights() for run in (one, other))
    assert first.keys() == second.keys()
    far["average"] = max((first[name] - second[name]).abs().max().item() for name in first)
    losses = one.curve("loss")
    assert losses[0] - losses[-1] > 100 * far["loss"]  # it learned
    return far


def test_two_ranks_train_like_one(chain: Chain, tmp_path: Path) -> None:
    one = Run(chain, "class", tmp_path / "one", 20)
    two = Run(chain, "recomputed", tmp_path / "two", 20)
    one.train(1, sharded=False)
    two.train(2)
    assert max(parted(one, two).values()) < 1e-4
    events = EventAccumulator(str(two.folder / "run")).Reload()
    assert len(events.Images("val/samples")) == 2  # once an epoch, by both ranks together


@pytest.mark.slow
def test_four_ranks_in_each_way_train_like_one(chain: Chain, tmp_path: Path) -> None:
    """HSDP: two replicas of two shards. ZeRO-2: weights stay gathered between the passes."""
    one = Run(chain, "class", tmp_path / "one", 20)
    one.train(1, sharded=False)
    way = "--trainer.strategy.init_args"
    for name, options in (
        ("hsdp", (f"{way}.replicas", "2")),
        ("zero2", (f"{way}.reshard", "false")),
        ("both", (f"{way}.replicas", "2", f"{way}.reshard", "false")),
    ):
        four = Run(chain, "class", tmp_path / name, 20)
        four.train(4, *options)
        far = parted(one, four)
        print(name, far)
        assert far["loss"] < 1e-6 and max(far.values()) < 1e-4
    moved = Run(chain, "class", tmp_path / "moved", 20)
    moved.train(4, "--trainer.max_epochs", "1", f"{way}.replicas", "2")
    moved.train(2, "--ckpt_path", moved.last, f"{way}.reshard", "false")
    assert max(parted(one, moved).values()) < 1e-4


@pytest.mark.slow
def test_two_ranks_go_on_as_one(chain: Chain, tmp_path: Path) -> None:
    one, moved = (Run(chain, "text", tmp_path / name, 20) for name in ("one", "moved"))
    one.train(1, sharded=False)
    moved.train(2, "--trainer.max_epochs", "1")
    assert Path(moved.last).is_dir()
    moved.train(1, "--ckpt_path", moved.last)
    assert max(parted(one, moved).values()) < 1e-4


@pytest.mark.slow
def test_sharded_ranks_train_parallel_groups_like_whole_ones(chain: Chain, tmp_path: Path) -> None:
    """Orders are drawn for the batch of a rank, so that one rank alone draws others."""
    whole, sharded = (Run(chain, "parallel", tmp_path / name, 20) for name in ("whole", "sharded"))
    whole.train(2, sharded=False)
    sharded.train(2)
    assert max(parted(whole, sharded).values()) < 1e-4


@pytest.mark.slow
def test_two_compiled_ranks_train_like_one(chain: Chain, tmp_path: Path) -> None:
    """With every block computed again, and sampled from in between."""
    one = Run(chain, "class", tmp_path / "one", 20)
    two = Run(chain, "recomputed", tmp_path / "two", 20)
    one.train(1, sharded=False)
    two.train(2, "--model.init_args.compile", "true")
    assert max(parted(one, two).values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["true", "false"])
@pytest.mark.parametrize("kind", ["class", "text"])
def test_two_hundred_steps(chain: Chain, tmp_path: Path, kind: str, shards: str) -> None:
    """Stopped at step 100; the checkpoint is a folder of shards, or one file."""
    one, two, moved = (Run(chain, kind, tmp_path / name, 200) for name in ("one", "two", "moved"))
    one.train(1, sharded=False)
    form = ("--trainer.strategy.init_args.save_distributed_checkpoint", shards)
    two.train(2, *form)
    moved.train(2, "--trainer.max_epochs", "1", *form)
    assert Path(moved.last).is_dir() == (shards == "true")
    moved.train(1, "--ckpt_path", moved.last, *form)
    for run in (two, moved):
        far = parted(one, run)
        print(kind, run.folder.name, one.curve("loss")[0], one.curve("loss")[-1], far)
        assert far["loss"] < 1e-3 and far["validation"] < 1e-3


@pytest.mark.parametrize("moment", range(8))
def test_a_checkpoint_is_exchanged_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Killed before any step of it, and a run that goes on finds a whole one."""
    path, new = tmp_path / "last.ckpt", tmp_path / "last.ckpt.partial"
    for folder, left in ((path, "old"), (tmp_path / "last-old.ckpt", "older"), (new, "new")):
        folder.mkdir()
        for part in "ab":
            (folder / part).write_text(left)
        os.utime(folder, (len(left), len(left)) if left == "older" else None)
    steps = itertools.count()

    def dying(call: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(steps) == moment:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return step

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        patch.setattr(Path, "rename", dying(Path.rename))
        exchange(new, path)
    found = max(tmp_path.glob("last*.ckpt"), key=lambda folder: folder.stat().st_mtime)
    parts = {file.name: file.read_text() for file in found.iterdir()}
    assert parts in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"})


def record() -> None:
    """Run a command of lgpl and write down loss and norm of every step of this rank."""
    from lightning.pytorch.callbacks import Callback

    from tests.recorder import run_with

    class Recorder(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            norm = trainer.callback_metrics["train/gradient_norm"].item()
            line = {"step": trainer.global_step, "loss": outputs["loss"].item(), "norm": norm}
            with open(f"{os.environ['RECORD']}{trainer.global_rank}", "a") as file:
                file.write(json.dumps(line) + "\n")

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero and not trainer.sanity_checking:
                figure = trainer.callback_metrics["val/loss"].item()
                Path(os.environ["RECORD"]).with_name("validated").write_text(str(figure))

    torch.set_num_threads(1)
    run_with(Recorder())


if __name__ == "__main__":
    record()
