"""Files and folders are whole or not there, whenever their writer is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lgpl.atomic import PartialFile, atomic_file, atomic_folder, remove_partials, write_text
from lgpl.checkpoints import write_checkpoint
from lgpl.errors import UserError
from lgpl.training import build_module
from tests.checkpoints.test_trust import GENERATOR
from tests.conftest import ROOT


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with atomic_file(path) as file:
            file.write(b"half of")
            file.flush()
            assert path.read_text() == "old"
            raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "old"
    write_text(path, "new ü")
    assert path.read_text("utf-8") == "new ü"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a"
    first, second = PartialFile(path), PartialFile(path)
    first.file.write(b"1" * 100)
    second.file.write(b"2")
    second.commit()
    assert path.read_bytes() == b"2"
    first.commit()
    assert path.read_bytes() == b"1" * 100


def test_nothing_is_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "a", "ours")  # the link itself is replaced
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "b.guessed.partial").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "b", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_folder(path) as partial:
            (partial / content).write_text(content)
    with pytest.raises(RuntimeError):
        with atomic_folder(path) as partial:
            (partial / "half").write_text("")
            raise RuntimeError
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["model", "model/new"]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    kept = ["a", "a.my.partial", "a.partial.txt", "ab.0123456789ab.partial"]
    for name in ("a.0123456789ab.partial", *kept):
        (tmp_path / name).write_text("")
    (tmp_path / "a.ba9876543210.partial").mkdir()
    (tmp_path / "a.ba9876543210.partial/half").write_text("")
    remove_partials(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == kept


@pytest.mark.parametrize("can_swap", [True, False])
def test_neighbours_of_a_folder_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool
) -> None:
    if not can_swap:
        monkeypatch.setattr("lgpl.atomic._swapped", lambda one, other: False)
    neighbours = ["model-old", "model.old", "model.my.partial", "model-old.ckpt"]
    for name in neighbours:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years")
    for step in (1, 2):
        weights = {"w": torch.full((1,), float(step))}
        write_checkpoint(tmp_path / "model", "generator", GENERATOR, weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*neighbours, "model"])
    assert all((tmp_path / name / "thesis.tex").exists() for name in neighbours)
    assert load_file(tmp_path / "model/model.safetensors")["w"] == 2


def test_a_folder_takes_no_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_text("days of training")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("last.ckpt", "link"):
        with pytest.raises(UserError, match="is no folder; name a new one"):
            write_checkpoint(tmp_path / name, "generator", GENERATOR, {"w": torch.zeros(1)})
    assert (tmp_path / "last.ckpt").read_text() == "days of training"


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"holds thesis\.tex; name a new folder"):
        write_checkpoint(tmp_path, "generator", GENERATOR, {"w": torch.zeros(1)})
    assert (tmp_path / "thesis.tex").read_text() == "years"


# Exports one source after the other in a process of its own, which the test kills.
EXPORTS = """
import os, sys
import lgpl.commands.export as export
import lgpl.checkpoints.released.llamagen  # before a process is killed in the midst of it
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
    while child == 0:
        for source in sys.argv[3:]:
            export.main([source, *sys.argv[1:3]])
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@pytest.mark.parametrize("form", ["lgpl", "llamagen"])
def test_a_killed_export_leaves_the_old_or_the_new(tmp_path: Path, form: str) -> None:
    """SIGKILL at random moments of the real command, which writes over an earlier export."""
    configs = [json.loads(json.dumps(GENERATOR)) for _ in range(2)]
    for config, dropout in zip(configs, (0.25, 0.5), strict=True):
        config["init_args"]["transformer"]["init_args"] |= {
            "dropout": dropout, "prefix_rope": "zero", "size": [2, 4, 512],
            "codebook_size": 4096,
        }  # fmt: skip
    sources = [made(tmp_path / f"{i}", config, i) for i, config in enumerate(configs)]
    out = tmp_path / ("model.pt" if form == "llamagen" else "model")
    command = [sys.executable, "-c", EXPORTS, f"--out={out}", f"--format={form}", *sources]
    rng, found = random.Random(0), set()
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        for _ in range(12):
            parent.stdin.write("begin\n")
            child = int(parent.stdout.readline())
            deadline = time.monotonic() + 60
            while not out.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.random() / 5)
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "dead\n"
            found.add(whole(out, form))
    assert found <= {0, 1}
    lefts = [p for p in tmp_path.iterdir() if p.name.startswith("model") and p != out]
    assert len(lefts) <= 2  # of the last one, not of six


def made(folder: Path, config: dict[str, Any], value: int) -> str:
    """A checkpoint whose every weight is `value`, as its config says by its dropout."""
    module = build_module(config)
    module.configure_model()
    weights = module.transformer.state_dict()
    write_checkpoint(folder, "generator", config, {n: t * 0 + value for n, t in weights.items()})
    return str(folder)


def whole(out: Path, form: str) -> int:
    """Which of both stands there; one that is torn is neither."""
    if form == "llamagen":
        weights = torch.load(out, weights_only=True)["model"]
    else:
        weights = load_file(out / "model.safetensors")
        config = json.loads((out / "config.json").read_text())["config"]
    values = {float(tensor.max()) for tensor in weights.values() if tensor.numel()}
    (value,) = values
    if form == "lgpl":
        dropout = config["init_args"]["transformer"]["init_args"]["dropout"]
        assert dropout == (0.25, 0.5)[int(value)]
    return int(value)
