"""A model needs torch alone, and a command what it does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from lgpl.errors import UserError
from lgpl.lazy import needs
from tests.conftest import ROOT

BLOCKED = ("lightning", "pytorch_lightning", "jsonargparse", "webdataset")


@pytest.mark.parametrize(
    "module",
    [
        "lgpl.tokenizer.autoencoder",
        "lgpl.tokenizer.quantizers",
        "lgpl.generator.transformer",
        "lgpl.generator.parallel",
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
        (["edit", "--help"], 1.0, "torch"),
        (["complete", "--help"], 1.0, "torch"),
        (["reconstruct", "--help"], 1.0, "torch"),
        (["evaluate", "generation", "--help"], 1.0, "torch"),
        (["plan", "--help"], 1.0, "torch"),
        (["export", "--help"], 1.0, "torch"),
        (["import", "--help"], 1.0, "torch"),
        (["push", "--help"], 1.0, "torch"),
        (["--help"], None, "huggingface_hub"),
        (["sample", "--help"], None, "huggingface_hub"),
        (["completion", "--help"], 1.0, "torch"),
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


def test_a_missing_package_is_named_with_its_extra() -> None:
    needs("A plot", "torch", "plots")
    with pytest.raises(UserError, match=r"A plot needs no-such: pip install 'lgpl\[plots\]'\."):
        needs("A plot", "no-such", "plots")


# Modules whose package is called otherwise.
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "bs4": "beautifulsoup4"}
# Packages that the user brings along: her logger, and vLLM, which has an environment of its own.
BROUGHT = {"wandb", "vllm"}


def declared_project() -> Any:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_what_is_imported_is_declared() -> None:
    project = declared_project()
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in extras if name != "dev")]
    declared = {re.split(r"[^\w-]", line)[0].lower() for names in lists for line in names}
    for path in sorted((ROOT / "lgpl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for top in {name.partition(".")[0] for name in names}:
                if top not in (*sys.stdlib_module_names, "lgpl", *BROUGHT):
                    package = PACKAGES.get(top, top.replace("_", "-"))
                    assert package in declared, f"{path} imports {top}"


def test_every_core_dependency_has_an_oldest_version() -> None:
    """Which `make test-lowest` installs; without one, uv would take the first that was released."""
    names = [line for line in declared_project()["dependencies"] if ">=" not in line]
    assert names == []


def test_the_declared_versions_of_python_are_those_of_ci() -> None:
    project = declared_project()
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"] == declared
    assert project["requires-python"] == f">={declared[0]}"
