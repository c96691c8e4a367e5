"""Two real ranks on gloo: disjoint samples, equal weights, validation exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, TINY, TINY_GENERATOR, TINY_TOKENIZER, Chain, logs
from tests.shards import EMOJI_TRAIN, EMOJI_VAL, count

TWO_RANKS = [
    *("--trainer.devices", "2", "--trainer.precision", "32-true"),
    *(
        "--trainer.strategy",
        "ddp_find_unused_parameters_true",
        "--trainer.limit_val_batches",
        "null",
    ),
]


def run(folder: Path, *command: str) -> list[dict[str, Any]]:
    """Start both ranks through the recorder below; gives what each saw."""
    environment = {**os.environ, "RECORD": str(folder), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "tests.test_distributed", *command],
        cwd=ROOT, env=environment, check=True, timeout=300,
    )  # fmt: skip
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def check(ranks: list[dict[str, Any]]) -> None:
    first, second = (set(rank["trained"]) for rank in ranks)
    assert len(first) == len(second) == 32 and first.isdisjoint(second)
    validated = ranks[0]["validated"] + ranks[1]["validated"]
    assert len(validated) == len(set(validated)) == 93  # an odd number on two ranks
    assert ranks[0]["weights"] == ranks[1]["weights"] != ranks[0]["initial"]
    assert ranks[0]["figures"] == pytest.approx(ranks[1]["figures"])


def test_tokenizer_with_gan(tmp_path: Path) -> None:
    options = ["-c", "configs/tokenizer/emoji.yaml", *TINY, *TINY_TOKENIZER, *logs(tmp_path)]
    options += ["--data.image_size", "32", "--data.batch_size", "8", "--data.epoch_samples", "64"]
    gan = "--model.init_args.loss.init_args.discriminator"
    ranks = run(
        tmp_path, "fit", *options, *TWO_RANKS, "--trainer.max_epochs", "1",
        gan, "lgpl.tokenizer.PatchGAN", f"{gan}.init_args.width", "8",
        f"{gan}.init_args.layers", "1", "--model.init_args.discriminator_start", "1",
        "--model.init_args.autoencoder.init_args.quantizer.init_args.revive_after", "1",
        "--model.init_args.loss.init_args.lecam_weight", "0.01",
    )  # fmt: skip
    check(ranks)  # the averages of LeCam are among the weights
    assert {"loss.lecam.real", "loss.discriminator.layers.0.weight"} <= {*ranks[0]["names"]}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["emoji_stage2", "parallel/emoji_parallel"])
def test_generator(chain: Chain, tmp_path: Path, config: str) -> None:
    begin = ("--model.init_args.init_from", chain.stage1) if config == "emoji_stage2" else ()
    ranks = run(
        tmp_path, "fit", "-c", f"configs/generator/{config}.yaml", *TINY, *TINY_GENERATOR,
        *TWO_RANKS, *logs(tmp_path), "--data.train", f"{chain.codes}/train-*.tar",
        "--data.val", f"{chain.codes}/val-*.tar", "--data.batch_size", "8",
        "--data.epoch_samples", "64", "--trainer.max_epochs", "1",
        "--model.init_args.tokenizer", chain.tokenizer, *begin,
    )  # fmt: skip
    check(ranks)


@pytest.mark.slow
def test_figures_do_not_depend_on_the_number_of_ranks(chain: Chain, tmp_path: Path) -> None:
    figures = []
    for name, options in (("one", ["--trainer.precision", "32-true"]), ("two", TWO_RANKS)):
        (tmp_path / name).mkdir()
        environment = {**os.environ, "RECORD": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [
                *(sys.executable, "-m", "tests.test_distributed", "validate"),
                *("-c", "configs/tokenizer/emoji.yaml", *TINY, *TINY_TOKENIZER),
                *("--trainer.limit_val_batches", "null", *options, "--trainer.logger", "false"),
                *("--ckpt_path", chain.tokenizer, "--data.val", EMOJI_VAL),
            ],
            cwd=ROOT, env=environment, check=True, timeout=300,
        )  # fmt: skip
        figures.append(json.loads((tmp_path / name / "rank0.json").read_text())["figures"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


@pytest.mark.slow
def test_encoding_is_shared_by_the_ranks(chain: Chain, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    subprocess.run(
        [
            *(sys.executable, "-m", "lgpl.cli", "predict", "-c", "configs/tokenizer/emoji.yaml"),
            *(*TINY_TOKENIZER, "-c", "configs/tokenizer/encode_emoji.yaml"),
            *("--ckpt_path", chain.tokenizer, "--trainer.devices", "2"),
            *("--trainer.strategy", "ddp"),
            *("--trainer.callbacks.init_args.out", str(codes), "--data.predict", EMOJI_TRAIN),
        ],
        cwd=ROOT, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    from lgpl.data.shards import expand

    assert sum(count(s) for s in expand(f"{codes}/*.tar")) == 1759


def record() -> None:
    """Run a command of lgpl on this rank and write down what it saw."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

    from lgpl.cli import main
    from lgpl.commands.training import CommandLine

    seen: dict[str, Any] = {"trained": [], "validated": []}

    def digest(module: pl.LightningModule) -> str:
        import hashlib

        state = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
        seen["names"] = list(state)
        return hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest()

    class Recorder(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen["initial"] = digest(pl_module)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            seen["trained"] += batch["key"]

        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: int
        ) -> None:
            if not trainer.sanity_checking:
                pairs = zip(batch["key"], batch["valid"], strict=True)
                seen["validated"] += [key for key, valid in pairs if valid]

        def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            seen["weights"] = digest(pl_module.cpu())
            figures = trainer.callback_metrics.items()
            seen["figures"] = {k: v.item() for k, v in figures if k.startswith("val/")}
            path = Path(os.environ["RECORD"], f"rank{trainer.global_rank}.json")
            path.write_text(json.dumps(seen))

    torch.set_num_threads(1)
    trainer = CommandLine.instantiate_trainer

    def with_recorder(self: CommandLine, **kwargs: Any) -> pl.Trainer:
        made = trainer(self, **kwargs)
        made.callbacks.append(Recorder())
        return made

    CommandLine.instantiate_trainer = with_recorder  # type: ignore[method-assign]
    main()


if __name__ == "__main__":
    record()
