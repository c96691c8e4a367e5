"""`lgpl sample` into a folder: the same pictures whatever the ranks, and after a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lgpl.cli import main
from tests.conftest import ROOT
from tests.serving.generators import export_generator, export_tokenizer


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "generator", num_classes=3)
    return folder / "generator"


def draw(generator: Path, out: Path, *more: str) -> dict[str, bytes]:
    main(["sample", "--checkpoint", str(generator), "--balanced", "7", "--out", f"{out}/", *more])
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def test_ranks_and_a_stop_change_no_picture(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(generator, tmp_path / "one")
    assert sorted(whole) == [f"{i:06d}.png" for i in range(7)]
    assert len(set(whole.values())) == 7
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        found = draw(generator, tmp_path / "two", "--batch-size", "2")
    assert found == whole
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    kept = tmp_path / "two" / "000000.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "two" / "000003.png").unlink()
    assert draw(generator, tmp_path / "two") == whole
    assert kept.stat().st_mtime_ns == before


def test_a_killed_run_goes_on_with_what_is_missing(generator: Path, tmp_path: Path) -> None:
    whole, out = draw(generator, tmp_path / "whole"), tmp_path / "killed"
    command = [sys.executable, "-m", "lgpl.cli", "sample", "--checkpoint", str(generator)]
    command += ["--balanced", "7", "--batch-size", "1", "--out", f"{out}/"]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while running.poll() is None and not list(out.glob("*.png")):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 0 < len(kept) < 7
    assert draw(generator, out) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(out.glob("*.part"))


def test_another_setting_is_refused(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(generator, tmp_path / "a")
    with pytest.raises(SystemExit):
        draw(generator, tmp_path / "a", "--seed", "5")
    assert "another seed (0, not 5)" in capsys.readouterr().err
