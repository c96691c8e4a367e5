"""What a run logs beside its losses, in TensorBoard, in a CSV and in W&B."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgpl.callbacks.monitoring import layer_of
from lgpl.checkpoints import read_checkpoint
from lgpl.cli import main
from lgpl.training import build_module
from lgpl.training.estimate import estimate_step
from tests.callbacks.test_evaluation import (
    RECONSTRUCTION,
    generator,
    scalars,
    short,
    stacked,
    tokenizer,
)
from tests.conftest import Chain

FAST = {
    "class_path": "lgpl.callbacks.Throughput",
    "init_args": {"every": 2, "flops": True},
}
NORMS = {"class_path": "lgpl.callbacks.GradientNorms", "init_args": {"every": 2}}
ALL = [
    *(FAST, NORMS, RECONSTRUCTION),
    *({"class_path": f"lgpl.callbacks.{name}"} for name in ("CodebookHistogram", "NaNGuard")),
    *({"class_path": f"lgpl.callbacks.{name}"} for name in ("HyperParameters", "TokenizerHealth")),
]


def final_metrics(events: EventAccumulator) -> set[str]:
    """The names of the columns of metrics in the HParams tab."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    written = [events.SummaryMetadata(f"_hparams_/{name}") for name in
               ("experiment", "session_start_info")]  # fmt: skip
    experiment, session = (HParamsPluginData.FromString(w.plugin_data.content) for w in written)
    assert any("autoencoder" in name for name in session.session_start_info.hparams)
    return {info.name.tag for info in experiment.experiment.metric_infos}


def test_tokenizer_in_tensorboard(tmp_path: Path) -> None:
    main(["fit", *tokenizer(*stacked(tmp_path, "all", *ALL)),
          *short("--trainer.val_check_interval", "6")])  # fmt: skip
    folder = tmp_path / "all/tokenizer"
    found = scalars(folder)
    assert {"train/images_per_second", "train/tflops", "val/FID[Pixels]"} <= set(found)
    assert all(0 <= share < 1 for share in found["train/data_wait"])
    assert 0.1 < found["train/peak_gib"][-1] < 64 and "train/mfu" not in found  # of a CPU
    assert found["gradient_norm/autoencoder.encoder"][-1] > 0
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert tags["histograms"] == ["val/codes"]
    counts = events.Histograms("val/codes")[-1].histogram_value
    assert counts.num == 64 and counts.sum == pytest.approx(64)
    assert "hp_metric" not in found
    assert {"val/FID[Pixels]", "val/psnr"} <= final_metrics(events)


def test_generator_in_a_csv(chain: Chain, tmp_path: Path) -> None:
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    for key, value in (("save_dir", str(tmp_path)), ("name", "csv"), ("version", "")):
        logger += [f"--trainer.logger.init_args.{key}", value]
    callbacks = [FAST, NORMS, *({"class_path": f"lgpl.callbacks.{n}"}
                                for n in ("HyperParameters", "NaNGuard"))]  # fmt: skip
    main(["fit", *generator(chain, *stacked(tmp_path, "all", *callbacks)), *short(), *logger])
    with (tmp_path / "csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    layers = {name for name in rows[0] if name.startswith("gradient_norm/")}
    assert {"gradient_norm/transformer.layers.0", "gradient_norm/transformer.layers.1"} <= layers
    images, tokens = (
        [float(row[f"train/{kind}_per_second"]) for row in rows if row["train/images_per_second"]]
        for kind in ("images", "tokens")
    )
    assert tokens == pytest.approx([64 * rate for rate in images])
    flops = [float(row["train/tflops"]) for row in rows if row["train/tflops"]]
    with torch.device("meta"):
        module = build_module(read_checkpoint(chain.stage2, "generator").described())
    each = estimate_step(module, 1, 64, "32-true").flops / 1e12
    assert flops == pytest.approx([each * rate for rate in images], rel=1e-3)
    assert "Transformer" in (tmp_path / "csv/hparams.yaml").read_text()


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The real thing, offline; it writes nowhere but below the test's folder."""
    found = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for kind in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{kind}", str(tmp_path))
    yield found
    found.teardown()


def test_tokenizer_in_wandb(wandb: Any, tmp_path: Path) -> None:
    """Scalars, a histogram, images as images, and the config; CSV beside it takes what it can."""
    loggers = [
        {"class_path": "lightning.pytorch.loggers.WandbLogger",
         "init_args": {"project": "lgpl", "save_dir": str(tmp_path), "offline": True}},
        {"class_path": "lightning.pytorch.loggers.CSVLogger",
         "init_args": {"save_dir": str(tmp_path), "name": "csv", "version": ""}},
    ]  # fmt: skip
    images = {"class_path": "lgpl.callbacks.ReconstructionImages", "init_args": {"count": 4}}
    config = tmp_path / "loggers.yaml"
    callbacks = [one for one in ALL if one is not RECONSTRUCTION] + [images]
    config.write_text(yaml.safe_dump({"trainer": {"logger": loggers, "callbacks": callbacks}}))
    quick = ("--data.epoch_samples", "16", "--trainer.limit_val_batches", "1")
    main(["fit", *tokenizer("-c", str(config)), *short(*quick)])
    wandb.finish()
    wandb.teardown()  # returns when all is written
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (image,) = (run / "files/media/images/val").glob("reconstructions_*.png")
    with Image.open(image) as image:
        assert image.width >= 2 * 64 and len(image.getcolors(2**20)) > 100
    said = b"".join(path.read_bytes() for path in run.glob("run-*.wandb"))
    names = ("train/loss", "val/psnr", "train/images_per_second", "val/codes", "VQModel")
    missing = [name for name in names if name.encode() not in said]
    assert not missing and b'"histogram"' in said
    rows = (tmp_path / "csv/metrics.csv").read_text()
    assert "val/psnr" in rows and "val/codes" not in rows
    assert "VQModel" in (tmp_path / "csv/hparams.yaml").read_text()


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("transformer.layers.3.attention.wqkv.weight", "transformer.layers.3"),
        ("transformer.output.weight", "transformer.output"),
        ("autoencoder.decoder.up.1.0.conv.weight", "autoencoder.decoder.up.1"),
        ("scale", "scale"),
    ],
)
def test_layers_of_parameters(parameter: str, layer: str) -> None:
    assert layer_of(parameter) == layer
