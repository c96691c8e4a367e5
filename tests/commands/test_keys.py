"""A misspelled option, key or class, and a config in the wrong place, end in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lgpl.commands.parsing import in_words
from lgpl.generator import Sampling

Fails = Callable[..., str]
EMOJI = ("fit", "-c", "tokenizer/emoji.yaml")
QUANTIZER = "model.init_args.autoencoder.init_args.quantizer.init_args"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fit --data.batch_sise 4", "--data.batch_sise: no such key; did you mean --data."),
        ("fit --max_epochs 4", "--max_epochs: no such option; did you mean --trainer.max_epochs?"),
        ("sample --promt x", "--promt: no such option; did you mean --prompt?"),
        ("data pack --valu 1", "--valu: no such option; did you mean --val?"),
        ("data pakc", "'pakc' is no command; did you mean pack?"),
        ("evaluate generation --chekpoint x", "--chekpoint: no such option; did you mean --check"),
        ("quickstart --ot x", "--ot: no such option; did you mean --out?"),
        ("fit -c data/own.yaml", "-c data/own.yaml: sets no model; stack it after the recipe"),
        (
            "fit -c data/own.yaml -c tokenizer/emoji.yaml",
            "-c data/own.yaml: data.train is set again by tokenizer/emoji.yaml; stack it after",
        ),
        (
            "fit -c generator/size/l.yaml -c generator/c2i.yaml",
            "-c generator/size/l.yaml: model.init_args.transformer.init_args.size is set again by "
            "generator/c2i.yaml; stack it after the recipe.",
        ),
    ],
)
def test_command_line(fails: Fails, command: str, said: str) -> None:
    assert fails(*command.split()).startswith(said)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("model.init_args.lrr", "3", "--model.init_args.lrr: no such key; did you mean --model"),
        ("trainer.precision", "bf17", "trainer.precision: bf17 is none of transformer-engine, "),
        ("trainer.max_epochs", "x", "trainer.max_epochs: Expected an int, got x"),
        (
            "model.init_args.autoencoder.class_path",
            "lgpl.tokenizer.VQModl",
            "--model.init_args.autoencoder.class_path: lgpl.tokenizer.VQModl: lgpl.tokenizer has "
            "no VQModl; did you mean lgpl.tokenizer.VQModel?",
        ),
        ("model", "lgpl.tokeniser.TokenizerModule", "--model.class_path: lgpl.tokeniser."),
    ],
)
def test_on_a_recipe(fails: Fails, option: str, value: str, said: str) -> None:
    assert fails(*EMOJI, f"--{option}", value).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("dat: {}", "dat: no such key; did you mean data?"),
        ("data: {batch_sise: 3}", "data.batch_sise: no such key; did you mean data.batch_size?"),
        (
            "model: {init_args: {autoencoder: {init_args: {quantizer: {init_args: {dimm: 3}}}}}}",
            f"{QUANTIZER}.dimm: no such key; did you mean {QUANTIZER}.dim?",
        ),
        (
            "trainer: {callbacks: [{class_path: lgpl.callbacks.SampleImages, "
            "init_args: {sampling: {guidanc: 2}}}]}",
            "trainer.callbacks[0].init_args.sampling.guidanc: no such key; did you mean trainer.",
        ),
        (
            "trainer: {logger: {class_path: lightning.pytorch.loggers.CSVLoger}}",
            "trainer.logger.class_path: lightning.pytorch.loggers.CSVLoger: "
            "lightning.pytorch.loggers has no CSVLoger; did you mean lightning.pytorch.loggers.CSV",
        ),
    ],
)
def test_in_a_config(fails: Fails, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    assert fails(*EMOJI, "-c", str(path)).startswith(f"-c {path}: {said}")


def test_a_module_that_does_not_import_is_no_typo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lgpl.cli import main

    (tmp_path / "mine_broken.py").write_text("import no_such_package_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_mine"):
        main([*EMOJI, "--model", "mine_broken.Module"])


def test_in_words() -> None:
    assert in_words(2, 0, Sampling(guidance=1.5)) == "2 images, seeds 0 and 1, guidance 1.5"
    assert in_words(1, 3, Sampling()) == "1 image, seed 3"
    assert in_words(9, 1, Sampling(top_k=5)) == "9 images, seeds 1 to 9, top-k 5"
