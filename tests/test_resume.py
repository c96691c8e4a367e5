"""A training run that is killed again and again trains on the same samples as one that is not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY, TINY_GENERATOR, Chain, logs

CHECKPOINTS = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 3, save_last: true, enable_version_counter: false}
"""


class Run:
    """One command line, started as often as it takes to come to its end."""

    def __init__(self, chain: Chain, folder: Path, workers: int, samples: int) -> None:
        folder.mkdir(parents=True)
        (folder / "checkpoints.yaml").write_text(CHECKPOINTS)
        self.record = folder / "rank"
        configs = ("configs/generator/emoji_stage2.yaml", str(folder / "checkpoints.yaml"))
        self.command = [
            *(sys.executable, "-m", "tests.test_resume", "fit", "-c", configs[0], "-c", configs[1]),
            *(*TINY, *TINY_GENERATOR, "--data.train", f"{chain.codes}/train-*.tar"),
            *("--data.val", f"{chain.codes}/val-*.tar", "--data.fields", '["codes", "text"]'),
            *("--data.batch_size", "8", "--data.epoch_samples", str(samples)),
            *("--data.num_workers", str(workers), "--trainer.max_epochs", "1"),
            *("--model.init_args.init_from", "null", "--model.init_args.tokenizer", "null"),
            *(*logs(folder), "--ckpt_path", "last"),
        ]  # fmt: skip

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, *more], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "RECORD": str(self.record), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()[-2000:]

    def written(self) -> int:
        path = Path(f"{self.record}0")
        return path.stat().st_size if path.exists() else 0

    def steps(self, rank: int = 0) -> dict[int, list[str]]:
        """Keys by step; what a killed run trained on after its checkpoint is trained on again."""
        keys: dict[int, list[str]] = {}
        for line in Path(f"{self.record}{rank}").read_text().splitlines():
            step = json.loads(line)
            assert keys.setdefault(step["step"], step["keys"]) == step["keys"]
        return keys


def kill_at_random(run: Run, kills: int, rng: random.Random) -> None:
    """SIGKILL to the trainer after some steps, or to one of its workers, and start again."""
    for _ in range(kills):
        process = run.start()
        before, wait = run.written(), rng.uniform(0, 0.4)
        while run.written() == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(wait)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        pids = workers.read_text().split() if workers.exists() else []
        if pids and rng.random() < 0.3:
            os.kill(int(rng.choice(pids)), signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def check(chain: Chain, folder: Path, workers: int, samples: int, kills: int) -> None:
    whole = Run(chain, folder / "whole", workers, samples)
    whole.finish(whole.start())
    killed = Run(chain, folder / "killed", workers, samples)
    kill_at_random(killed, kills, random.Random(workers))
    killed.finish(killed.start())
    expected = whole.steps()
    assert len(expected) == samples // 8 and killed.steps() == expected
    keys = [key for step in expected.values() for key in step]
    assert len(set(keys)) == len(keys) == samples // 8 * 8


def test_killed_and_started_again(chain: Chain, tmp_path: Path) -> None:
    check(chain, tmp_path, workers=2, samples=400, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_thirty_kills_in_an_epoch(chain: Chain, tmp_path: Path, workers: int) -> None:
    check(chain, tmp_path, workers, samples=1759, kills=30)


@pytest.mark.slow
def test_two_ranks_go_on_as_one(chain: Chain, tmp_path: Path) -> None:
    """Stopped on two ranks, resumed on one with the same global batch."""
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true")
    whole = Run(chain, tmp_path / "whole", 1, 640)
    whole.finish(whole.start(*two))
    moved = Run(chain, tmp_path / "moved", 1, 640)
    moved.finish(moved.start(*two, "--trainer.max_steps", "12"))
    moved.finish(moved.start("--data.batch_size", "16"))
    first, second = whole.steps(0), whole.steps(1)
    expected = {step: sorted(first[step] + second[step]) for step in first}
    assert len(expected) == 40
    other = moved.steps(1)
    seen = {step: sorted(keys + other.get(step, [])) for step, keys in moved.steps(0).items()}
    assert len(other) == 12 and seen == expected
    keys = [key for step in seen.values() for key in step]
    assert len(set(keys)) == 640


def record() -> None:
    """Run a command of lgpl and write down the keys of every step as it is done."""
    from lightning.pytorch.callbacks import Callback

    from tests.recorder import run_with

    class Recorder(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            line = json.dumps({"step": trainer.global_step, "keys": batch["key"]}) + "\n"
            with open(f"{os.environ['RECORD']}{trainer.global_rank}", "a") as file:
                file.write(line)
            time.sleep(0.02)

    run_with(Recorder())


if __name__ == "__main__":
    record()
