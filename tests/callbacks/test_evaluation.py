"""Evaluation in the middle of training: the right weights, the same images on any number of
ranks, and training that does not notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgpl.cli import main
from tests.conftest import ROOT, TINY_GENERATOR, TINY_TOKENIZER, Chain, logs
from tests.metrics.pretrained import clip
from tests.shards import EMOJI_TRAIN, EMOJI_VAL

QUIET = [
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.log_every_n_steps", "1", "--trainer.precision", "32-true"),
]
PIXELS = "tests.metrics.pixels.Pixels"
RECONSTRUCTION = {
    "class_path": "lgpl.callbacks.ReconstructionEvaluation",
    "init_args": {"extractor": PIXELS},
}


def generation(cache: Path, **options: Any) -> dict[str, Any]:
    arguments = {"extractor": PIXELS, "reference": EMOJI_TRAIN, "images": 60, "cache": str(cache)}
    arguments |= {"prompts": EMOJI_VAL, "sampling": {"guidance": 2.0}, "batch_size": 8, **options}
    return {"class_path": "lgpl.callbacks.GenerationEvaluation", "init_args": arguments}


def stacked(folder: Path, name: str, *callbacks: dict[str, Any]) -> list[str]:
    """Options that take a recipe's callbacks away and put these in their place."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": list(callbacks)}}))
    return ["-c", str(path), *logs(folder / name)]


def tokenizer(*options: str) -> list[str]:
    return ["-c", "configs/tokenizer/emoji.yaml", *options, *TINY_TOKENIZER, *QUIET]


def generator(chain: Chain, *options: str) -> list[str]:
    return [
        *("-c", "configs/generator/emoji_stage2.yaml", *options, *TINY_GENERATOR, *QUIET),
        *("--data.train", f"{chain.codes}/train-*.tar", "--data.val", f"{chain.codes}/val-*.tar"),
        *("--model.init_args.tokenizer", chain.tokenizer),
        *("--model.init_args.init_from", chain.stage1),
    ]


def short(*options: str) -> list[str]:
    """Six steps with a validation after every second."""
    return [
        *("--data.batch_size", "8", "--data.epoch_samples", "48", "--trainer.max_epochs", "1"),
        *("--trainer.val_check_interval", "2", *options),
    ]


def scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_the_tokenizer_does_not_notice(chain: Chain, tmp_path: Path) -> None:
    for name, callbacks in (("with", [RECONSTRUCTION]), ("without", [])):
        main(["fit", *tokenizer(*stacked(tmp_path, name, *callbacks)), *short()])
    evaluated, plain = (scalars(tmp_path / name / "tokenizer") for name in ("with", "without"))
    assert len(plain["train/loss"]) == 6 and evaluated["train/loss"] == plain["train/loss"]
    assert len(evaluated["val/FID[Pixels]"]) == 3 and "val/FID[Pixels]" not in plain
    assert evaluated["val/psnr"] == plain["val/psnr"]


def test_training_the_generator_does_not_notice(chain: Chain, tmp_path: Path) -> None:
    """With text, every kind of dropout, bf16 and an average to evaluate, to the bit."""
    dropout = [
        part
        for name in ("dropout", "token_dropout", "condition.init_args.dropout")
        for part in (f"--model.init_args.transformer.init_args.{name}", "0.3")
    ]
    options = *dropout, "--trainer.precision", "bf16-mixed"
    ema = {"class_path": "lgpl.callbacks.EMA", "init_args": {"decay": 0.5}}
    model = clip(tmp_path / "tiny-clip")
    callbacks = [ema, generation(tmp_path / "cache", every=4, images=49, clip=model)]
    for name, chosen in (("with", callbacks), ("without", [ema])):
        main(["fit", *generator(chain, *stacked(tmp_path, name, *chosen)), *short(*options)])
    evaluated, plain = (scalars(tmp_path / name / "stage2") for name in ("with", "without"))
    assert len(plain["train/loss"]) == 6 and evaluated["train/loss"] == plain["train/loss"]
    (first, second) = lines(tmp_path / "with/stage2")  # not in the validation between
    assert (first["step"], second["step"]) == (2, 6) and first["protocol"] == "gfid"
    assert first["guidance"] == 2 and first["N"] == 49 and first["reference"]["images"] == 1759
    assert first["clip"] == {"model": model, "prefix": "", "N": 49}
    scores = [one["metrics"]["CLIP score[tiny-clip]"] for one in (first, second)]
    assert evaluated["val/CLIP score[tiny-clip]"] == pytest.approx(scores)
    found = [one["metrics"]["FID[Pixels]"] for one in (first, second)]
    assert evaluated["val/FID[Pixels]"] == pytest.approx(found) and found[0] != found[1]


def test_the_metrics_are_those_of_the_average(chain: Chain, tmp_path: Path) -> None:
    """The checkpoint holds the average, which `lgpl evaluate` reads without a Trainer."""
    ema = {"class_path": "lgpl.callbacks.EMA", "init_args": {"decay": 0.5}}
    save = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"save_last": True, "enable_version_counter": False},
    }
    callbacks = stacked(tmp_path, "run", ema, RECONSTRUCTION, save)
    main(["fit", *tokenizer(*callbacks), *short("--trainer.val_check_interval", "6")])
    (during,) = lines(tmp_path / "run/tokenizer")
    checkpoint = str(tmp_path / "run/tokenizer/checkpoints/last.ckpt")
    out = tmp_path / "after.json"
    main(
        ["evaluate", "reconstruction", "--checkpoint", checkpoint, "--data", EMOJI_VAL,
         "--image-size", "64", "--extractor", PIXELS, "--lpips", "none", "--device", "cpu",
         "--batch-size", "31", "--out", str(out)]
    )  # fmt: skip
    after = json.loads(out.read_text())
    assert during["N"] == after["N"] == 93
    name = "FID[Pixels]"
    assert during["metrics"][name] == pytest.approx(after["metrics"][name], rel=1e-4)


@pytest.mark.slow
def test_the_metrics_do_not_depend_on_the_number_of_ranks(chain: Chain, tmp_path: Path) -> None:
    """The same images, and reconstructions of an odd number of images counted once."""
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    processes = []
    for name, ranks in (("one", []), ("two", two)):
        drawn = generation(tmp_path / f"cache-{name}", images=52)
        for command, checkpoint in (
            (tokenizer(*stacked(tmp_path, f"{name}-t", RECONSTRUCTION)), chain.tokenizer),
            (generator(chain, *stacked(tmp_path, f"{name}-g", drawn)), chain.stage2),
        ):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "lgpl.cli", "validate", *command, *ranks,
                     "--ckpt_path", checkpoint],
                    cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
    try:
        for process in processes:
            _, said = process.communicate(timeout=200)
            assert process.returncode == 0, said.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()
    for kind, folder in (("t", "tokenizer"), ("g", "stage2")):
        (one,), (other,) = (lines(tmp_path / f"{n}-{kind}" / folder) for n in ("one", "two"))
        assert one["N"] == other["N"] == {"t": 93, "g": 52}[kind]
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-5)


def test_sets_too_small_for_fid_lack_nothing_else(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = generation(tmp_path, images=48)
    main(["validate", *generator(chain, *stacked(tmp_path, "a", few)),
          "--ckpt_path", chain.stage2])  # fmt: skip
    main(["validate", *tokenizer(*stacked(tmp_path, "b", RECONSTRUCTION)),
          "--ckpt_path", chain.tokenizer, "--trainer.limit_val_batches", "1"])  # fmt: skip
    assert caplog.text.count("No val/FID[Pixels]: it needs at least 49") == 2
    for file, number in zip(sorted(tmp_path.rglob("metrics.jsonl")), (48, 31), strict=True):
        (made,) = map(json.loads, file.read_text().splitlines())
        assert made["N"] == number and [*made["left_out"]] == ["FID[Pixels]"]
        assert {"KID[Pixels]", "precision[Pixels]", "coverage[Pixels]"} <= made["metrics"].keys()
