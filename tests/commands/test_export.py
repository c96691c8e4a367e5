"""lgpl's own folder stands wherever a checkpoint does, and holds the same weights."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lgpl.checkpoints import read_checkpoint
from lgpl.cli import main
from lgpl.data.shards import expand
from lgpl.training import load_module
from tests.conftest import (
    ROOT,
    TINY,
    TINY_GENERATOR,
    TINY_TOKENIZER,
    Chain,
    encode,
    fit_generator,
    logs,
)
from tests.models import transformer

AUTOENCODER, TRANSFORMER = "autoencoder.", "transformer."


@pytest.fixture(scope="module")
def exported(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The chain's checkpoints as folders."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("tokenizer", "stage1", "stage2"):
        main(["export", getattr(chain, name), "--out", str(folder / name)])
    paths = [str(folder / name) for name in ("tokenizer", "stage1", "stage2")]
    return Chain(folder, paths[0], chain.codes, paths[1], paths[2])


def test_weights_in_bf16_are_the_rounded_ones(
    chain: Chain, exported: Chain, tmp_path: Path, fails: Callable[..., str]
) -> None:
    main(["export", chain.stage2, "--out", str(tmp_path / "half"), "--dtype", "bf16"])
    weights = load_file(f"{exported.stage2}/model.safetensors")
    half = load_file(tmp_path / "half/model.safetensors")
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    assert equal(half, {name: tensor.bfloat16() for name, tensor in weights.items()})
    files = [tmp_path / "half/model.safetensors", Path(exported.stage2, "model.safetensors")]
    small, large = (path.stat().st_size for path in files)
    assert small < 0.55 * large
    assert read_checkpoint(tmp_path / "half").kind == "generator"
    said = fails("export", chain.stage2, "--out", "a.pt", "--format", "llamagen", "--dtype", "bf16")
    assert said == "--dtype: LlamaGen's own code loads float32; leave it out."


def test_an_exported_tokenizer_is_found_beside_the_generator(
    exported: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tokenizer", "stage2"):
        shutil.copytree(exported.folder / name, tmp_path / "model" / name)
    # Also where a run of the same name lies: it may have been trained anew.
    config = read_checkpoint(exported.stage2).described()
    run = tmp_path / config["init_args"]["tokenizer"]
    monkeypatch.chdir(tmp_path)
    module = load_module("model/stage2", "generator")
    assert module.beside_checkpoint(str(run)) == str(tmp_path / "model/tokenizer")
    main(["sample", "--checkpoint", "model/stage2", "--prompt", "a", "--out", "a.png"])


def test_an_exported_model_knows_the_data_of_its_training(exported: Chain) -> None:
    found = [read_checkpoint(path).provenance for path in (exported.tokenizer, exported.stage2)]
    assert [made["shards"] for made in found] == [["emoji/train-*.tar.gz"], ["codes64/train-*.tar"]]
    assert found[0]["image_size"] == [64, 64]


def state(checkpoint: str, part: str, key: str = "state_dict") -> dict[str, Tensor]:
    whole = torch.load(checkpoint, weights_only=True)[key]
    return {n.removeprefix(part): t for n, t in whole.items() if n.startswith(part)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_weights_are_the_average_bit_for_bit(chain: Chain, exported: Chain) -> None:
    weights = load_file(f"{exported.tokenizer}/model.safetensors")
    assert equal(weights, state(chain.tokenizer, AUTOENCODER))
    assert not equal(weights, state(chain.tokenizer, AUTOENCODER, "current_model_state"))
    weights = load_file(f"{exported.stage2}/model.safetensors")
    assert equal(weights, state(chain.stage2, TRANSFORMER))
    model = transformer((2, 2, 32), 64, (8, 8), text_features=384, text_length=12)
    model.load_state_dict(weights)  # torch alone
    modes = {path.stat().st_mode for path in Path(exported.stage2).iterdir()}
    assert len(modes) == 1  # readable for whom the umask admits


def test_sample(chain: Chain, exported: Chain, tmp_path: Path) -> None:
    images = []
    for name, run in (("ckpt", chain), ("folder", exported)):
        out = tmp_path / f"{name}.png"
        main(
            ["sample", "--checkpoint", run.stage2, "--tokenizer", run.tokenizer,
             "--prompt", "pizza", "--out", str(out)]
        )  # fmt: skip
        images.append(out.read_bytes())
    assert images[0] == images[1]


@pytest.mark.slow
def test_predict(chain: Chain, exported: Chain, tmp_path: Path) -> None:
    encode(exported.tokenizer, tmp_path, 64)
    for shard in expand(f"{chain.codes}/val-*.tar"):
        assert (tmp_path / Path(shard).name).read_bytes() == Path(shard).read_bytes()


def test_validate(chain: Chain, exported: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = ["-c", "configs/tokenizer/emoji.yaml", *TINY_TOKENIZER]
    generator = [
        *("-c", "configs/generator/emoji_stage2.yaml", *TINY_GENERATOR),
        *("--data.val", f"{chain.codes}/val-*.tar"),
        *("--model.init_args.tokenizer", exported.tokenizer),
    ]
    for command, options, name in (
        ("validate", tokenizer, "tokenizer"),
        ("validate", generator, "stage2"),
    ):
        metrics = []
        for run in (chain, exported):
            capsys.readouterr()
            main(
                [command, *options, *TINY, "--trainer.logger", "false",
                 "--ckpt_path", getattr(run, name)]
            )  # fmt: skip
            metrics.append(re.findall(r"(val/\w+)\W+([\d.]+)", capsys.readouterr().out))
        assert metrics[0] and metrics[0] == metrics[1]


def test_generator_starts_from_it(exported: Chain, tmp_path: Path) -> None:
    still = ("--model.init_args.lr", "0", "--model.init_args.muon_lr", "null")
    init = ("--model.init_args.init_from", exported.stage1)
    fit_generator(tmp_path, "stage2", exported.tokenizer, exported.codes, *init, *still)
    after = state(str(tmp_path / "stage2/checkpoints/last.ckpt"), TRANSFORMER)
    assert equal(after, load_file(f"{exported.stage1}/model.safetensors"))


def test_tokenizer_is_fine_tuned_with_a_fresh_discriminator(
    exported: Chain, tmp_path: Path
) -> None:
    gan = "--model.init_args.loss.init_args.discriminator"

    def fit(name: str, lr: str) -> str:
        main(
            ["fit", "-c", "configs/tokenizer/emoji.yaml", *TINY, *TINY_TOKENIZER,
             *logs(tmp_path / name), "--data.epoch_samples", "64", "--trainer.max_epochs", "1",
             "--trainer.callbacks", "[]", "--model.init_args.init_from", exported.tokenizer,
             gan, "lgpl.tokenizer.PatchGAN", f"{gan}.init_args.width", "8",
             f"{gan}.init_args.layers", "1", "--model.init_args.discriminator_start", "2",
             "--model.init_args.autoencoder.init_args.quantizer.init_args.revive_after", "0",
             "--model.init_args.autoencoder.init_args.quantizer.init_args.kmeans_iterations", "0",
             "--model.init_args.lr", lr]
        )  # fmt: skip
        return str(next((tmp_path / name).rglob("*.ckpt")))

    before = load_file(f"{exported.tokenizer}/model.safetensors")
    still, moved = fit("still", "0"), fit("moved", "1e-3")
    assert equal(state(still, AUTOENCODER), before)
    assert not equal(state(moved, AUTOENCODER), before)
    discriminator = "loss.discriminator."
    assert not equal(state(still, discriminator), state(moved, discriminator))
    main(["export", moved, "--out", str(tmp_path / "tuned")])
    weights = load_file(tmp_path / "tuned/model.safetensors")
    assert equal(weights, state(moved, AUTOENCODER))  # and no discriminator


def test_what_llamagen_has_no_words_for(
    fails: Callable[..., str], chain: Chain, tmp_path: Path
) -> None:
    to_llamagen = ("--format", "llamagen", "--out", str(tmp_path / "a.pt"))
    assert "has 2 levels; VQ-16 has 5" in fails("export", chain.tokenizer, *to_llamagen)
    assert "prefix_rope identity, not zero" in fails("export", chain.stage2, *to_llamagen)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def sharded(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A generator trained by FSDP on two ranks: a folder of shards, and one file, of one run."""
    folder = tmp_path_factory.mktemp("sharded")
    subprocess.run(
        [sys.executable, "-m", "lgpl.cli", "fit", "-c", "configs/generator/emoji_stage2.yaml",
         *TINY, *TINY_GENERATOR, *logs(folder), "--data.train", f"{chain.codes}/train-*.tar",
         "--data.val", f"{chain.codes}/val-*.tar", "--data.batch_size", "8",
         "--data.epoch_samples", "16", "--trainer.max_epochs", "1",
         "--model.init_args.tokenizer", chain.tokenizer,
         "--model.init_args.init_from", chain.stage1, "--model.init_args.lr", "0",
         "--model.init_args.muon_lr", "null",
         "-c", "configs/trainer/fsdp.yaml", "--trainer.accelerator", "cpu",
         "--trainer.devices", "2", "--trainer.strategy.init_args.data_parallel_size", "2"],
        cwd=ROOT, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return str(folder / "stage2/checkpoints/last.ckpt"), chain.stage1


def test_sharded_checkpoint(
    chain: Chain, sharded: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, start = sharded
    assert Path(shards).is_dir() and len(list(Path(shards).glob("*.distcp"))) == 2
    main(["export", shards, "--out", str(tmp_path / "whole")])
    weights = load_file(tmp_path / "whole/model.safetensors")
    assert equal(weights, state(start, TRANSFORMER))  # its learning rate was 0
    out = tmp_path / "a.png"
    main(["sample", "--checkpoint", shards, "--prompt", "pizza", "--out", str(out)])
    assert out.exists()
    main(
        ["validate", "-c", "configs/generator/emoji_stage2.yaml", *TINY, *TINY_GENERATOR,
         "--trainer.logger", "false", "--data.val", f"{chain.codes}/val-*.tar",
         "--model.init_args.tokenizer", chain.tokenizer, "--ckpt_path", shards]
    )  # fmt: skip
    assert "val/loss" in capsys.readouterr().out


def test_index_of_shards_is_no_way_in(
    fails: Callable[..., str], sharded: tuple[str, str], tmp_path: Path
) -> None:
    import pickle
    import shutil

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "trace",)

    folder = tmp_path / "attack"
    shutil.copytree(sharded[0], folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Attack()))
    said = fails("export", str(folder), "--out", str(tmp_path / "out"))
    assert "holds pickled code" in said and not (tmp_path / "trace").exists()
    assert read_checkpoint(folder).kind == "generator"
