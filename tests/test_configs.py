"""Every file in configs/ parses, builds, and stands in the table of configs/README.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lgpl.commands.training import CommandLine
from lgpl.generator import GeneratorModule, Model
from lgpl.tokenizer import TokenizerModule
from tests.conftest import ROOT

CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yaml"))
# What a partial config is stacked on to make a whole.
BASES = {
    "data": "configs/tokenizer/vq_ds16.yaml",
    "size": "configs/generator/c2i.yaml",
    "quantizer": "configs/tokenizer/emoji.yaml",
    "trainer": "configs/generator/c2i.yaml",
    "variant": "configs/generator/c2i.yaml",
}
EVALUATED = {
    "cifar10.yaml": "configs/generator/cifar10.yaml",
    "emoji.yaml": "configs/generator/emoji_stage2.yaml",
    "reconstruction.yaml": "configs/tokenizer/cifar10.yaml",
}
ENCODED_BY = {
    "encode_emoji.yaml": "emoji.yaml",
    "encode_cifar10.yaml": "cifar10.yaml",
    "encode_imagenet.yaml": "vq_ds16.yaml",
    "encode_laion_coco.yaml": "vq_ds16.yaml",
    "encode.yaml": "tokenizer.yaml",
    "large_tokenizer.yaml": "tokenizer.yaml",
    "large_generator.yaml": "class.yaml",
}
# What the recipes for one's own data take from the data; tests/test_own.py has data.
SIZES = "--model.init_args.transformer.init_args"
FOLLOWED = [f"{SIZES}.codebook_size", "1024", f"{SIZES}.grid", "[8, 8]"]
OF_DATA = {
    "class.yaml": [*FOLLOWED, f"{SIZES}.condition.init_args.num_classes", "10"],
    "large_generator.yaml": [*FOLLOWED, f"{SIZES}.condition.init_args.num_classes", "10"],
    "text.yaml": FOLLOWED,
}


def stacked(config: Path) -> list[str]:
    kind = config.parent.name
    below = []
    if kind in BASES:
        below = [BASES[kind]]
    elif kind == "evaluation":
        below = [EVALUATED[config.name]]
    elif config.name in ENCODED_BY:
        below = [str(config.with_name(ENCODED_BY[config.name]))]
    return [arg for path in (*below, str(config)) for arg in ("-c", path)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_builds(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lgpl"])
    # Only the device is another: strategy, precision and the rest of the Trainer are its own.
    args = [*stacked(config), "--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    args += OF_DATA.get(config.name, []) if config.parent.name == "own" else []
    with torch.device("meta"):  # the largest model has billions of parameters
        cli = CommandLine(args, run=False)
    if isinstance(cli.model, GeneratorModule):
        model = cli.model._outline()
        assert isinstance(model, Model) and sum(p.numel() for p in model.parameters()) > 1e6
        if config.parent.name == "size":
            chosen = cli.config.model.init_args.transformer.init_args
            assert chosen.size == config.stem.upper()
    else:
        assert isinstance(cli.model, TokenizerModule)
        assert cli.model.autoencoder.layout(*cli.datamodule.image_size).codes


@pytest.mark.parametrize("base", ["emoji", "vq_ds16"])
@pytest.mark.parametrize("name", ["fsq", "bsq", "ibq", "rotation"])
def test_quantizer_takes_the_place_of_another(
    base: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No argument of the class before stays behind."""
    monkeypatch.setattr(sys, "argv", ["lgpl"])
    files = (f"tokenizer/{base}", f"tokenizer/quantizer/{name}", "trainer/cpu")
    args = [arg for file in files for arg in ("-c", f"configs/{file}.yaml")]
    with torch.device("meta"):
        cli = CommandLine([*args, "--trainer.logger", "false"], run=False)
    quantizer = cli.model.autoencoder.quantizer
    assert type(quantizer).__name__.lower() in (name, f"{name}quantizer", "vectorquantizer")
    assert getattr(quantizer, "gradient", name) == name
    assert quantizer.codebook_size == (16384 if (base, name) == ("vq_ds16", "rotation") else 1024)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_is_explained(config: Path) -> None:
    assert (ROOT / config).read_text().startswith("# ")
    index = (ROOT / "configs/README.md").read_text().partition("## Index")[2]
    assert f"| `{config}` |" in index, "add a line to the table"


@pytest.mark.parametrize("config", ["tokenizer/emoji.yaml", "generator/emoji_stage2.yaml"])
def test_print_config(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    from lgpl.cli import main

    with pytest.raises(SystemExit) as done:
        main(["fit", "-c", f"configs/{config}", "--print_config"])
    printed = capsys.readouterr().out
    assert done.value.code == 0 and "class_path: lgpl." in printed and "batch_size:" in printed
