"""A sharded checkpoint of a stranger is read as data, by the commands and on resume."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from lgpl.checkpoints import read_checkpoint
from lgpl.checkpoints.shards import read_into
from lgpl.errors import UserError
from tests.conftest import ROOT, TINY

Fails = Callable[..., str]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as FSDP2 leaves it: weights, an optimizer with numbers, lgpl's own entry."""
    path = tmp_path / "last.ckpt"
    optimizer = {"state": {"w": {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1, "x": None}]}
    state = {"state_dict": {"transformer.w": torch.arange(6.0).view(2, 3)}}
    dcp.save({**state, "optimizer_0": optimizer}, checkpoint_id=path)
    torch.save({"lgpl": {"kind": "generator", "config": None}}, path / "meta.pt")
    return path


def test_weights_and_numbers_are_read(folder: Path) -> None:
    weights = read_checkpoint(folder).weights()
    assert torch.equal(weights["w"], torch.arange(6.0).view(2, 3))
    state = {"optimizer_0": {"state": {"w": {"step": torch.zeros(())}},
                             "param_groups": [{"lr": 7.0, "x": 1}]}}  # fmt: skip
    read_into(folder, state)
    assert state["optimizer_0"]["param_groups"] == [{"lr": 0.1, "x": None}]
    assert float(state["optimizer_0"]["state"]["w"]["step"]) == 1


def test_code_in_the_index_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    for read in (read_checkpoint(folder).weights, lambda: read_into(folder, {"state_dict": {}})):
        with pytest.raises(UserError, match=r"holds pickled code \(posix.mkdir\)"):
            read()
    assert not (tmp_path / "ran").exists()


def test_code_among_the_numbers_is_not_run(folder: Path, tmp_path: Path) -> None:
    """torch reads whatever is no tensor by an unpickler of its own, unrestricted."""
    evil = {"optimizer_0": {"param_groups": [{"lr": Touch(tmp_path / "ran")}]}}
    shutil.rmtree(folder)
    dcp.save(evil, checkpoint_id=folder)
    with pytest.raises(UserError, match=r"param_groups.*holds pickled code"):
        read_into(folder, {"optimizer_0": {"param_groups": [{"lr": 0.5}]}})
    assert not (tmp_path / "ran").exists()


def test_an_index_names_files_of_its_own_folder_alone(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "__0_0.distcp", tmp_path / "__0_0.distcp")
    index = pickle.loads((folder / ".metadata").read_bytes())
    for stored in index.storage_data.values():
        stored.relative_path = "../__0_0.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(UserError, match="no file of its own folder"):
        read_checkpoint(folder).weights()


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_damage_is_told_in_a_sentence(folder: Path, damage: str) -> None:
    shard = folder / "__0_0.distcp"
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:100] if damage == "cut" else b"")
    with pytest.raises(UserError, match="is a damaged checkpoint"):
        read_checkpoint(folder).weights()


RESUME = ["fit", "-c", "configs/generator/cifar10.yaml", *TINY, "--trainer.logger", "false",
          "--model.init_args.tokenizer", "null"]  # fmt: skip


def test_resuming_runs_nothing(folder: Path, tmp_path: Path) -> None:
    """The whole command, with the strategy that reads such a folder."""
    (folder / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    shards = f"{ROOT}/data/emoji/val-*.tar.gz"
    transformer = "--model.init_args.transformer.init_args"
    command = [
        *(*RESUME, "-c", "configs/trainer/fsdp.yaml", "--trainer.accelerator", "cpu"),
        *("--trainer.devices", "1", "--trainer.strategy.init_args.data_parallel_size", "1"),
        *("--data.train", shards, "--data.val", shards, "--ckpt_path", str(folder)),
        *(f"{transformer}.size", "[1, 2, 32]", "--trainer.limit_val_batches", "0"),
        *("--model.init_args.muon_lr", "null"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lgpl.cli", *command], cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "holds pickled code (posix.mkdir), which is never run here." in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "ran").exists()


def test_other_strategies_do_not_read_such_a_folder(folder: Path, fails: Fails) -> None:
    shards = "data/emoji/val-*.tar.gz"
    options = ["--data.train", shards, "--data.val", shards, "--trainer.accelerator", "cpu"]
    said = fails(*RESUME, *options, "--ckpt_path", str(folder))
    assert "only lgpl.checkpoints.ShardedStrategy reads one" in said
