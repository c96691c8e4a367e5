"""What the READMEs tell people to type is understood; the chain's tests run it, in small."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from lgpl.cli import main
from lgpl.commands import (
    compare,
    complete,
    data,
    evaluate,
    export,
    import_released,
    quickstart,
    reconstruct,
    sample,
    serve,
)
from lgpl.commands.training import CommandLine
from tests.conftest import ROOT
from tests.shards import count, picture, samples, write_shard, write_shards

README, DATA = ((ROOT / name).read_text() for name in ("README.md", "data/README.md"))


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def commands(text: str) -> list[str]:
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(\S*/)?lgpl ", line)]


def launched(text: str) -> list[tuple[str, str]]:
    """What starts many processes, and the command that it starts: torchrun's or srun's line."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ")
    started = r"^((?:srun|torchrun) .*?)(?:-m lgpl\.cli|lgpl) (.*?)&?$"
    return re.findall(started, lines, re.MULTILINE)


LAUNCHED = launched(README)
COMMANDS = dict.fromkeys(
    [*commands(README), *commands(DATA), *(f"lgpl {command}" for _, command in LAUNCHED)]
)


def test_commands_were_found() -> None:
    assert len(commands(README)) > 12 and len(commands(DATA)) > 6


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *options = shlex.split(command)
    if name == "data":
        assert data.parser().parse_args(options).subcommand
    elif name == "sample":
        assert sample.parser().parse_args(options).checkpoint
    elif name == "complete":
        assert complete.parser().parse_args(options).checkpoint
    elif name == "reconstruct":
        assert reconstruct.parser().parse_args(options).checkpoint
    elif name == "evaluate":
        assert evaluate.parser().parse_args(options).subcommand
    elif name == "compare":
        assert compare.parser().parse_args(options).runs
    elif name == "serve":
        assert serve.parser().parse_args(options).checkpoint
    elif name == "quickstart":
        assert quickstart.parser().parse_args(options).out
    elif name == "import":
        assert import_released.parser().parse_args(options).file
    elif name == "export":
        assert export.parser().parse_args(options).checkpoint
    elif name == "plan":
        main([name, *options])
        assert "activations" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit) as done:
            main([name, *options, "--print_config"])
        assert done.value.code == 0 and "class_path: lgpl." in capsys.readouterr().out


def test_many_nodes_are_started_as_the_config_says() -> None:
    """Both launchers start the processes that `devices` and `num_nodes` count."""
    srun, torchrun = sorted(line for line in LAUNCHED if "configs/trainer" in line[1])
    script = next(block for block in blocks(README, "bash") if "#SBATCH" in block)
    batch = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", script, re.MULTILINE))
    options = get_args_parser().parse_args([*shlex.split(torchrun[0])[1:], "-m", "lgpl.cli"])
    counts = [
        (int(batch["nodes"]), int(batch["ntasks-per-node"]), srun[1]),
        (int(options.nnodes), int(options.nproc_per_node), torchrun[1]),
    ]
    for nodes, processes, command in counts:
        config = re.findall(r"configs/trainer/\S+", command)[0]
        trainer = yaml.safe_load((ROOT / config).read_text())["trainer"]
        assert (trainer["num_nodes"], trainer["devices"]) == (nodes, processes)
        shards = trainer["strategy"]["init_args"].get("data_parallel_size", nodes * processes)
        assert shards == nodes * processes


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(
            r"^make ([a-z-]+)",
            "\n".join([*blocks(README, "bash"), *re.findall(r"`([^`\n]*)`", README)]),
            re.MULTILINE,
        )
    )
    assert named and named <= targets


@pytest.mark.parametrize("folder", [".", "data"])
def test_files_and_links_exist(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    links = [ROOT / folder / link for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text)]
    named = re.findall(r"(?:configs/\w+/\w+\.yaml|data/recipes/\w+\.py)", text)
    assert named and all(path.exists() for path in [*links, *(ROOT / name for name in named)])


def write_pictures(folder: Path) -> None:
    """What the commands of data/README.md are about, in small."""
    for i in range(6):
        for place in ("train/n01440764", "train/n01443537", "val/n01440764"):
            path = folder / "ILSVRC2012" / place / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i))
        (folder / "pictures").mkdir(exist_ok=True)
        (folder / f"pictures/{i}.jpg").write_bytes(picture(i))
        (folder / f"pictures/{i}.txt").write_text(f"picture {i}")
    rows = [f'{i}.jpg,"red, green, {i}"\n' for i in range(6)]
    (folder / "captions.csv").write_text("".join(["path,caption\n", *rows]))
    write_shards(folder / "data/laion_coco", [2, 3])


def test_the_commands_for_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(DATA):
        main(shlex.split(command)[1:])
    assert count("data/own/train-0.tar") == count("data/captioned/train-0.tar") == 5
    assert (count("data/imagenet/train-0.tar"), count("data/imagenet/val-0.tar")) == (12, 6)
    assert Path("data/laion_coco/all.json").is_file() and Path("sheet.png").is_file()


@pytest.mark.parametrize("block", blocks(DATA, "yaml"))
def test_the_configs_for_shards(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(block)
    monkeypatch.setattr(sys, "argv", ["lgpl"])
    stacked = ["-c", "configs/tokenizer/emoji.yaml", "-c", str(config)]
    module = CommandLine([*stacked, "--trainer.logger", "false"], run=False).datamodule
    assert module.patterns["train"] == yaml.safe_load(block)["data"]["train"]


def test_the_snippet_for_any_other_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, snippet = blocks(DATA, "python")
    write_pictures(tmp_path)
    (tmp_path / "data/own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "data/README.md", "exec"), {"__name__": "snippet"})
    assert count("data/own/train-0.tar") == 6
    write_shard(Path("data/own/train-0.tar"), samples(3))
    found: dict[str, Any] = {}
    exec(compile(reader, "data/README.md", "exec"), found)
    assert found["sample"]["__key__"] == "00002"
