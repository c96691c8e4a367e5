"""What `lgpl fit`, `validate` and `predict` do and say at their end, in a log file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lgpl.cli import main
from lgpl.generator import ClassCondition, GeneratorModule, Transformer
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, Chain, logs
from tests.shards import samples, write_shard

Captured = pytest.CaptureFixture[str]
Fails = Callable[..., str]
EMOJI = ["-c", "tokenizer/emoji.yaml", *TINY_TOKENIZER]
# Two batches an epoch, as progress is to be seen.
SHORT = ["--data.epoch_samples", "32", "--trainer.log_every_n_steps", "1"]


@pytest.mark.parametrize(("steps", "validations"), [(1, 1), (2, 1), (3, 2)])
def test_a_training_ends_validated(
    steps: int, validations: int, tmp_path: Path, capsys: Captured
) -> None:
    """Also in the midst of an epoch, and with the averaged weights that the checkpoint holds."""
    main(["fit", *EMOJI, *SHORT, "--trainer.max_steps", str(steps), *logs(tmp_path)])
    run = tmp_path / "tokenizer"
    checkpoint = run / "checkpoints/last.ckpt"
    said, noise = capsys.readouterr()
    assert "\r" not in said + noise and noise == ""
    assert f"checkpoint: {checkpoint}\n" in said and f"tensorboard --logdir {run}" in said
    events = EventAccumulator(str(run))
    events.Reload()
    found = [event.value for event in events.Scalars("val/psnr")]
    assert len(found) == validations
    main(["validate", *EMOJI, "--ckpt_path", str(checkpoint), "--trainer.logger", "false"])
    (psnr,) = re.findall(r"^val/psnr +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert float(psnr) == pytest.approx(found[-1], abs=1e-3)


def test_predict_says_what_it_wrote(chain: Chain, tmp_path: Path, capsys: Captured) -> None:
    broken = {**samples(1)[0], "__key__": "broken", "jpg": b"no image"}
    shard = write_shard(tmp_path / "images.tar", [*samples(3), broken])
    out = tmp_path / "codes"
    command = ["predict", *EMOJI, "-c", "tokenizer/encode_emoji.yaml", "--data.predict", shard]
    main([*command, "--ckpt_path", chain.tokenizer, "--trainer.callbacks.init_args.out", str(out)])
    said, noise = capsys.readouterr()
    skipped = r"1 skipped \(image that does not decode.*: 1\)"
    assert re.fullmatch(rf"{re.escape(str(out))}: 1 code shard, 3 samples, {skipped}\n", said)
    assert "\r" not in noise


def test_products_of_float32_as_exact_as_asked(chain: Chain) -> None:
    command = ["validate", *EMOJI, "--ckpt_path", chain.tokenizer, "--trainer.logger", "false"]
    try:
        for asked, expected in ((["--matmul_precision", "high"], "high"), ([], "highest")):
            main([*command, "--trainer.limit_val_batches", "1", *asked])
            assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision("highest")


def test_fp16_where_it_cannot_be(fails: Fails) -> None:
    asked = ["fit", *EMOJI, "--trainer.precision", "16-mixed", "--trainer.accelerator"]
    said = "--trainer.precision: 16-mixed needs a GPU; give bf16-mixed or 32-true."
    assert fails(*asked, "cpu") == said
    sharded = ["-c", "configs/trainer/fsdp.yaml"]
    for options, precision, says in (
        (sharded, "16-mixed", "scales gradients, which a sharded model (FSDP2) does not take"),
        ([], "16-true", "keeps the weights in fp16, where most steps of an optimizer round to"),
    ):
        wanted = ["-c", "configs/generator/cifar10.yaml", *options]
        wanted += ["--trainer.precision", precision, "--trainer.accelerator", "gpu"]
        assert says in fails("fit", *wanted)


def test_sharding_that_does_not_divide(fails: Fails) -> None:
    strategy = "--trainer.strategy.init_args"
    command = ["fit", "-c", "configs/generator/cifar10.yaml", "-c", "configs/trainer/fsdp.yaml"]
    command += ["--trainer.accelerator", "cpu"]
    said = fails(*command, f"{strategy}.replicas", "3")
    assert said == "trainer.strategy.replicas: 3 does not divide 8, the data_parallel_size."
    assert "replicas must be >= 1, got 0" in fails(*command, f"{strategy}.replicas", "0")
    assert "reduce_dtype" in fails(*command, f"{strategy}.reduce_dtype", "float16")


def test_features_of_captions_in_another_style_are_refused(
    chain: Chain, tmp_path: Path, fails: Fails
) -> None:
    shard = str(shutil.copy(f"{chain.codes}/train-0000.tar", tmp_path / "a.tar"))
    made_by = json.loads(Path(chain.codes, "train-0000_stats.json").read_text())
    made_by["made_by"]["captions"] = "llamagen"
    (tmp_path / "a_stats.json").write_text(json.dumps(made_by))
    command = ["fit", "-c", "configs/generator/emoji_stage2.yaml", *TINY_GENERATOR]
    said = fails(*command, "--model.init_args.tokenizer", chain.tokenizer, "--data.train", shard)
    assert said == (
        f"data.train: {shard} holds features of captions cleaned as llamagen, but "
        "condition.encoder.captions is plain; make both equal."
    )


def test_fp16_clips_gradients_after_they_are_unscaled(chain: Chain) -> None:
    """Which a fused optimizer would not: it unscales them by itself, in its step."""
    norms = []
    for precision in (None, MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))):
        torch.manual_seed(0)
        condition = partial(ClassCondition, num_classes=4, dropout=0.0)
        build = partial(Transformer, condition, size=(1, 2, 16), codebook_size=8, grid=(2, 2))
        module = GeneratorModule(build, lr=0.0)
        batch = {"codes": torch.arange(4).view(1, 2, 2), "class": torch.tensor([1])}
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, plugins=precision or None,
        )  # fmt: skip
        trainer.fit(module, DataLoader([batch], batch_size=None))
        norms.append(trainer.callback_metrics["train/gradient_norm"].item())
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
