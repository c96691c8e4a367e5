"""A sharded checkpoint of a stranger is read as data, by the commands and on resume."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.distributed import checkpoint as dcp

from lgpl.callbacks.ema import CURRENT, EMA
from lgpl.checkpoints import read_checkpoint
from lgpl.checkpoints.shards import read_into
from lgpl.errors import UserError
from lgpl.training import build_module
from tests.checkpoints.test_trust import GENERATOR
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


def test_an_index_changes_nothing_but_itself(folder: Path) -> None:
    """Attributes of an admitted class would be changed for the whole process."""
    sound = (folder / ".metadata").read_bytes()
    changes = b"\x80\x02cpathlib\nPosixPath\n(N}(X\x06\x00\x00\x00existsctorch\nSize\nutb0"
    (folder / ".metadata").write_bytes(changes + sound[2:])
    with pytest.raises(UserError, match="changes PosixPath, which is no part of it"):
        read_checkpoint(folder).weights()
    assert Path("/tmp").exists() is True


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr" + (2**28).to_bytes(4, "little") + b".",  # a place in the memo
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",  # a bytearray
        b"\x80\x04\x8e" + (2**33).to_bytes(8, "little") + b".",  # bytes
    ],
    ids=["memo", "bytearray", "bytes"],
)
def test_a_few_bytes_take_no_gigabytes(folder: Path, content: bytes) -> None:
    (folder / ".metadata").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="is a damaged checkpoint"):
        read_checkpoint(folder).weights()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


def test_code_among_the_numbers_is_not_run(folder: Path, tmp_path: Path) -> None:
    """torch reads whatever is no tensor by an unpickler of its own, unrestricted."""
    evil = {"optimizer_0": {"param_groups": [{"lr": Touch(tmp_path / "ran")}]}}
    shutil.rmtree(folder)
    dcp.save(evil, checkpoint_id=folder)
    with pytest.raises(UserError, match=r"param_groups.*holds pickled code"):
        read_into(folder, {"optimizer_0": {"param_groups": [{"lr": 0.5}]}})
    assert not (tmp_path / "ran").exists()


def test_code_in_the_place_of_an_average_is_not_run(tmp_path: Path) -> None:
    """The moving average is read by its callback, when a run is resumed."""
    folder, module = tmp_path / "last.ckpt", build_module(GENERATOR)
    module.configure_model()
    raw = {f"{CURRENT}.{name}": tensor for name, tensor in module.state_dict().items()}
    name = next(iter(raw))
    resumed: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), ckpt_path=str(folder))
    for value, is_code in ((raw[name] + 1, False), (Touch(tmp_path / "ran"), True)):
        dcp.save({"state_dict": raw | {name: value}}, checkpoint_id=folder)
        if is_code:
            with pytest.raises(UserError):
                EMA().on_load_checkpoint(resumed, module, {CURRENT: {}})
        else:
            EMA().on_load_checkpoint(resumed, module, {CURRENT: {}})
            assert torch.equal(module.state_dict()[name.removeprefix(f"{CURRENT}.")], value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "path", ["local:///etc", "file:///etc", "s3://theirs/all", "{run}/a/../../etc", "{run}/mine"]
)
def test_a_strangers_checkpoint_names_nothing_to_delete(tmp_path: Path, path: str) -> None:
    """ModelCheckpoint deletes the best so far, recursively, once there is a better one."""
    module, score = build_module(GENERATOR), torch.ones(())
    module.trainer = cast(
        Any,
        SimpleNamespace(
            state=SimpleNamespace(fn="fit"), ckpt_path=str(tmp_path / "downloads/x.ckpt")
        ),
    )
    path = path.format(run=tmp_path / "run")
    state = {"best_model_path": path, "last_model_path": path, "kth_best_model_path": path,
             "best_k_models": {path: score}}  # fmt: skip
    module.on_load_checkpoint({"lgpl": {"kind": "generator"}, "callbacks": {"any": state, "x": 1}})
    assert state == {"best_model_path": "", "last_model_path": "", "kth_best_model_path": "",
                     "best_k_models": {}}  # fmt: skip


def test_a_run_that_goes_on_knows_its_own_checkpoints(tmp_path: Path) -> None:
    module, own = build_module(GENERATOR), str(tmp_path / "run/best.ckpt")
    module.trainer = cast(
        Any,
        SimpleNamespace(state=SimpleNamespace(fn="fit"), ckpt_path=str(tmp_path / "run/last.ckpt")),
    )
    state = {"best_model_path": own, "best_k_models": {own: torch.ones(())}}
    module.on_load_checkpoint({"lgpl": {"kind": "generator"}, "callbacks": {"any": state}})
    assert state["best_model_path"] == own and own in state["best_k_models"]


def test_weights_that_are_not_there_are_not_made_up(folder: Path) -> None:
    """Memory that nobody has written would be exported."""
    sound = (folder / ".metadata").read_bytes()
    for change in ("gap", "claim"):
        index = pickle.loads(sound)
        entry = index.state_dict_metadata["state_dict.transformer.w"]
        if change == "gap":
            entry.chunks = []
        else:
            entry.size = torch.Size([10**9, 4])
            entry.chunks[0].sizes = entry.size
        (folder / ".metadata").write_bytes(pickle.dumps(index))
        with pytest.raises(UserError, match="is a damaged checkpoint"):
            read_checkpoint(folder).weights()


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
    assert "whose strategy is lgpl.training.ShardedStrategy" in said
    stock = folder.with_name("stock.yaml")
    stock.write_text(
        "trainer: {strategy: {class_path: lightning.pytorch.strategies.ModelParallelStrategy}}"
    )
    said = fails(*RESUME, *options, "-c", str(stock), "--ckpt_path", "last")  # whatever that is
    assert "cannot be read by ModelParallelStrategy" in said
