"""LlamaGen's files: which model is found in them, in whatever wrapping, and the way back."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lgpl.checkpoints.released.llamagen import llamagen_name
from lgpl.checkpoints.released.reading import read_released
from lgpl.cli import main
from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator.blocks import rotary_table
from lgpl.generator.conditions.classes import IMAGENET, read_names
from lgpl.generator.transformer import SIZES
from lgpl.tokenizer import PatchGAN
from lgpl.training import load_module
from tests.golden import released, schema
from tests.models import transformer

T5 = {"name": "google/flan-t5-xl", "max_length": 120, "dtype": "bfloat16", "captions": "llamagen"}
TEXT = {"features": 2048, "length": 120, "trainable_null": False}


def condition(kind: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"lgpl.generator.{kind}Condition", "init_args": options}


CLASSES = condition("Class", num_classes=1000, names=read_names(IMAGENET))
CAPTIONS = condition(
    "Text", **TEXT, encoder={"class_path": "lgpl.text.TextEncoder", "init_args": T5}
)


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def found(path: Path, **told: int) -> dict[str, Any]:
    """The options of the model that a file turns out to hold."""
    config = read_released(path, **told).config["init_args"]
    return config.get("autoencoder", config.get("transformer"))["init_args"]


@pytest.fixture
def without_storage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Look at the shapes of a file that would have gigabytes."""

    def look(state: dict[str, Tensor], name: str) -> dict[str, Any]:
        monkeypatch.setattr("lgpl.checkpoints.released.state.load_tensors", lambda *_, **__: state)
        monkeypatch.setattr(Path, "is_file", lambda _: True)
        return found(Path(name))

    return look


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("vq_ds16", "vq_ds16_c2i.pt", {"multipliers": "vq-16", "z_channels": 256}),
        ("vq_ds8", "vq_ds8_c2i.pt", {"multipliers": "vq-8", "z_channels": 256}),
        ("c2i_B", "c2i_B_384.pt", {"size": "B", "grid": [24, 24], "condition": CLASSES}),
        ("t2i_XL", "t2i_XL_stage2_512.pt", {"size": "XL", "grid": [32, 32], "condition": CAPTIONS}),
    ],
)
def test_released_files(
    without_storage: Callable[..., dict[str, Any]], name: str, file: str, expected: dict[str, Any]
) -> None:
    options = without_storage({"model": meta(schema(name))}, file)
    assert options.items() >= expected.items()
    if "quantizer" in options:
        assert options["quantizer"]["init_args"] == {"codebook_size": 16384, "dim": 8}
    else:
        assert options["codebook_size"] == 16384 and options["prefix_rope"] == "zero"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("options", "condition"),
    [({"num_classes": 1000}, CLASSES), ({"text_features": 2048}, CAPTIONS)],
    ids=["class", "text"],
)
def test_every_size_is_told_from_its_shapes(
    without_storage: Callable[..., dict[str, Any]],
    size: str,
    options: dict[str, Any],
    condition: dict[str, Any],
) -> None:
    with torch.device("meta"):
        state = transformer(size, **options).state_dict()
    built = without_storage({llamagen_name(n): t for n, t in state.items()}, "x_256.pt")
    assert built["size"] == size and built["grid"] == [16, 16] and built["condition"] == condition


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "model", "ema", "module", "state_dict"])
def test_every_wrapping_is_read(key: str | None, wrapper: str, tmp_path: Path) -> None:
    state = released("c2i")
    wrapped: Any = {wrapper + name: tensor for name, tensor in state.items()}
    file = save({key: wrapped} if key else wrapped, tmp_path / "a.pt")
    weights = read_released(file, grid=4, heads=4).weights
    assert all(torch.equal(weights[n], state[llamagen_name(n)]) for n in weights)


def test_checkpoint_of_the_training_scripts(tmp_path: Path) -> None:
    """Averaged weights come first; arguments and optimizer are passed over."""
    state = released("c2i")
    raw = {name: tensor + 1 for name, tensor in state.items()}
    arguments = argparse.Namespace(gpt_model="GPT-B", lr=1e-4)
    adam = torch.optim.Adam([torch.ones(3, requires_grad=True)])
    adam.param_groups[0]["params"][0].sum().backward()
    adam.step()
    states = {"optimizer": adam.state_dict(), "optimizer_disc": adam.state_dict()}
    content = {"model": raw, "ema": state, **states, "steps": 7}
    file = save({**content, "args": arguments}, tmp_path / "a.pt")
    weights = read_released(file, grid=4, heads=4).weights
    assert torch.equal(weights["norm.weight"], state["norm.weight"])


def test_the_discriminator_of_a_training_checkpoint_is_kept(
    without_storage: Callable[..., dict[str, Any]],
) -> None:
    """It lies beside the model, bare or with the rest of the loss, in DDP's wrapping or without."""
    names = {
        f"main.{name.removeprefix('layers.')}": t for name, t in PatchGAN().state_dict().items()
    }
    running = {
        "main.3.running_mean": torch.zeros(128),
        "main.3.num_batches_tracked": torch.ones(()),
    }
    lpips = {"perceptual_loss.lin0.model.1.weight": torch.ones(1, 64, 1, 1)}
    whole = {f"module.discriminator.{name}": tensor for name, tensor in names.items()} | lpips
    for saved in (names | running, whole):
        content = {"model": meta(schema("vq_ds16")), "discriminator": saved, "steps": 7}
        without_storage(content, "0000007.pt")
        found = read_released("0000007.pt")
        assert found.summary.endswith("with its discriminator")
        assert found.config["init_args"]["loss"]["init_args"]["discriminator"] == {
            "class_path": "lgpl.tokenizer.PatchGAN", "init_args": {"width": 64, "layers": 3},
        }  # fmt: skip
        for name, tensor in names.items():
            assert found.discriminator[f"layers.{name.removeprefix('main.')}"] is tensor
        assert len(found.discriminator) == len(names)


def test_rotary_table_tells_grid_heads_and_rule(tmp_path: Path) -> None:
    state = released("c2i")
    for rule in ("zero", "identity"):
        state["freqs_cis"] = rotary_table(1, CodeLayout(4, 4), 32, rule).bfloat16()
        options = found(save(state, tmp_path / "c2i_B_256.pt"))  # the name says 16
        assert options["grid"] == [4, 4] and options["size"] == [3, 4, 128]
        assert options["prefix_rope"] == rule
    with pytest.raises(UserError, match=r"--grid: 5 is not .* for 4x4 codes"):
        found(tmp_path / "c2i_B_256.pt", grid=5)
    state["freqs_cis"] = torch.rand(17, 16, 2)
    with pytest.raises(UserError, match=r"freqs_cis of \[17, 16, 2\] that is no rotary table"):
        found(save(state, tmp_path / "a.pt"))


@pytest.mark.parametrize("name", ["c2i", "t2i", "VQ-16", "VQ-8"])
def test_round_trip_is_bit_exact(name: str, tmp_path: Path) -> None:
    state = {n: t.bfloat16() if n.endswith("bias") else t for n, t in released(name).items()}
    told = ("--grid", "4", "--heads", "4") if "2i" in name else ()
    file = save({"model": state}, tmp_path / "in.pt")
    folder, back = tmp_path / "folder", tmp_path / "out.pt"
    main(["import", str(file), "--out", str(folder), *told])
    main(["export", str(folder), "--format", "llamagen", "--out", str(back)])
    after = torch.load(back, weights_only=True)["model"]
    assert after.keys() == state.keys()
    for name, tensor in state.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
    main(["export", str(folder), "--out", str(tmp_path / "again")])
    first, second = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    assert (folder / "config.json").read_text() == (tmp_path / "again/config.json").read_text()


def test_a_model_of_a_thousand_classes_knows_imagenets_names(tmp_path: Path) -> None:
    state = released("c2i")
    state["cls_embedding.embedding_table.weight"] = torch.zeros(1001, 128)
    file = save(state, tmp_path / "a.pt")
    main(["import", str(file), "--out", str(tmp_path / "a"), "--grid", "4", "--heads", "4"])
    condition = load_module(tmp_path / "a").model.condition  # type: ignore[union-attr]
    assert condition.label("golden retriever") == 207
    main(["export", str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    again = load_module(tmp_path / "b").model.condition  # type: ignore[union-attr]
    assert again.names == condition.names


def test_what_llamagen_does_not_know_is_not_written_for_it(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    state = released("c2i")
    state["freqs_cis"] = rotary_table(1, CodeLayout(4, 4), 32, "identity")
    main(["import", str(save(state, tmp_path / "a.pt")), "--out", str(tmp_path / "a")])
    export = ["export", str(tmp_path / "a"), "--format", "llamagen", "--out"]
    assert "prefix_rope identity, not zero" in fails(*export, str(tmp_path / "b.pt"))
    assert "must be a .pt file for --format llamagen" in fails(*export, str(tmp_path / "b"))
    assert "must be a .pt file" in fails("export", *export[1:2], "--out", "b.pt")
    assert not list(tmp_path.glob("b*"))


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_code_is_refused_and_never_run(fails: Callable[..., str], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    inside = save({"model": released("c2i"), "args": Attack(trace)}, tmp_path / "a.pt")
    said = fails("import", str(inside), "--out", str(tmp_path / "a"))
    assert "a.pt holds pickled code" in said and "never run" in said
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Attack(trace)))
    assert "no checkpoint" in fails("import", str(tmp_path / "b.pt"), "--out", str(tmp_path / "b"))
    assert not trace.exists() and not (tmp_path / "a").exists()
    pickle.loads((tmp_path / "b.pt").read_bytes())
    assert trace.exists()  # it would have worked


def test_mistakes_are_named(fails: Callable[..., str], tmp_path: Path) -> None:
    state = released("c2i")

    def run(content: Any, *told: str, name: str = "a.pt") -> str:
        torch.save(content, tmp_path / name)
        return fails("import", str(tmp_path / name), "--out", str(tmp_path / "out"), *told)

    sized = ("--grid", "4", "--heads", "4")
    assert "needs --heads, unknown for 3 layers of" in run(state, "--grid", "4")
    assert "needs --grid, the codes on a side" in run(state, "--heads", "4")
    said = run(state)
    assert "needs --heads" in said and "and --grid" in said
    assert "--grid must be >= 1, got 0" in run(state, "--grid", "0")
    assert "no such file" in fails("import", "nowhere.pt", "--out", str(tmp_path / "out"))
    (tmp_path / "text.pt").write_text("hello")
    said = fails("import", str(tmp_path / "text.pt"), "--out", str(tmp_path / "out"))
    assert "text.pt is no checkpoint" in said
    assert "holds no weights, neither bare nor under" in run({"epoch": 3})
    assert "no model of LlamaGen" in run({"layers.0.weight": torch.zeros(3)})

    name = "layers.1.ffn_norm.weight"
    missing = {n: t for n, t in state.items() if n != name}
    assert f"has no weight {name}" in run(missing, *sized)
    assert "LlamaGen's model lacks: rogue" in run(state | {"rogue": torch.zeros(1)}, *sized)
    said = run(state | {name: torch.zeros(5)}, *sized)
    assert f"{name} of [5], LlamaGen's model [128]" in said
    assert "should be a matrix" in run(state | {"tok_embeddings.weight": torch.zeros(3)}, *sized)
    headless = {n: t for n, t in state.items() if "embedding_table" not in n}
    assert "no weight cls_embedding.embedding_table.weight" in run(headless, *sized)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    torch.save(state, tmp_path / "a.pt")
    said = fails("import", str(tmp_path / "a.pt"), "--out", str(tmp_path / "file/x"), *sized)
    assert "file/x cannot be written" in said


def test_config_says_what_was_found(tmp_path: Path) -> None:
    file = save(released("t2i"), tmp_path / "t2i_512.pt")
    main(["import", str(file), "--out", str(tmp_path / "a"), "--heads", "4"])
    entry = json.loads((tmp_path / "a/config.json").read_text())
    assert entry["kind"] == "generator"
    assert entry["config"]["init_args"]["transformer"]["init_args"] == {
        "size": [3, 4, 128], "codebook_size": 256, "grid": [32, 32], "prefix_rope": "zero",
        "condition": condition("Text", **TEXT | {"features": 48}),
    }  # fmt: skip
