"""What the READMEs tell people to type is understood; the chain's tests run it, in small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lgpl.cli import main
from lgpl.commands import export, import_released, quickstart, sample
from tests.conftest import ROOT
from tests.shards import count, picture

README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line.strip() for line in BLOCKS.splitlines() if re.match(r"\s*(\S*/)?lgpl ", line)]


def test_commands_were_found() -> None:
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *options = shlex.split(command)
    if name == "sample":
        assert sample.parser().parse_args(options).checkpoint
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


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(
            r"^make ([a-z-]+)",
            "\n".join([BLOCKS, *re.findall(r"`([^`\n]*)`", README)]),
            re.MULTILINE,
        )
    )
    assert named and named <= targets


def test_files_and_links_exist() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    configs = re.findall(r"configs/\w+/\w+\.yaml", README)
    assert links and all((ROOT / path).exists() for path in links + configs)


def test_the_snippet_for_ones_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "data/README.md").read_text(), re.DOTALL
    )
    (tmp_path / "pictures").mkdir()
    (tmp_path / "data/own").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"pictures/{i}.jpg").write_bytes(picture(i))
        (tmp_path / f"pictures/{i}.txt").write_text(f"picture {i}")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "data/README.md", "exec"), {"__name__": "snippet"})
    assert count("data/own/train-0000.tar") == 3
