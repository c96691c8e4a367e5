"""A model needs torch alone."""

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
        "lgpl.generator.decoding",
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
