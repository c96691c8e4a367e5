"""The paper's two text stages by their own configs, in small: captions by weight, the filter of
stage 2, its larger grid."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from PIL import Image

from lgpl.cli import main
from lgpl.commands.training import CommandLine
from lgpl.data.shards import read_shard
from lgpl.training import load_module
from tests.conftest import CONDITION, TINY, TINY_GENERATOR, TINY_TOKENIZER, Chain, logs
from tests.shards import write_shard

TRANSFORMER = "--model.init_args.transformer.init_args"
SMALL = [
    *(*TINY, *TINY_GENERATOR, f"{CONDITION}.features", "384", f"{CONDITION}.length", "12"),
    *(f"{CONDITION}.encoder.init_args.name", "minilm"),
    *(f"{CONDITION}.encoder.init_args.max_length", "12"),
    *("--data.batch_size", "8", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", "1"),
]


class Seen(Callback):
    """The samples of every training batch."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        names = ("key", "caption", "text", "text_lengths", "codes")
        for values in zip(*(batch[name] for name in names), strict=True):
            self.samples.append(dict(zip(names, values, strict=True)))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Joins the callbacks of every Trainer."""
    callback, make = Seen(), CommandLine.instantiate_trainer

    def with_callback(self: CommandLine, **kwargs: Any) -> pl.Trainer:
        trainer = make(self, **kwargs)
        trainer.callbacks.insert(0, callback)
        return trainer

    monkeypatch.setattr(CommandLine, "instantiate_trainer", with_callback)
    return callback


def emoji_with_two_captions(folder: Path) -> None:
    """Real emoji as img2dataset writes LAION: half with a short caption, some without a score."""
    folder.mkdir()
    raws = itertools.islice(read_shard("data/emoji/train-0000.tar.gz"), 56)
    samples = []
    for i, raw in enumerate(raws):
        label = raw["txt"].decode()
        image = Image.open(io.BytesIO(raw["webp"]))
        side = 64 if i % 4 else 48
        png = io.BytesIO()
        image.convert("RGB").resize((side, side)).save(png, "png")
        known: dict[str, Any] = {"width": side, "height": side}
        if i % 3:
            known["AESTHETIC_SCORE"] = 5.5 + i % 3 / 2  # 6.0 or 6.5
            known["AESTHETIC_SCORE"] -= 0.75 * (i % 5 == 0)  # some below 6
        sample = {
            "__key__": raw["__key__"],
            "png": png.getvalue(),
            "txt": f"an image of {label}".encode(),
            "json": json.dumps(known).encode(),
        }
        if i % 2:
            sample["short.txt"] = label.encode()
        samples.append(sample)
    write_shard(folder / "00000.tar", samples[:48])
    write_shard(folder / "00001.tar", samples[48:])


def encode(tokenizer: str, images: Path, out: Path, size: int) -> None:
    callback = "--trainer.callbacks.init_args"
    main(
        [
            *("predict", "-c", "configs/tokenizer/emoji.yaml", *TINY_TOKENIZER),
            *("-c", "configs/tokenizer/encode_laion_coco.yaml", "--ckpt_path", tokenizer),
            *("--data.predict", f"{images}/*.tar", "--data.image_size", str(size)),
            *(f"{callback}.out", str(out), f"{callback}.text_encoder.init_args.name", "minilm"),
            *(f"{callback}.text_encoder.init_args.max_length", "12"),
            *("--trainer.enable_progress_bar", "false"),
        ]
    )


def fit(stage: str, tokenizer: str, codes: Path, grid: int, folder: Path, *options: str) -> str:
    main(
        [
            *("fit", "-c", f"configs/generator/t2i_xl_{stage}.yaml", *SMALL, *logs(folder)),
            *("--data.train", f"{codes}/00000.tar", "--data.val", f"{codes}/00001.tar"),
            *(f"{TRANSFORMER}.grid", f"[{grid}, {grid}]"),
            *("--model.init_args.tokenizer", tokenizer),
            *("--trainer.callbacks.init_args.every_n_train_steps", "8", *options),
        ]
    )
    return str(folder / stage / "checkpoints/last.ckpt")


def test_both_stages(chain: Chain, tmp_path: Path, seen: Seen) -> None:
    emoji_with_two_captions(tmp_path / "images")
    codes = {grid: tmp_path / f"codes{grid}" for grid in (4, 8)}
    for grid, out in codes.items():
        encode(chain.tokenizer, tmp_path / "images", out, 8 * grid)
    raws = {raw["__key__"]: raw for raw in read_shard(str(codes[8] / "00000.tar"))}

    stage1 = fit("stage1", chain.tokenizer, codes[4], 4, tmp_path, "--data.epoch_samples", "960")
    first, seen.samples = seen.samples, []
    assert {sample["key"] for sample in first} == raws.keys()  # nothing is filtered here
    drawn = []
    for sample in first:
        raw = raws[sample["key"]]
        short = sample["caption"] == raw.get("short.txt", b"").decode()
        assert short or sample["caption"] == raw["txt"].decode()
        if "short.txt" in raw:
            drawn.append(short)
        features = np.load(io.BytesIO(raw["short.text.npy" if short else "text.npy"]))
        length = sample["text_lengths"]
        assert len(features) == length and np.array_equal(sample["text"][-length:], features)
        assert sample["codes"].shape == (4, 4)
    assert len(drawn) > 400 and 0.24 < sum(drawn) / len(drawn) < 0.36

    stage2 = fit(
        "stage2", chain.tokenizer, codes[8], 8, tmp_path, "--data.epoch_samples", "64",
        "--data.filter.min_side", "64", "--model.init_args.init_from", stage1,
        "--model.init_args.lr", "0", "--data.max_bad", "0",
    )  # fmt: skip
    wanted = set()
    for key, raw in raws.items():
        known = json.loads(raw["json"])
        if known["width"] >= 64 and known.get("AESTHETIC_SCORE", 0) >= 6.0:
            wanted.add(key)
    assert 10 < len(wanted) < 24
    assert {sample["key"] for sample in seen.samples} == wanted
    assert all(sample["codes"].shape == (8, 8) for sample in seen.samples)
    assert all(sample["caption"].startswith("an image of ") for sample in seen.samples)
    before, after = (load_module(path, "generator").state_dict() for path in (stage1, stage2))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)  # at a rate of 0

    out = tmp_path / "pizza.png"
    main(["sample", "--checkpoint", stage2, "--prompt", "a slice of pizza", "--out", str(out)])
    assert Image.open(out).size == (64, 64)
