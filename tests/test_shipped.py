"""Recipes and emoji come along, wherever one stands: in a clone, and in an installed wheel."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lgpl import shipped
from lgpl.cli import main
from lgpl.data import ShardDataModule
from lgpl.data.shards import expand
from tests.conftest import ROOT

TRAIN = "data/emoji/train-*.tar.gz"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the user in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["tokenizer/emoji.yaml", "configs/tokenizer/emoji.yaml"])
def test_a_recipe_is_named_from_anywhere(
    elsewhere: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (("-c", name), (f"--config={name}",)):
        with pytest.raises(SystemExit) as done:
            main(["fit", *option, "--print_config"])
        assert done.value.code == 0 and TRAIN in capsys.readouterr().out
    main(["plan", "-c", name])
    assert "activations" in capsys.readouterr().out


def test_a_file_of_ones_own_comes_first(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tokenizer").mkdir()
    own = (ROOT / "configs/tokenizer/emoji.yaml").read_text().replace("size: 16", "size: 17")
    Path("tokenizer/emoji.yaml").write_text(own)
    with pytest.raises(SystemExit):
        main(["fit", "-c", "tokenizer/emoji.yaml", "--print_config"])
    assert " batch_size: 17\n" in capsys.readouterr().out


def test_the_embedded_emoji_are_found_from_anywhere(elsewhere: Path) -> None:
    data = ShardDataModule(train=TRAIN, val="data/emoji/val-0000.tar.gz", image_size=64)
    data.setup("fit")
    assert len(next(iter(data.train_dataloader()))["key"]) == data.batch_size
    Path("data/emoji").mkdir(parents=True)
    Path("data/emoji/train-0000.tar.gz").touch()
    assert expand(TRAIN) == ["data/emoji/train-0000.tar.gz"]  # one's own


def test_recipes_are_listed_and_copied(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    there = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {Path(line.split()[0]) for line in lines} == there
    assert all(len(line) <= 140 and len(line.split()) > 2 for line in lines)
    main(["configs", "--copy", "mine"])
    assert {p.relative_to("mine") for p in Path("mine").rglob("*.yaml")} == there
    said = fails("configs", "--copy", "mine")
    assert said == "--copy: mine exists; name a new folder."


def test_a_name_that_is_nearly_right(elsewhere: Path, fails: Callable[..., str]) -> None:
    said = fails("fit", "-c", "tokenizer/emojis.yaml")
    assert said.startswith("-c tokenizer/emojis.yaml: no such file") and said.endswith(
        "did you mean tokenizer/emoji.yaml?"
    )
    assert "`lgpl configs` lists them" in fails("fit", "-c", "zzz.yaml")


@pytest.mark.network
def test_a_wheel_works_in_an_empty_folder(elsewhere: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", "dist", str(ROOT)], check=True)
    (wheel,) = Path("dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"lgpl/py.typed", "lgpl/serving/page/script.js"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "configs/", "data/"))]
    subprocess.run([*pip, "install", "--no-deps", "--target", "site", str(wheel)], check=True)
    env = {**os.environ, "PYTHONPATH": str(elsewhere / "site")}

    def lgpl(*args: str) -> str:
        command = [sys.executable, "-m", "lgpl", *args]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    assert str(elsewhere) in subprocess.run(
        [sys.executable, "-c", "import lgpl.shipped as s; print(s.ROOT)"],
        env=env, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert len(lgpl("configs").splitlines()) == len(list(shipped.configs()))
    lgpl(
        *("fit", "-c", "tokenizer/emoji.yaml", "-c", "trainer/cpu.yaml", "--trainer.max_steps"),
        *("2", "--trainer.limit_val_batches", "1"),
    )
    assert Path("runs/emoji/tokenizer/checkpoints/last.ckpt").is_file()
