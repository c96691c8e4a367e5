"""What the READMEs tell people to type is understood; the chain's tests run it, in small."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
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
    edit,
    evaluate,
    export,
    import_released,
    push,
    quickstart,
    reconstruct,
    sample,
    serve,
)
from lgpl.commands.training import CommandLine
from tests.conftest import ROOT
from tests.shards import count, image_bytes, samples, write_shard, write_shards

READMES = (
    "README.md",
    "configs/README.md",
    "data/README.md",
    "data/emoji/model/README.md",
    "lgpl/checkpoints/README.md",
    "lgpl/inference/README.md",
    "lgpl/metrics/README.md",
    "lgpl/serving/README.md",
    "tests/benchmarks/README.md",
)
PAGES = (*READMES, "CONTRIBUTING.md", ".github/SECURITY.md")
TEXTS = {name: (ROOT / name).read_text() for name in PAGES}
CONFIGS, DATA, SERVING = (TEXTS[f"{at}/README.md"] for at in ("configs", "data", "lgpl/serving"))
LONGEST = 200  # lines of the front page


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def commands(text: str) -> list[str]:
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(\S*/)?lgpl ", line)]


def tabled(text: str, heading: str) -> dict[str, list[str]]:
    """Of a section's table: what a row is about, in its first column, and the commands in it."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", section, re.MULTILINE)
    start = r"`(?:torchrun .*?-m lgpl\.cli|lgpl) (\w+ [^`]+)`"
    return {first: [f"lgpl {found}" for found in re.findall(start, rest)] for first, rest in rows}


def launched(text: str) -> list[tuple[str, str]]:
    """What starts many processes, and the command that it starts: torchrun's or srun's line."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ")
    started = r"^((?:srun|torchrun) .*?)(?:-m lgpl\.cli|lgpl) (.*?)&?$"
    return re.findall(started, lines, re.MULTILINE)


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Of images, too; not those to other hosts."""
    found = re.findall(
        r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"",
        re.sub(r"`[^`\n]*`", "", without_blocks(text)),
    )
    return [link for pair in found for link in pair if link and "://" not in link]


def anchors(text: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


LLAMAGEN = tabled(CONFIGS, "From LlamaGen to lgpl")
COMMANDS = dict.fromkeys(
    [
        *(
            command
            for name in READMES
            for command in (
                *commands(TEXTS[name]),
                *(f"lgpl {started}" for _, started in launched(TEXTS[name])),
            )
        ),
        *(command for row in LLAMAGEN.values() for command in row),
    ]
)


def test_every_readme_is_tested() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*README.md"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("no git, or no repository")
    assert set(tracked.stdout.split()) == set(READMES)


def test_the_front_page_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= LONGEST


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("README.md", 9),
        ("configs/README.md", 20),
        ("data/README.md", 7),
        ("lgpl/checkpoints/README.md", 10),
        ("lgpl/inference/README.md", 3),
        ("lgpl/metrics/README.md", 13),
        ("lgpl/serving/README.md", 3),
    ],
)
def test_commands_were_found(name: str, least: int) -> None:
    assert len(commands(TEXTS[name])) >= least


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *options = shlex.split(command)
    if name == "data":
        assert data.parser().parse_args(options).subcommand
    elif name == "sample":
        assert sample.parser().parse_args(options).checkpoint
    elif name == "edit":
        assert edit.parser().parse_args(options).checkpoint
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
    elif name == "push":
        assert push.parser().parse_args(options).repo
    elif name == "export":
        assert export.parser().parse_args(options).checkpoint
    elif name == "plan":
        main([name, *options])
        assert "activations" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit) as done:
            main([name, *options, "--print_config"])
        assert done.value.code == 0 and "class_path: lgpl." in capsys.readouterr().out


# What LlamaGen's GETTING_STARTED.md and READMEs tell people to run, and the scripts beside them.
SCRIPTS = {
    "scripts/tokenizer/": (
        *("train_vq.sh", "train_vq_finetune.sh", "train_vq_finetune_continue.sh", "val.sh"),
        *("reconstruction_vq.sh", "reconstruction_vqgan.sh", "reconstruction_vae.sh"),
        "reconstruction_consistency_decoder.sh",
    ),
    "scripts/autoregressive/": (
        *("extract_codes_c2i.sh", "train_c2i.sh", "train_c2i_fsdp.sh", "sample_c2i.sh"),
        *(
            "train_t2i_stage1.sh",
            "train_t2i_stage2.sh",
            "sample_t2i_coco.sh",
            "sample_t2i_parti.sh",
        ),
    ),
    "scripts/language/": (
        "extract_flan_t5_feat_laion_coco_stage1.sh",
        "extract_flan_t5_feat_stage2.sh",
    ),
    "autoregressive/sample/": ("sample_c2i.py", "sample_t2i.py"),
    "autoregressive/serve/": ("sample_c2i.py",),
    "evaluations/": ("c2i/evaluator.py", "t2i/evaluation.py"),
    "tokenizer/": (
        *("tokenizer_image/vq_demo.py", "vqgan/taming_vqgan_demo.py", "vae/sd_vae_demo.py"),
        "consistencydecoder/cd_demo.py",
    ),
    "tools/": (
        *("check_image_codes.py", "convert_pytorch_lightning_to_torch.py"),
        *("push_gpt_to_hf.py", "push_vae_to_hf.py"),
    ),
    "": ("app.py", "push_to_hf.py"),
}


@pytest.mark.parametrize(
    "script", [folder + name for folder in SCRIPTS for name in SCRIPTS[folder]]
)
def test_what_llamagen_runs_has_a_command(script: str) -> None:
    """Or the row says why there is nothing to do."""
    (row,) = [row for row in LLAMAGEN if re.search(rf"`{re.escape(script)}[` ]", row)]
    needless = re.search(rf"^\| .*`{re.escape(script)}.*? \| nothing: ", CONFIGS, re.MULTILINE)
    assert LLAMAGEN[row] or needless


def test_many_nodes_are_started_as_the_config_says() -> None:
    """Both launchers start the processes that `devices` and `num_nodes` count."""
    srun, torchrun = sorted(launched(CONFIGS))
    script = next(block for block in blocks(CONFIGS, "bash") if "#SBATCH" in block)
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


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_exist(name: str) -> None:
    text = TEXTS[name]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [*blocks(text, "bash"), *blocks(text, "sh"), *re.findall(r"`([^`\n]*)`", text)]
    assert set(re.findall(r"^make ([a-z-]+)", "\n".join(lines), re.MULTILINE)) <= targets


@pytest.mark.parametrize("name", PAGES)
def test_files_and_modules_exist(name: str) -> None:
    files = re.findall(r"(?:configs/[\w/]+\.yaml|data/recipes/\w+\.py)", TEXTS[name])
    assert [file for file in files if not (ROOT / file).exists()] == []
    modules = re.findall(r"python -m (tests\.[\w.]+\w)", TEXTS[name])
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in links(TEXTS[name]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        found = target.is_relative_to(ROOT) and target.exists()
        if not found or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


def test_what_counts_as_a_link_and_as_an_anchor() -> None:
    text = "## A `b`: c, d\n[x](y.md#z) ![i](j.png) `[k](l)`\n```bash\n# no\n[m](n)\n```\n"
    assert links(f'{text}<img src="p.png"> [q](https://r.s)') == ["y.md#z", "j.png", "p.png"]
    assert anchors(text) == {"a-b-c-d"}


@pytest.mark.parametrize("name", READMES)
def test_blocks_are_whole(name: str) -> None:
    """The chain's tests and those below run what needs no more than this machine."""
    for code in blocks(TEXTS[name], "python"):
        compile(code, name, "exec")
    for config in blocks(TEXTS[name], "yaml"):
        assert isinstance(yaml.safe_load(config), dict)


def write_images(folder: Path) -> None:
    """What the commands of data/README.md are about, in small."""
    for i in range(6):
        for place in ("train/n01440764", "train/n01443537", "val/n01440764"):
            path = folder / "ILSVRC2012" / place / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(i))
        (folder / "images").mkdir(exist_ok=True)
        (folder / f"images/{i}.jpg").write_bytes(image_bytes(i))
        (folder / f"images/{i}.txt").write_text(f"image {i}")
    rows = [f'{i}.jpg,"red, green, {i}"\n' for i in range(6)]
    (folder / "captions.csv").write_text("".join(["path,caption\n", *rows]))
    write_shards(folder / "data/laion_coco", [2, 3])


def test_the_commands_for_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
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
    write_images(tmp_path)
    (tmp_path / "data/own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "data/README.md", "exec"), {"__name__": "snippet"})
    assert count("data/own/train-0.tar") == 6
    write_shard(Path("data/own/train-0.tar"), samples(3))
    found: dict[str, Any] = {}
    exec(compile(reader, "data/README.md", "exec"), found)
    assert found["sample"]["__key__"] == "00002"
