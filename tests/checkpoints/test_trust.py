"""A checkpoint of a stranger builds lgpl's own models and runs nothing; others need a word."""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse._common import get_parsing_setting
from torch import nn

import lgpl
from lgpl.checkpoints import write_checkpoint
from lgpl.cli import main
from lgpl.errors import UserError
from lgpl.tokenizer import TokenizerModule
from lgpl.training import build_module, load_module
from tests.conftest import CONDITION, TINY, TINY_GENERATOR, TINY_TOKENIZER
from tests.shards import samples, write_shard

Config = dict[str, Any]
Fails = Callable[..., str]
TOKENIZER: Config = {
    "class_path": "lgpl.tokenizer.TokenizerModule",
    "init_args": {
        "autoencoder": {
            "class_path": "lgpl.tokenizer.VQModel",
            "init_args": {
                "quantizer": {
                    "class_path": "lgpl.tokenizer.VectorQuantizer",
                    "init_args": {"codebook_size": 16, "dim": 4},
                },
                "multipliers": [1, 1, 1],
                "width": 32,
                "z_channels": 32,
            },
        },
        "loss": {
            "class_path": "lgpl.tokenizer.TokenizerLoss",
            "init_args": {"perceptual": None, "discriminator": None},
        },
    },
}
GENERATOR: Config = {
    "class_path": "lgpl.generator.GeneratorModule",
    "init_args": {
        "transformer": {
            "class_path": "lgpl.generator.Transformer",
            "init_args": {
                "size": [1, 2, 32],
                "codebook_size": 16,
                "grid": [4, 4],
                "condition": {
                    "class_path": "lgpl.generator.ClassCondition",
                    "init_args": {"num_classes": 3},
                },
            },
        },
        "tokenizer": None,
    },
}
LOSS = "init_args.loss.init_args.discriminator"
AUTOENCODER = "init_args.autoencoder"
TRANSFORMER = "init_args.transformer"
CONDITIONED = f"{TRANSFORMER}.init_args.condition"
TEXT: Config = {"class_path": "lgpl.generator.TextCondition", "init_args": {"features": 8}}
ENCODER = "init_args.encoder"
SEVERAL: Config = {"class_path": "lgpl.generator.Conditions", "init_args": {}}


class Silent(nn.Module):
    """A discriminator of another package, which takes anything."""

    def __init__(self, more: Any = None) -> None:
        super().__init__()
        self.more = more


def put(config: Config, key: str, value: Any) -> Config:
    """A copy of a config with another value at a key."""
    config = copy.deepcopy(config)
    inner = config
    *parents, last = key.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return config


def saved(folder: Path, kind: str, config: Any, form: str = "folder") -> str:
    """A checkpoint of a stranger: weights that fit, and a config of any kind."""
    module = build_module(TOKENIZER if kind == "tokenizer" else GENERATOR)
    module.configure_model()
    part = "autoencoder" if kind == "tokenizer" else "transformer"
    weights = getattr(module, part).state_dict()
    path = folder / f"{kind}-{form}"
    folder.mkdir(exist_ok=True)
    if form == "folder":
        write_checkpoint(path, kind, config, weights)
        return str(path)
    entry = {"kind": kind, "config": config}
    state = {f"{part}.{name}": tensor for name, tensor in weights.items()}
    if form == "file":
        path = path.with_suffix(".ckpt")
        torch.save({"lgpl": entry, "state_dict": state}, path)
    else:  # of a sharded run
        from torch.distributed import checkpoint as dcp

        dcp.save({"state_dict": state}, checkpoint_id=path)
        torch.save({"lgpl": entry}, path / "meta.pt")
    return str(path)


def popen(marker: Path, path: str = "subprocess.Popen") -> Config:
    return {"class_path": path, "init_args": {"args": ["touch", str(marker)]}}


def attacks(marker: Path) -> dict[str, tuple[str, Any]]:
    """Kind of module and config of many ways to have a command run."""
    command = popen(marker)
    reexported = popen(marker, "lgpl.data.store.subprocess.Popen")
    nested = {"class_path": "torch.nn.ParameterList", "init_args": {"values": [command]}}
    inside = {"class_path": "lgpl.tokenizer.module.nn.ParameterList"}
    load = {"path": "x", "kind": "tokenizer", "trust": ["subprocess"]}
    return {
        "nested": ("tokenizer", put(TOKENIZER, LOSS, nested)),
        "bare": ("tokenizer", command),
        "bare generator": ("generator", command),
        "re-exported": ("tokenizer", reexported),
        "re-exported in a room of models": (
            "tokenizer",
            put(TOKENIZER, LOSS, inside | {"init_args": {"values": [command]}}),
        ),
        "discriminator": ("tokenizer", put(TOKENIZER, LOSS, command)),
        "string": ("tokenizer", put(TOKENIZER, AUTOENCODER, json.dumps(command))),
        "name": ("tokenizer", put(TOKENIZER, AUTOENCODER, "subprocess.Popen")),
        "callable": ("generator", put(GENERATOR, TRANSFORMER, command)),
        "callable name": ("generator", put(GENERATOR, TRANSFORMER, "os.abort")),
        "condition": ("generator", put(GENERATOR, CONDITIONED, command)),
        "condition name": ("generator", put(GENERATOR, CONDITIONED, "os.abort")),
        "one of several conditions": (
            "generator",
            put(GENERATOR, CONDITIONED, put(SEVERAL, "init_args.parts", [TEXT, command])),
        ),
        "callable re-exported": ("generator", put(GENERATOR, TRANSFORMER, "lgpl.cli.main")),
        "loader": ("tokenizer", {"class_path": "lgpl.checkpoints.load_module", "init_args": load}),
        "text encoder": ("generator", put(GENERATOR, CONDITIONED, put(TEXT, ENCODER, command))),
        "unknown keys": (
            "tokenizer",
            put(TOKENIZER, f"{AUTOENCODER}.dict_kwargs", {"more": command}),
        ),
        "number": ("tokenizer", put(TOKENIZER, "init_args.lr", command)),
        "short name": ("tokenizer", put(TOKENIZER, LOSS, {"class_path": "ParameterList"})),
        "import alone": ("tokenizer", put(TOKENIZER, LOSS, {"class_path": "antigravity.geohash"})),
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_no_config_runs_anything(tmp_path: Path, attack: str) -> None:
    marker = tmp_path / "ran"
    kind, config = attacks(marker)[attack]
    before = set(sys.modules)
    with pytest.raises(UserError) as told:
        load_module(saved(tmp_path, kind, config), kind)
    assert not marker.exists()
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)
    assert "antigravity" not in set(sys.modules) - before


FUNCTIONS = {
    "generate": {"class_path": "lgpl.generator.decoders.generate", "init_args": {"codes": []}},
    "compiled": {
        "class_path": "lgpl.generator.decoders.raster.CompiledStep",
        "dict_kwargs": {"options": {}},
    },
    "file": {"class_path": "lgpl.tokenizer.perceptual._from_package",
             "init_args": {"path": "/etc/passwd"}},
    "model": {"class_path": "lgpl.text.pretrained.load_pretrained", "init_args": {"source": "x"}},
    "method": {"class_path": "lgpl.generator.Transformer.step"},
    "rotary": {"class_path": "lgpl.generator.blocks.rotary_table"},
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_not_called(tmp_path: Path, function: str) -> None:
    """Where a callable is wanted, jsonargparse would call any, with what the file says."""
    for value in (FUNCTIONS[function], FUNCTIONS[function]["class_path"]):
        path = saved(tmp_path, "generator", put(GENERATOR, TRANSFORMER, value))
        with pytest.raises(UserError, match=r"names|cannot be built"):
            load_module(path)


@pytest.mark.parametrize("name", ["lgpl", "lgpl.commands", "lgpl.metrics.extractors"])
def test_lgpl_itself_gets_no_trust(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="lgpl's own models need no word"):
        load_module(saved(tmp_path, "generator", GENERATOR), trust=[name])


def test_nobody_is_told_to_trust_what_is_everybodys(tmp_path: Path) -> None:
    for named in ("torch.nn.Identity", "lightning.pytorch.LightningModule"):
        path = saved(tmp_path, "tokenizer", put(TOKENIZER, LOSS, {"class_path": named}))
        with pytest.raises(UserError, match="names") as told:
            load_module(path)
        assert "--trust" not in str(told.value)


def grown(levels: int) -> list[Any]:
    """A list of 2**levels, of which each half is the same."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
YAML = "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}1]" for i in range(30)).replace("*a-1, ", "")


def test_no_file_of_this_machine_is_read_for_names(tmp_path: Path) -> None:
    (tmp_path / "secrets.txt").write_text("one\ntwo\nthree\n")
    condition = {"class_path": "lgpl.generator.ClassCondition",
                 "init_args": {"names": str(tmp_path / "secrets.txt")}}  # fmt: skip
    path = saved(
        tmp_path, "generator", put(GENERATOR, f"{TRANSFORMER}.init_args.condition", condition)
    )
    with pytest.raises(UserError, match=r"takes names from .*secrets\.txt"):
        load_module(path)


GROWING = {  # by name: a test that fails would print the value itself
    "doubled": grown(40),
    "endless": ENDLESS,
    "long": "x" * 10**6,
    "yaml": YAML,
    "yaml in a dict": {"a": YAML},
}


@pytest.mark.parametrize("kind", GROWING)
def test_a_config_that_grows_without_end(tmp_path: Path, kind: str) -> None:
    path, value = tmp_path / "a.ckpt", GROWING[kind]
    for key in ("init_args.lr", AUTOENCODER):
        entry = {"kind": "tokenizer", "config": put(TOKENIZER, key, value)}
        torch.save({"lgpl": entry, "state_dict": {}}, path)
        with pytest.raises(UserError, match="config"):
            load_module(path)


@pytest.mark.parametrize("state", [None, [1], {1: torch.ones(1)}, {"transformer.a": 3}])
@pytest.mark.parametrize("kind", ["generator", ["generator"], {}])
def test_what_is_no_state_is_told(tmp_path: Path, fails: Fails, state: Any, kind: Any) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"lgpl": {"kind": kind, "config": GENERATOR}, "state_dict": state}, path)
    assert fails("export", str(path), "--out", str(tmp_path / "out"))
    assert fails("export", str(path), "--format", "llamagen", "--out", str(tmp_path / "o.pt"))


@pytest.mark.parametrize("form", ["folder", "file", "shards"])
def test_every_form_of_a_checkpoint_is_held_back(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "ran"
    nested = {"class_path": "torch.nn.ParameterList", "init_args": {"values": [popen(marker)]}}
    path = saved(tmp_path, "tokenizer", put(TOKENIZER, LOSS, nested), form)
    with pytest.raises(UserError, match=r"names (torch.nn.ParameterList|subprocess.Popen)"):
        load_module(path, "tokenizer")
    assert not marker.exists()
    sound = saved(tmp_path / "sound", "tokenizer", TOKENIZER, form)
    assert load_module(sound, "tokenizer").kind == "tokenizer"


def test_no_config_reads_further_files(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text(json.dumps(TOKENIZER["init_args"]["autoencoder"]))
    config = put(TOKENIZER, AUTOENCODER, str(tmp_path / "part.yaml"))
    with pytest.raises(UserError, match="cannot be built"):
        load_module(saved(tmp_path, "tokenizer", config))


@pytest.mark.parametrize("config", ["os.system", ["a"], 7, {}, {"class_path": 3}, {"a": {}}, None])
def test_what_is_no_config_is_told_in_a_sentence(tmp_path: Path, config: Any) -> None:
    with pytest.raises(UserError) as told:
        load_module(saved(tmp_path, "generator", config), "generator")
    assert "\n" not in str(told.value)


def test_a_module_of_another_kind_is_not_built(tmp_path: Path) -> None:
    path = saved(tmp_path, "generator", TOKENIZER)
    with pytest.raises(UserError, match=r"names lgpl.tokenizer.*TokenizerModule, which is no gen"):
        load_module(path, "generator")


SMALL = [  # the sizes of GENERATOR
    *("-c", "configs/generator/cifar10.yaml", *TINY, "--model.init_args.tokenizer", "null"),
    *("--model.init_args.transformer.init_args.size", "[1, 2, 32]"),
    *("--model.init_args.transformer.init_args.codebook_size", "16"),
    *("--model.init_args.transformer.init_args.grid", "[4, 4]"),
    *(f"{CONDITION}.num_classes", "3"),
]
COMMANDS: dict[str, tuple[str, Callable[[str, str, Path], list[str]]]] = {
    "sample": (
        "generator",
        lambda evil, _, out: [
            "sample",
            "--checkpoint",
            evil,
            "--label",
            "1",
            "--out",
            f"{out}.png",
        ],
    ),
    "sample's tokenizer": (
        "tokenizer",
        lambda evil, sound, out: [
            *("sample", "--checkpoint", sound, "--tokenizer", evil),
            *("--label", "1", "--out", f"{out}.png"),
        ],
    ),
    "complete": (
        "generator",
        lambda evil, _, out: [
            *("complete", ".github/page-light.png", f"{out}.png"),
            *("--checkpoint", evil, "--label", "1"),
        ],
    ),
    "serve": ("generator", lambda evil, _, out: ["serve", "--checkpoint", evil, "--port", "0"]),
    "reconstruct": (
        "tokenizer",
        lambda evil, _, out: [
            "reconstruct",
            ".github/page-light.png",
            f"{out}.png",
            "--checkpoint",
            evil,
        ],
    ),
    "export": (
        "generator",
        lambda evil, _, out: ["export", evil, "--format", "llamagen", "--out", f"{out}.pt"],
    ),
    "evaluate generation": (
        "generator",
        lambda evil, _, out: [
            *("evaluate", "generation", "--checkpoint", evil, "--reference", "data/emoji"),
            *("--extractor", "effnet-lite0", "--images", "2", "--out", f"{out}.json"),
        ],
    ),
    "evaluate reconstruction": (
        "tokenizer",
        lambda evil, _, out: [
            *("evaluate", "reconstruction", "--checkpoint", evil, "--data", "data/emoji/val-*"),
            *("--image-size", "16", "--extractor", "effnet-lite0", "--out", f"{out}.json"),
        ],
    ),
    "fit from it": (
        "tokenizer",
        lambda evil, _, out: [
            *("fit", "-c", "configs/generator/emoji_stage1.yaml", *TINY, *TINY_GENERATOR),
            *("--data.train", f"{out}.tar", "--data.val", f"{out}.tar"),
            *("--model.init_args.tokenizer", evil, "--trainer.logger", "false"),
        ],
    ),
    "validate": (
        "generator",
        lambda evil, _, out: [
            *("validate", *SMALL, "--data.val", f"{out}.tar"),
            *("--trainer.logger", "false", "--ckpt_path", evil),
        ],
    ),
    "init_from": (
        "generator",
        lambda evil, _, out: [
            *("fit", *SMALL, "--data.train", f"{out}.tar", "--data.val", f"{out}.tar"),
            *("--trainer.logger", "false", "--model.init_args.init_from", evil),
        ],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_holds_it_back(tmp_path: Path, fails: Fails, command: str) -> None:
    kind, line = COMMANDS[command]
    marker, out = tmp_path / "ran", tmp_path / "out"
    write_shard(Path(f"{out}.tar"), samples(4))
    config = put(TOKENIZER, LOSS, popen(marker))
    if kind == "generator":
        config = put(GENERATOR, CONDITIONED, put(TEXT, ENCODER, popen(marker)))
    sound = saved(tmp_path / "sound", "generator", GENERATOR)
    said = fails(*line(saved(tmp_path, kind, config), sound, out))
    assert "names subprocess.Popen, and a checkpoint's config builds nothing but" in said
    assert not marker.exists()


def test_hyperparameters_of_a_checkpoint_enter_no_config(tmp_path: Path, fails: Fails) -> None:
    """Lightning would build the class that stands there in place of the config's."""
    marker = tmp_path / "ran"
    evil = Path(saved(tmp_path, "tokenizer", TOKENIZER, "file"))
    content = torch.load(evil, weights_only=True)
    named = {"_class_path": "subprocess.Popen", "args": ["touch", str(marker)]}
    torch.save(content | {"hyper_parameters": named, "pytorch-lightning_version": "2.6.6"}, evil)
    said = fails(
        *("validate", "-c", "configs/tokenizer/emoji.yaml", *TINY, *TINY_TOKENIZER),
        *("--trainer.logger", "false", "--ckpt_path", str(evil)),
    )
    assert "subprocess" not in said and not marker.exists()  # its sizes are others, that is all


def test_packages_are_trusted_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    own = {"class_path": f"{__name__}.Silent"}
    path = saved(tmp_path, "tokenizer", put(TOKENIZER, LOSS, own))
    with pytest.raises(UserError, match="give --trust tests, LGPL_TRUST=tests or trust"):
        load_module(path)
    for granted in (["tests"], [__name__], ["other", "tests.checkpoints"]):
        opened = lgpl.load(path, trust=granted).module
        assert isinstance(opened, TokenizerModule)
        assert isinstance(opened.loss.discriminator, Silent)
    image = str(tmp_path / "two.png")
    line = ["reconstruct", ".github/page-light.png", image, "--checkpoint", path,
            "--image-size", "64", "--lpips", "none"]  # fmt: skip
    assert "--trust tests" in fails(*line)
    main([*line, "--trust", "other", "--trust", "tests"])
    assert Path(image).exists()
    monkeypatch.setenv("LGPL_TRUST", "other, tests")
    main(line)
    monkeypatch.setenv("LGPL_TRUST", "")
    assert "--trust tests" in fails(*line)


@pytest.mark.parametrize("word", ["*", "jsonargparse", "a b", "", "../tests"])
def test_only_names_of_packages_can_be_trusted(tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match="--trust"):
        load_module(saved(tmp_path, "generator", GENERATOR), trust=[word])


def test_a_trusted_class_does_not_extend_its_trust(tmp_path: Path) -> None:
    """Not to what it takes as `Any` either."""
    marker = tmp_path / "ran"
    own = {"class_path": f"{__name__}.Silent", "init_args": {"more": popen(marker)}}
    path = saved(tmp_path, "tokenizer", put(TOKENIZER, LOSS, own))
    with pytest.raises(UserError, match=r"names subprocess\.Popen"):
        lgpl.load(path, trust=["tests"])
    assert not marker.exists()


def test_settings_are_given_back(tmp_path: Path) -> None:
    """A training's config may name any class afterwards, whatever threads load meanwhile."""
    names = ("import_path_verdicts", "import_paths_enforced", "instantiate_subclass_spec_in_any")
    before = {name: copy.copy(get_parsing_setting(name)) for name in names}
    sound = saved(tmp_path, "generator", GENERATOR)
    evil = saved(tmp_path / "evil", "generator", popen(tmp_path / "ran"))

    def load() -> None:
        for path in (sound, evil) * 3:
            try:
                load_module(path)
            except UserError:
                assert path == evil

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not (tmp_path / "ran").exists()
    assert {name: get_parsing_setting(name) for name in names} == before
