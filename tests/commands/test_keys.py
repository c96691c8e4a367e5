"""A misspelled option, key or class, and a config in the wrong place, end in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lgpl.cli import main
from lgpl.commands.parsing import in_words
from lgpl.generator import Sampling

Fails = Callable[..., str]
Captured = pytest.CaptureFixture[str]
EMOJI = ("fit", "-c", "tokenizer/emoji.yaml")
QUANTIZER = "model.init_args.autoencoder.init_args.quantizer.init_args"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fit --data.batch_sise 4", "--data.batch_sise: no such key; did you mean --data."),
        ("fit --max_epochs 4", "--max_epochs: no such option; did you mean --trainer.max_epochs?"),
        ("fit", "No config says what is built; give one, such as -c tokenizer/emoji.yaml"),
        ("fit -c", "-c: name a config; `lgpl configs` lists the recipes."),
        ("sample --promt x", "--promt: no such option; did you mean --prompt?"),
        ("data pack --valu 1", "--valu: no such option; did you mean --val?"),
        ("data pakc", "'pakc' is no command; did you mean pack?"),
        ("evaluate generation --chekpoint x", "--chekpoint: no such option; did you mean --check"),
        ("sample --guidanc 2", "--guidanc: no such option; did you mean --guidance?"),
        ("sample", "--checkpoint and --out must be given; `lgpl sample --help` says what "),
        (
            "complete",
            "IMAGE, OUT and --checkpoint must be given; `lgpl complete --help` says what ",
        ),
        ("data show", "SHARDS must be given; `lgpl data show --help` says what it is."),
        ("sample --checkpoint", "--checkpoint: expected one argument"),
        ("sample --dtype fp16", "--dtype: fp16 is none of float32, bf16; did you mean bf16?"),
        ("data", "`lgpl data` needs one of pack, index, show, check."),
        ("completion fish", "SHELL: fish is none of bash, zsh"),
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
        (
            "model",
            "TokenizerModul",
            "--model.class_path: TokenizerModul is no class that is known ",
        ),
        ("model", "torch.nn.Linear", "--model.class_path: torch.nn.Linear is no TrainingModule."),
        ("model.init_args.lr", "abc", "model.lr: Expected a float, got abc"),
        ("model.autoencoder.widht", "3", "--model.autoencoder.widht: no such key; did you mean "),
        ("trainer.logger", "CSVLoger", "--trainer.logger.class_path: CSVLoger is no class that is"),
        ("trainer.callbacks+", "lgpl.callbacks.EMAA", "--trainer.callbacks.class_path: lgpl.call"),
        (
            "trainer.callbacks+",
            "torch.nn.Linear",
            "--trainer.callbacks.class_path: torch.nn.Lin",
        ),
        ("model.init_args.lr", "-1", "model.init_args: Invalid learning rate: -1.0"),
    ],
)
def test_on_a_recipe(fails: Fails, option: str, value: str, said: str) -> None:
    assert fails(*EMOJI, f"--{option}", value).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("dat: {}", "dat: no such key; did you mean data?"),
        ("data: [3]", "data: should hold keys with values, not a list."),
        ("batch_size: 3", "batch_size: no such key; did you mean data.batch_size?"),
        ("trainer: {data: {batch_size: 3}}", "trainer.data: no such key; did you mean data?"),
        (
            "trainer: {logger: {class_path: CSVLogger, init_arg: {}}}",
            "trainer.logger.init_arg: no such key; did you mean trainer.logger.init_args?",
        ),
        ("data: {a: [", "is no YAML (line 1, column 12: expected the node content, but found '<st"),
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


@pytest.mark.parametrize("spelled", ["decay", "decai"])
@pytest.mark.parametrize(
    "appended",
    [
        ["--trainer.callbacks+=lgpl.callbacks.EMA"],
        ["--trainer.callbacks+", "EMA"],
        ['--trainer.callbacks+={"class_path": "lgpl.callbacks.EMA"}'],
        ["--trainer.callbacks+=lgpl.callbacks.Throughput", "--trainer.callbacks+=EMA"],
        ["-c", "APPENDED"],
    ],
    ids=str,
)
def test_options_follow_the_class_that_was_appended(
    fails: Fails, appended: list[str], spelled: str, tmp_path: Path, capsys: Captured
) -> None:
    config = tmp_path / "appended.yaml"
    config.write_text("trainer: {callbacks+: [{class_path: lgpl.callbacks.EMA}]}")
    appended = [str(config) if word == "APPENDED" else word for word in appended]
    command = [*EMOJI, *appended, f"--trainer.callbacks.init_args.{spelled}", "0.5"]
    if spelled == "decai":
        option = "--trainer.callbacks.init_args"
        assert fails(*command) == f"{option}.decai: no such key; did you mean {option}.decay?"
        return
    with pytest.raises(SystemExit) as done:
        main([*command, "--print_config"])
    assert done.value.code == 0 and "decay: 0.5" in capsys.readouterr().out


def test_defaults_before_a_recipe(tmp_path: Path, capsys: Captured) -> None:
    """They hold where the recipe says nothing, and what is lost is named."""
    path = tmp_path / "defaults.yaml"
    path.write_text("trainer: {max_epochs: 9, log_every_n_steps: 7, gradient_clip_val: 2.0}")
    with pytest.raises(SystemExit) as done:
        main(["fit", "-c", str(path), "-c", "tokenizer/emoji.yaml", "--print_config"])
    out, err = capsys.readouterr()
    assert done.value.code == 0 and "gradient_clip_val: 2.0" in out and "max_epochs: 4" in out
    said = "trainer.max_epochs is set again by tokenizer/emoji.yaml, which counts."
    assert err == f"lgpl: -c {path}: {said}\n"
    path.write_text("trainer: {gradient_clip_val: 2.0}")
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(path), "-c", "tokenizer/emoji.yaml", "--print_config"])
    assert capsys.readouterr().err == ""


def test_a_module_that_does_not_import_is_no_typo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_broken.py").write_text("import no_such_package_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_mine"):
        main([*EMOJI, "--model", "mine_broken.Module"])


def test_in_words() -> None:
    assert in_words(2, 0, Sampling(guidance=1.5)) == "2 images, seeds 0 and 1, guidance 1.5"
    assert in_words(1, 3, Sampling()) == "1 image, seed 3"
    assert in_words(9, 1, Sampling(top_k=5)) == "9 images, seeds 1 to 9, top-k 5"
