"""A model needs torch alone, and a command what it does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

BLOCKED = ("lightning", "pytorch_lightning", "jsonargparse", "webdataset")


@pytest.mark.parametrize(
    "module",
    [
        "lgpl.tokenizer.autoencoder",
        "lgpl.tokenizer.quantizers",
        "lgpl.generator.transformer",
        "lgpl.generator.conditions",
        "lgpl.generator.decoders",
        "lgpl.data.decode",
    ],
)
def test_a_model_needs_torch_alone(module: str) -> None:
    script = (
        f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"
        f"import {module}\nassert not [name for name in sys.modules if name[:9] == 'lightning.']"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "seconds", "absent"),
    [
        (["--help"], 0.5, "torch"),
        (["sample", "--help"], 2.0, "torch"),
        (["serve", "--help"], 2.0, "torch"),
        (["data", "show", "--help"], None, "lightning"),
        (["fitt"], 0.5, "torch"),
    ],
    ids=str,
)
def test_a_command_imports_what_it_needs(
    command: list[str], seconds: float | None, absent: str
) -> None:
    script = (
        "import sys, time\nfrom lgpl.cli import main\n"
        f"try: main({command})\nexcept SystemExit: pass\n"
        f"print({absent!r} in sys.modules, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    imported, took = done.stdout.split()[-2:]
    assert imported == "False"
    assert seconds is None or float(took) < seconds
