"""From shards to images by the commands of the READMEs, in seconds instead of minutes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgpl.cli import main
from lgpl.codes import CodeLayout
from lgpl.data import ShardDataModule
from lgpl.data.shards import expand, read_shard
from lgpl.training import load_module
from tests.conftest import (
    CONDITION,
    TINY,
    TINY_GENERATOR,
    TINY_TOKENIZER,
    Chain,
    encode,
    fit_generator,
    logs,
    scalars,
)
from tests.shards import EMOJI_TRAIN, count, samples, write_shard

# Kills itself where its second shard would take its name.
KILLED = """
import os, signal
from lgpl.cli import main
from lgpl.data.writer import ShardWriter

def close(writer, closed=[], close=ShardWriter.close):
    if closed:
        os.kill(os.getpid(), signal.SIGKILL)
    closed.append(close(writer))

ShardWriter.close = close
main()
"""


def test_tensorboard_holds_what_people_look_at(chain: Chain) -> None:
    tokenizer = scalars(chain.folder / "tokenizer")
    for tag in ("loss", "l2", "lpips", "lr", "usage", "perplexity", "codebook", "commitment"):
        assert f"train/{tag}" in tokenizer
    for tag in ("val/psnr", "val/lpips", "val/usage", "val/perplexity", "val/reconstructions"):
        assert tag in tokenizer
    generator = scalars(chain.folder / "stage2")
    for tag in ("train/loss", "train/lr", "train/gradient_norm", "val/loss", "val/samples"):
        assert tag in generator


def test_throughput(chain: Chain, tmp_path: Path) -> None:
    codes = chain.codes
    fit_generator(
        tmp_path, "stage1", chain.tokenizer, codes,
        "--trainer.callbacks+=lgpl.callbacks.Throughput", "--trainer.callbacks.init_args.every",
        "2", "--data.epoch_samples", "32",
        "--model.init_args.transformer.init_args.grid", "[8, 8]",
    )  # fmt: skip
    figures = scalars(tmp_path / "stage1")
    ratio = figures["train/tokens_per_second"] / figures["train/images_per_second"]
    assert ratio == pytest.approx(64)


def test_code_shards_hold_what_the_generator_reads(chain: Chain) -> None:
    sources, shards = expand("data/emoji/*.tar.gz"), expand(f"{chain.codes}/*.tar")
    assert [Path(s).stem for s in shards] == [Path(s).name.split(".")[0] for s in sources]
    assert [count(s) for s in shards] == [count(s) for s in sources]
    with tarfile.open(shards[0]) as tar:
        names = [m.name.split(".", 1)[1] for m in tar.getmembers()[:5]]
    assert sorted(names) == ["cls", "codes.npy", "json", "text.npy", "txt"]
    data = ShardDataModule(train=f"{chain.codes}/train-*.tar", fields=["codes", "text"])
    data.expect(layout=CodeLayout(8, 8), codebook_size=64, text_features=384, text_length=12)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["codes"].shape == (32, 8, 8) and batch["text"].shape == (32, 12, 384)


def test_encoding_starts_again_where_it_stopped(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = tmp_path / "codes"
    shutil.copytree(chain.codes, codes)
    whole = (codes / "train-0001.tar").read_bytes()
    (codes / "train-0001.tar").unlink()
    (codes / "train-0001.tar.0123456789ab.partial").write_bytes(b"cut short")
    untouched = (codes / "train-0000.tar").stat().st_mtime_ns
    encode(chain.tokenizer, codes, 64)
    assert "4 of 5 code shards are there, 1 to write" in capsys.readouterr().out
    assert (codes / "train-0001.tar").read_bytes() == whole
    assert (codes / "train-0000.tar").stat().st_mtime_ns == untouched
    assert not list(codes.glob("*.partial"))


def test_encoding_killed_leaves_only_whole_shards(chain: Chain, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    shards = [write_shard(tmp_path / f"{i}.tar", samples(6, 6 * i)) for i in range(3)]
    command = [
        *("predict", "-c", "configs/tokenizer/emoji.yaml", *TINY_TOKENIZER),
        *("-c", "configs/tokenizer/encode_emoji.yaml", "--ckpt_path", chain.tokenizer),
        *("--data.predict", json.dumps(shards), "--data.num_workers", "0"),
        *("--trainer.callbacks.init_args.out", str(codes)),
    ]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(codes.glob("*.partial"))) == 1 and len(list(codes.glob("*.tar"))) == 1
    main(command)
    assert [count(s) for s in expand(f"{codes}/*.tar")] == [6] * 3
    assert not list(codes.glob("*.partial"))


def test_bad_samples_are_left_out_of_code_shards(chain: Chain, tmp_path: Path) -> None:
    content = samples(6)
    content[1]["jpg"] = b"broken"
    del content[5]["txt"]
    shard = write_shard(tmp_path / "a.tar", content)
    encode(chain.tokenizer, tmp_path / "codes", 64, "--data.predict", shard)
    with tarfile.open(tmp_path / "codes/a.tar") as tar:
        keys = {m.name.split(".")[0] for m in tar.getmembers()}
    assert keys == {"00000", "00002", "00003", "00004"}


def test_ten_crops_are_encoded_and_one_is_trained_on(chain: Chain, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    shard = write_shard(tmp_path / "train-0.tar", samples(12))
    options = ("--data.predict", shard, "--data.ten_crop", "[1.1, 1.05]")
    encode(chain.tokenizer, codes, 64, *options, "--data.num_workers", "2")
    encode(chain.tokenizer, tmp_path / "centre", 64, "--data.predict", shard)
    (ten,), (centre,) = (
        [*read_shard(f"{d}/train-0.tar")][:1] for d in (codes, tmp_path / "centre")
    )
    views = np.load(io.BytesIO(ten["codes.npy"]))
    assert views.shape == (20, 1, 8, 8)
    assert np.load(io.BytesIO(centre["codes.npy"])).shape == (1, 1, 8, 8)
    assert len({view.tobytes() for view in views}) > 15
    fit_generator(
        tmp_path, "stage2", chain.tokenizer, str(codes), "--data.val", f"{chain.codes}/val-*.tar",
        "--model.init_args.init_from", "null",
    )  # fmt: skip


def test_skipped_samples_are_counted_in_tensorboard(chain: Chain, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "bad.tar", [{"__key__": str(i), "txt": b"a"} for i in range(90)])
    fit_generator(
        tmp_path, "stage2", chain.tokenizer, chain.codes,
        "--data.train", json.dumps([f"{chain.codes}/train-*.tar", shard]),
        "--data.epoch_samples", "160", "--model.init_args.init_from", "null",
        "--data.shuffle", "2000",
    )  # fmt: skip
    assert scalars(tmp_path / "stage2")["data/skipped/sample without its codes (.codes.npy)"] > 1


def test_codes_of_another_tokenizer_are_refused(
    chain: Chain, fails: Callable[..., str], tmp_path: Path
) -> None:
    manifest = json.loads(Path(chain.codes, "index.json").read_text())
    made_by = load_module(chain.tokenizer, "tokenizer").fingerprint()
    assert manifest["made_by"]["tokenizer"] == made_by and manifest["made_by"]["image_size"] == [
        64,
        64,
    ]
    assert sum(manifest["shards"].values()) == 1852
    other = torch.load(chain.tokenizer, weights_only=True)
    other["state_dict"]["autoencoder.quant_conv.weight"][0] += 1e-3
    path = str(tmp_path / "other.ckpt")
    torch.save(other, path)
    fit = [
        *("fit", "-c", "configs/generator/emoji_stage2.yaml", *TINY, *TINY_GENERATOR),
        *("--data.train", f"{chain.codes}/index.json", "--data.val", f"{chain.codes}/val-*.tar"),
        *("--trainer.logger", "false", "--model.init_args.init_from", "null"),
    ]
    said = fails(*fit, "--model.init_args.tokenizer", path)
    assert f"holds codes of the tokenizer {made_by}, but model.tokenizer is" in said
    predict = [
        *("predict", "-c", "configs/tokenizer/emoji.yaml", *TINY_TOKENIZER),
        *("-c", "configs/tokenizer/encode_emoji.yaml", "--data.predict", EMOJI_TRAIN),
        *("--trainer.callbacks.init_args.out", chain.codes),
    ]
    assert f"was made with tokenizer {made_by}, not" in fails(*predict, "--ckpt_path", path)
    small = ("--ckpt_path", chain.tokenizer, "--data.image_size", "32")
    assert "was made with layout [8, 8, 1], not [4, 4, 1]" in fails(*predict, *small)


def test_validate_gives_the_metrics_of_the_checkpoint(chain: Chain, tmp_path: Path) -> None:
    """The last validation of the fit that wrote it, to the last digit, and at its step."""
    tokenizer = ["-c", "configs/tokenizer/emoji.yaml", *TINY_TOKENIZER, *TINY, *logs(tmp_path)]
    main(["validate", *tokenizer, "--ckpt_path", chain.tokenizer])
    generator = ["-c", "configs/generator/emoji_stage2.yaml", *TINY_GENERATOR, *TINY]
    main(
        ["validate", *generator, *logs(tmp_path), "--ckpt_path", chain.stage2, "--data.val",
         f"{chain.codes}/val-*.tar", "--model.init_args.tokenizer", chain.tokenizer,
         "--data.batch_size", "8"]
    )  # fmt: skip
    for stage, names in (("tokenizer", ("val/psnr", "val/lpips")), ("stage2", ("val/loss",))):
        fitted, found = scalars(chain.folder / stage), scalars(tmp_path / stage)
        step = torch.load(getattr(chain, stage), weights_only=True)["global_step"]
        events = EventAccumulator(str(tmp_path / stage)).Reload()
        for name in names:
            assert found[name] == pytest.approx(fitted[name], rel=1e-6)
            assert step > 0 and [event.step for event in events.Scalars(name)] == [step]


def test_generator_trains_on_images_through_the_frozen_tokenizer(
    chain: Chain, tmp_path: Path
) -> None:
    before = torch.load(chain.tokenizer, weights_only=True)["state_dict"]
    fit_generator(
        tmp_path, "stage2", chain.tokenizer, chain.codes, "--data.train", EMOJI_TRAIN,
        "--data.val", "data/emoji/val-*.tar.gz", "--data.fields", '["image", "caption"]',
        "--data.image_size", "64", "--model.init_args.init_from", "null",
    )  # fmt: skip
    checkpoint = torch.load(tmp_path / "stage2/checkpoints/last.ckpt", weights_only=True)
    assert not any("tokenizer" in name for name in checkpoint["state_dict"])
    after = torch.load(chain.tokenizer, weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_stage_2_starts_from_stage_1_with_a_larger_grid(chain: Chain, tmp_path: Path) -> None:
    init = ("--model.init_args.init_from", chain.stage1)
    still = ("--model.init_args.lr", "0", "--model.init_args.muon_lr", "null")
    fit_generator(tmp_path, "stage2", chain.tokenizer, chain.codes, *init, *still)
    path = tmp_path / "stage2/checkpoints/last.ckpt"
    first, second = (torch.load(p, weights_only=True)["state_dict"] for p in (chain.stage1, path))
    names = [name for name in second if name.startswith("transformer.")]
    assert names and all(torch.equal(first[name], second[name]) for name in names)


def test_sample(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red car\na blue car\n")

    def draw(out: str, *options: str) -> bytes:
        path = tmp_path / out
        main(["sample", "--checkpoint", chain.stage2, "--out", str(path), "--top-k", "8", *options])
        return path.read_bytes()

    one = draw("one.png", "--prompt", "a slice of pizza", "--guidance", "3", "--seed", "4")
    assert Image.open(tmp_path / "one.png").size == (64, 64)
    assert one == draw(
        "again.png", "--prompt", "a slice of pizza", "--guidance", "3", "--seed", "4"
    )
    assert one != draw(
        "other.png", "--prompt", "a slice of pizza", "--guidance", "3", "--seed", "5"
    )
    draw("grid.png", "--prompt", "pizza", "cat", "--prompts", str(prompts), "--count", "3")
    width, height = Image.open(tmp_path / "grid.png").size
    assert width == 8 * 70 + 6 and height > 2 * 64
    assert "12 images, seeds 0 to 11" in capsys.readouterr().out


def test_moved_tokenizer(chain: Chain, tmp_path: Path, fails: Callable[..., str]) -> None:
    def draw(name: str, *options: str) -> bytes:
        out = tmp_path / name
        main([*command, "--out", str(out), *options])
        return out.read_bytes()

    command = ["sample", "--checkpoint", chain.stage2, "--prompt", "a"]
    before, moved = draw("before.png"), tmp_path / "moved.ckpt"
    shutil.move(chain.tokenizer, moved)
    try:
        assert chain.tokenizer in fails(*command, "--out", str(tmp_path / "none.png"))
        assert draw("after.png", "--tokenizer", str(moved)) == before
    finally:
        shutil.move(moved, chain.tokenizer)


def test_ema_checkpoint_holds_the_average_and_resumes(chain: Chain, tmp_path: Path) -> None:
    checkpoint = torch.load(chain.tokenizer, weights_only=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    name = "autoencoder.decoder.conv_out.weight"
    assert not torch.equal(average[name], current[name])
    assert average["train_step"] == current["train_step"] == 4  # counters are not averaged
    main(
        ["fit", "-c", "configs/tokenizer/emoji.yaml", *TINY, *TINY_TOKENIZER, *logs(tmp_path),
         "--data.epoch_samples", "64", "--trainer.max_epochs", "2", "--ckpt_path", chain.tokenizer]
    )  # fmt: skip
    resumed = torch.load(tmp_path / "tokenizer/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 8 and resumed["state_dict"]["train_step"] == 8


def test_class_conditional(tmp_path: Path, chain: Chain) -> None:
    """The emoji's groups as classes, through the config that CIFAR-10 uses."""
    main(
        [
            *("fit", "-c", "configs/generator/cifar10.yaml", *TINY, *TINY_GENERATOR),
            *(
                "--data.train",
                f"{chain.codes}/train-*.tar",
                "--data.val",
                f"{chain.codes}/val-*.tar",
            ),
            *("--data.batch_size", "8", "--data.epoch_samples", "16", "--trainer.max_epochs", "1"),
            *(f"{CONDITION}.num_classes", "9", *logs(tmp_path)),
            *("--model.init_args.tokenizer", chain.tokenizer),
        ]
    )
    checkpoint = str(next(tmp_path.glob("*/checkpoints/last.ckpt")))
    out = tmp_path / "classes.png"
    main(
        [
            "sample",
            "--checkpoint",
            checkpoint,
            "--label",
            "0",
            "3",
            "8",
            "--guidance",
            "2",
            "--out",
            str(out),
        ]
    )
    assert Image.open(out).width == 3 * 70 + 6


@pytest.mark.parametrize("module", ["lgpl", "lgpl.cli"])
def test_module_entry_point(module: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"},
    ).stdout  # fmt: skip
    plain = ("sample", "import", "export", "plan", "quickstart")
    for command in ("fit", "validate", "test", "predict", *plain):
        assert command in said
