"""`lgpl compare`: configs that differ, last metrics and curves, of real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lgpl.cli import main
from lgpl.commands.compare import flatten, read_curves, short_names
from tests.callbacks.test_evaluation import short, stacked, tokenizer


@pytest.mark.slow
def test_two_runs_with_different_loggers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    csv = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    csv += ["--trainer.logger.init_args.save_dir", str(tmp_path / "low")]
    csv += ["--trainer.logger.init_args.name", "tokenizer"]
    csv += ["--trainer.logger.init_args.version", ""]
    for name, lr, logger in (("high", "1e-3", []), ("low", "1e-4", csv)):
        main(["fit", *tokenizer(*stacked(tmp_path, name)), *short("--model.init_args.lr", lr),
              *logger])  # fmt: skip
    runs = [str(tmp_path / name / "tokenizer") for name in ("high", "low")]
    capsys.readouterr()
    image = tmp_path / "compare.png"
    main(["compare", *runs, "--out", str(image)])
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert lines["config"] == ["high", "low"] and lines["model.init_args.lr"] == ["0.001", "0.0001"]
    assert "model.init_args.betas" not in lines and "data.batch_size" not in lines
    (value, _, step) = lines["val/psnr"][:3]
    (step_of, last) = max(read_curves(Path(runs[0]))["val/psnr"])
    assert float(value) == pytest.approx(last, abs=1e-4) and int(step) == step_of == 5
    assert set(read_curves(Path(runs[1]))) >= {"val/psnr", "train/loss"}
    assert Image.open(image).width > 500

    assert "no run has metrics named val/none; there are" in fails(
        "compare", *runs, "--metrics", "val/none"
    )
    assert "holds no metrics" in fails("compare", runs[0], str(tmp_path))


def test_values_have_keys_that_do_not_depend_on_their_place() -> None:
    config = {"a": {"b": 1}, "callbacks": [{"class_path": "x.EMA", "init_args": {"decay": 0.9}}]}
    found = flatten({**config, "betas": [0.9, 0.95]})
    assert found["callbacks[EMA].init_args.decay"] == "0.9" and found["a.b"] == "1"
    assert found["betas"] == "[0.9, 0.95]"


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    paths = [tmp_path / "a/tokenizer", tmp_path / "b/tokenizer"]
    assert short_names(paths) == ["a", "b"]
    assert short_names([tmp_path / "a"]) == ["a"]
    assert len(set(short_names([tmp_path / "a", tmp_path / "a/b"]))) == 2
