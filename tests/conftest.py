"""What many tests share: the command line in this process, and one tiny chain of checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch  # noqa: F401  # its log is not to hold one test's captured stderr
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgpl.cli import main

ROOT = Path(__file__).parent.parent
# Options that shrink the emoji recipes to seconds.
TINY = [
    *("--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
]
TINY_TOKENIZER = [
    *("--model.init_args.autoencoder.init_args.width", "32"),
    *("--model.init_args.autoencoder.init_args.z_channels", "32"),
    *("--model.init_args.autoencoder.init_args.quantizer.init_args.codebook_size", "64"),
]
TINY_GENERATOR = [
    *("--model.init_args.transformer.init_args.size", "[2, 2, 32]"),
    *("--model.init_args.transformer.init_args.codebook_size", "64"),
    *(() if hasattr(torch.optim, "Muon") else ("--model.init_args.muon_lr", "null")),
]
CONDITION = "--model.init_args.transformer.init_args.condition.init_args"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs name files relative to the repository's root."""
    monkeypatch.chdir(ROOT)


def wait_until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass
class Chain:
    """Checkpoints and code shards of a run of seconds."""

    folder: Path
    tokenizer: str
    codes: str
    stage1: str
    stage2: str


def logs(folder: Path) -> list[str]:
    return ["--trainer.logger.init_args.save_dir", str(folder)]


def scalars(folder: Path) -> dict[str, float]:
    """The last value of each tag in TensorBoard; NaN for images."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    found = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    return found | {tag: float("nan") for tag in events.Tags()["images"]}


def fit_generator(folder: Path, stage: str, tokenizer: str, codes: str, *options: str) -> None:
    main(
        [
            *("fit", "-c", f"configs/generator/emoji_{stage}.yaml", *TINY, *TINY_GENERATOR),
            *("--data.train", f"{codes}/train-*.tar", "--data.val", f"{codes}/val-*.tar"),
            *("--data.batch_size", "8", "--data.epoch_samples", "16", "--trainer.max_epochs", "1"),
            *("--model.init_args.tokenizer", tokenizer, *logs(folder), *options),
        ]
    )


def encode(tokenizer: str, out: Path, size: int, *options: str) -> None:
    main(
        [
            *("predict", "-c", "configs/tokenizer/emoji.yaml", *TINY_TOKENIZER),
            *("-c", "configs/tokenizer/encode_emoji.yaml", "--ckpt_path", tokenizer),
            *("--data.image_size", str(size), "--trainer.callbacks.init_args.out", str(out)),
            *("--trainer.enable_progress_bar", "false", *options),
        ]
    )


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Tokenizer, codes and both stages, by the commands of the READMEs, tiny."""
    before = os.getcwd()
    os.chdir(ROOT)
    folder = tmp_path_factory.mktemp("chain")
    tokenizer = str(folder / "tokenizer/checkpoints/last.ckpt")
    main(
        [
            *("fit", "-c", "configs/tokenizer/emoji.yaml", *TINY, *TINY_TOKENIZER, *logs(folder)),
            *("--data.epoch_samples", "64", "--trainer.max_epochs", "1"),
        ]
    )
    codes = {}
    for stage, size in (("stage1", 32), ("stage2", 64)):
        codes[stage] = str(folder / f"codes{size}")
        encode(tokenizer, Path(codes[stage]), size)
    fit_generator(folder, "stage1", tokenizer, codes["stage1"])
    stage1 = str(folder / "stage1/checkpoints/last.ckpt")
    init = ("--model.init_args.init_from", stage1)
    fit_generator(folder, "stage2", tokenizer, codes["stage2"], *init)
    os.chdir(before)
    return Chain(
        folder, tokenizer, codes["stage2"], stage1, str(folder / "stage2/checkpoints/last.ckpt")
    )


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail; gives what it says, which is one line without a traceback."""

    def run(*args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            main(list(args))
        said = capsys.readouterr().err
        assert error.value.code == 2 and "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("lgpl: error: ")]
        return line.removeprefix("lgpl: error: ")

    return run
