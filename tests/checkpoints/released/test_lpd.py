"""LPD's files: found out to be its, read, and written back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lgpl.checkpoints import write_checkpoint
from lgpl.checkpoints.released.lpd import MARKS
from lgpl.checkpoints.released.reading import read_released
from lgpl.cli import main
from lgpl.generator.conditions.classes import IMAGENET, read_names
from lgpl.generator.transformer import SIZES
from tests.golden import import_golden, released
from tests.serving.generators import class_config, text_config

SHAPES = {96: "dim", 10: "classes", 64: "codes", 17: "positions", 288: "3 dim", 384: "4 dim"}


def of_size(name: str, classes: int, codes: int, side: int) -> dict[str, Tensor]:
    """Weights of a released size, on the meta device."""
    layers, _, dim = SIZES[name]
    sides = {
        "dim": dim, "classes": classes, "codes": codes, "positions": side**2 + 1,
        "3 dim": 3 * dim, "4 dim": 4 * dim,
    }  # fmt: skip
    made: dict[str, Tensor] = {}
    for key, tensor in released("lpd").items():
        shape = [sides.get(SHAPES.get(n, ""), n) for n in tensor.shape]
        number = key.split(".")[1] if key.startswith("blocks.") else None
        for layer in range(layers) if number == "0" else ([None] if number is None else []):
            name_there = key if layer is None else key.replace("blocks.0.", f"blocks.{layer}.")
            made[name_there] = torch.empty(shape, device="meta")
    return made


@pytest.mark.parametrize(("size", "side"), [("L", 16), ("XL", 16), ("XXL", 16), ("XL", 32)])
def test_released_sizes(size: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = of_size(size, 1000, 16384, side)
    monkeypatch.setattr(
        "lgpl.checkpoints.released.state.load_tensors", lambda *_, **__: {"model": state}
    )
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    found = read_released("lpd.pth")
    options = found.config["init_args"]["transformer"]["init_args"]
    assert options.pop("condition")["init_args"] == {
        "num_classes": 1000, "names": read_names(IMAGENET)
    }  # fmt: skip
    assert options == {"size": size, "codebook_size": 16384, "grid": [side, side]}
    assert "generator, " in found.summary and f"size {size}" in found.summary


@pytest.mark.parametrize("key", [None, "model", "model_ema", "ema"])
def test_round_trip_is_bit_exact(key: str | None, tmp_path: Path) -> None:
    """Of averaged weights first, and also where some are of another precision."""
    state = {n: t.bfloat16() if n.endswith("bias") else t for n, t in released("lpd").items()}
    content: dict[str, Any] = state if key is None else {key: state}
    if key == "model_ema":
        content["model"] = {name: tensor + 1 for name, tensor in state.items()}
    torch.save(content, tmp_path / "in.pth")
    folder, back = str(tmp_path / "folder"), tmp_path / "out.pth"
    main(["import", str(tmp_path / "in.pth"), "--out", folder, "--heads", "4"])
    main(["export", folder, "--format", "lpd", "--out", str(back)])
    after = torch.load(back, weights_only=True)["model"]
    assert after.keys() == state.keys()
    for name, tensor in state.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
    main(["export", folder, "--out", str(tmp_path / "again")])
    first, second = (load_file(f"{f}/model.safetensors") for f in (folder, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_missing_tensor_is_named(fails: Callable[..., str], tmp_path: Path) -> None:
    """Whichever it is: the file is still known for what it is."""
    state, out = released("lpd"), tmp_path / "out"

    def run(content: dict[str, Tensor], *told: str) -> str:
        torch.save(content, tmp_path / "a.pth")
        return fails("import", str(tmp_path / "a.pth"), "--out", str(out), "--heads", "4", *told)

    for name in state:
        if name in {*MARKS, "pos_embed", "class_emb.weight", "head.weight", "norm.bias"}:
            said = run({n: t for n, t in state.items() if n != name})
            assert f"a.pth has no weight {name}: it " in said and "LlamaGen" not in said
    some = {n: t for n, t in state.items() if n not in {*MARKS} - {"mask_token"}}
    assert "has no weight token_emb.weight: it is not whole, or no model of LPD" in run(some)
    assert "LPD's model lacks: rogue" in run(state | {"rogue": torch.zeros(1)})
    said = run(state | {"norm.bias": torch.zeros(5)})
    assert "norm.bias of [5], LPD's model [96]: they are of different sizes" in said
    assert "no square" in run(state | {"pos_embed": torch.zeros(1, 16, 96)})
    assert "whose pos_embed is for 4x4 codes" in run(state, "--grid", "5")
    torch.save(state, tmp_path / "a.pth")
    said = fails("import", str(tmp_path / "a.pth"), "--out", str(out))
    assert "needs --heads, unknown for 2 layers of 96" in said
    assert not out.exists()


def test_what_lpd_has_no_words_for(fails: Callable[..., str], tmp_path: Path) -> None:
    def export(name: str, cls: str, condition: dict[str, Any], **changes: Any) -> str:
        from lgpl.training import build_module

        sizes = {"size": [1, 2, 32], "codebook_size": 16, "grid": [2, 2], **changes}
        built = {"class_path": cls, "init_args": {"condition": condition, **sizes}}
        config = {
            "class_path": "lgpl.generator.GeneratorModule", "init_args": {"transformer": built}
        }  # fmt: skip
        module: Any = build_module(config)
        write_checkpoint(tmp_path / name, "generator", config, module.model.state_dict())
        out = ("--format", "lpd", "--out", str(tmp_path / "a.pth"))
        return fails("export", str(tmp_path / name), *out)

    parallel = "lgpl.generator.ParallelTransformer"
    said = export("text", parallel, text_config(6, 4))
    assert said.endswith("cannot be written for LPD: it has a TextCondition, not classes.")
    said = export("wide", parallel, class_config(3), grid=[2, 3])
    assert said.endswith("it has codes of 2x3, not a square of single ones.")
    said = export("raster", "lgpl.generator.Transformer", class_config(3))
    assert said.endswith("it is a Transformer, not a ParallelTransformer.")
    said = fails("export", str(tmp_path / "text"), "--format", "lpd", "--out", str(tmp_path / "b"))
    assert "--out must be a .pt file for --format llamagen or lpd and a folder" in said
    said = fails("export", str(tmp_path / "text"), "--format", "llamagen", "--out", "b.pt")
    assert "it is a ParallelTransformer, not a Transformer" in said
    assert not list(tmp_path.glob("*.pth"))


def test_config_says_what_was_found(tmp_path: Path) -> None:
    entry = json.loads(Path(import_golden("lpd", tmp_path), "config.json").read_text())
    assert entry["kind"] == "generator"
    assert entry["config"]["init_args"]["transformer"] == {
        "class_path": "lgpl.generator.ParallelTransformer",
        "init_args": {
            "size": [2, 4, 96], "codebook_size": 64, "grid": [4, 4], "condition": class_config(10)
        },
    }  # fmt: skip
