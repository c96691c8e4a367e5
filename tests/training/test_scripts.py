"""Modules that a script has built, without the command line: their checkpoints are like any."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import lgpl
from lgpl.data import ShardDataModule
from lgpl.errors import UserError
from lgpl.generator import ClassCondition, GeneratorModule, Transformer
from lgpl.tokenizer import (
    ResidualQuantizer,
    TokenizerLoss,
    TokenizerModule,
    VectorQuantizer,
    VQModel,
)
from lgpl.training import Schedule
from tests.shards import write_shards

NAMES = ["cat", "dog", "cow"]
Build = Any


def trainer(folder: Path) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder, max_steps=1, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def data(folder: Path, *fields: Any) -> ShardDataModule:
    return ShardDataModule(
        train=str(folder / "*.tar"), fields=fields, image_size=16, batch_size=2, epoch_samples=4
    )


def condition(dim: int) -> ClassCondition:
    return ClassCondition(dim, names=NAMES)


BUILDERS: dict[str, Build] = {
    "partials": partial(
        Transformer, condition=partial(ClassCondition, names=NAMES), size=(1, 2, 8),
        codebook_size=16, grid=(4, 4), depth=2,
    ),
    "functions": lambda: Transformer(condition, (1, 2, 8), 16, (4, 4), 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("script")
    write_shards(folder, [6])
    autoencoder = VQModel(
        ResidualQuantizer(partial(VectorQuantizer, codebook_size=16, dim=4), depth=2),
        (1, 1, 1), width=32, blocks=1, z_channels=32,
    )  # fmt: skip
    module = TokenizerModule(autoencoder, TokenizerLoss(), schedule=Schedule(warmup=2))
    runner = trainer(folder)
    runner.fit(module, data(folder, "image"))
    runner.save_checkpoint(folder / "tokenizer.ckpt")
    return folder / "tokenizer.ckpt"


def test_a_tokenizer_of_a_script_is_loaded(tokenizer: Path) -> None:
    found = TokenizerModule.load_from_checkpoint(tokenizer)
    assert found.schedule.warmup == 2 and found.autoencoder.layout(16, 16).depth == 2
    model = lgpl.load(tokenizer, device="cpu")
    held = torch.load(tokenizer, weights_only=True)["state_dict"]
    for name, weight in found.state_dict().items():
        if name.startswith("autoencoder."):
            assert torch.equal(weight, held[name])
    assert isinstance(model, lgpl.inference.Tokenizer)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_generator_of_a_script_draws(tokenizer: Path, tmp_path: Path, kind: str) -> None:
    module = GeneratorModule(BUILDERS[kind], tokenizer=str(tokenizer))
    runner = trainer(tmp_path)
    runner.fit(module, data(tokenizer.parent, "image", "class"))
    runner.save_checkpoint(tmp_path / "generator.ckpt")
    model = lgpl.load(tmp_path / "generator.ckpt", device="cpu")
    (image,) = model.draw("dog")
    assert image.size == (16, 16)
    again = GeneratorModule.load_from_checkpoint(tmp_path / "generator.ckpt")
    assert again.model.condition.names == NAMES
    with pytest.raises(UserError, match="holds a generator, but a tokenizer is wanted"):
        TokenizerModule.load_from_checkpoint(tmp_path / "generator.ckpt")


def test_what_cannot_be_written_down_is_said(tmp_path: Path, tokenizer: Path) -> None:
    class Own(VectorQuantizer):
        pass

    autoencoder = VQModel(Own(16, 4), (1, 1, 1), width=32, blocks=1, z_channels=32)
    runner = trainer(tmp_path)
    runner.fit(TokenizerModule(autoencoder, TokenizerLoss()), data(tokenizer.parent, "image"))
    runner.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(UserError, match="does not say how it was built"):
        lgpl.load(tmp_path / "own.ckpt")


def test_a_model_in_place_of_its_builder_is_refused() -> None:
    with pytest.raises(UserError, match=r"functools\.partial\(Transformer, \.\.\.\), not a Transf"):
        GeneratorModule(transformer=BUILDERS["functions"]())
