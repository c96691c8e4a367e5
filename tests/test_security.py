"""Every promise of SECURITY.md names tests, and they are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / ".github/SECURITY.md").read_text()
PROMISED = PAGE[: PAGE.index("## What is not promised")]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PROMISED)


def test_every_promise_names_a_test() -> None:
    promises = re.findall(r"^- .*?(?=^- |^## |\Z)", PROMISED, re.DOTALL | re.MULTILINE)
    assert len(promises) > 12
    assert [promise for promise in promises if "::test_" not in promise] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_it_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
