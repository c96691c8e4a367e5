"""`lgpl sample` into a folder: the same images whatever the ranks, and after a stop."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lgpl.cli import main
from lgpl.generator import GeneratorModule, Transformer
from lgpl.generator.conditions import Inputs, rows
from lgpl.generator.packing import int8_weights
from lgpl.text import TextEncoder
from tests.conftest import ROOT
from tests.models import labels, transformer
from tests.serving.generators import MINILM, class_config, export_generator, export_tokenizer

# Kills itself before the fourth image.
KILLED = """
import os, signal
from lgpl.cli import main
from lgpl.generator import GeneratorModule

def sample_codes(*args, drawn=[], sample_codes=GeneratorModule.sample_codes, **options):
    if len(drawn) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    drawn.append(1)
    return sample_codes(*args, **options)

GeneratorModule.sample_codes = sample_codes
main()
"""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "generator", class_config(3))
    return folder / "generator"


def draw(generator: Path, out: Path, *more: str) -> dict[str, bytes]:
    main(["sample", "--checkpoint", str(generator), "--balanced", "7", "--out", f"{out}/", *more])
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def test_ranks_and_a_stop_change_no_image(
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
    command = [sys.executable, "-c", KILLED, "sample", "--checkpoint", str(generator)]
    command += ["--balanced", "7", "--batch-size", "1", "--out", f"{out}/"]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
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
    said = capsys.readouterr().err
    assert said.count("--out") == 1 and "another seed (0, not 5)" in said


def test_a_start_that_failed_stands_in_no_ones_way(
    generator: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "a"
    command = ("sample", "--checkpoint", str(generator), "--out", f"{out}/", "--label")
    assert "is no class" in fails(*command, "0", "99")
    assert not out.exists() or not list(out.iterdir())
    main([*command, "0", "1"])
    assert "another number of images (2, not 1)" in fails(*command, "0")
    assert "drawn with other prompts; give another folder" in fails(*command, "1", "0")


def test_images_of_unknown_settings_are_refused(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    draw(generator, out)
    (out / "sampling.json").write_text("[1]")
    with pytest.raises(SystemExit):
        draw(generator, out)
    assert "cannot be used" in capsys.readouterr().err
    (out / "sampling.json").unlink()
    with pytest.raises(SystemExit):
        draw(generator, out)
    assert "holds images, but no sampling.json" in capsys.readouterr().err


def test_another_model_in_the_same_folder_is_refused(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(generator, tmp_path / "a")
    weights = generator / "model.safetensors"
    before = weights.stat()
    folder = generator.stat()
    try:
        os.utime(weights, (before.st_atime, before.st_mtime + 100))
        assert generator.stat().st_mtime == folder.st_mtime
        with pytest.raises(SystemExit):
            draw(generator, tmp_path / "a")
        assert "another state of the checkpoint" in capsys.readouterr().err
    finally:
        os.utime(weights, (before.st_atime, before.st_mtime))


def test_bf16_is_drawn_in_bf16(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for keys and values, which a CPU keeps in float32."""
    steps, step = [], Transformer.step

    def note(model: Transformer, x: Tensor, position: Tensor, mask: Tensor, cache: Any) -> Tensor:
        steps.append((x.dtype, cache[0].keys.dtype))
        return step(model, x, position, mask, cache)

    monkeypatch.setattr(Transformer, "step", note)
    found = draw(generator, tmp_path / "a", "--dtype", "bf16")
    assert len(found) == 7 and {*steps} == {(torch.bfloat16, torch.float32)}
    with pytest.raises(SystemExit):
        draw(generator, tmp_path / "a")


@pytest.mark.parametrize("room", [1, 3])
def test_a_full_memory_halves_the_batch(
    room: int, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing and decoding; no image is lost or another."""
    sample_codes, decode = GeneratorModule.sample_codes, GeneratorModule.decode
    allowed, drawn = 7, []

    def some_codes(module: GeneratorModule, inputs: Inputs, *rest: Any, **more: Any) -> Tensor:
        if rows(inputs) > 2 * allowed:
            raise torch.OutOfMemoryError("no room")
        drawn.append(sample_codes(module, inputs, *rest, **more))
        return drawn[-1]

    def some_images(module: GeneratorModule, codes: Tensor) -> Tensor:
        if len(codes) > allowed:
            raise torch.OutOfMemoryError("no room")
        return decode(module, codes)

    monkeypatch.setattr(GeneratorModule, "sample_codes", some_codes)
    monkeypatch.setattr(GeneratorModule, "decode", some_images)
    whole = draw(generator, tmp_path / "whole")
    (codes,), allowed, drawn = drawn, room, []
    halved = draw(generator, tmp_path / "halved")
    assert torch.equal(torch.cat(drawn), codes) and halved == whole
    assert [len(part) for part in drawn] == ([1] * 7 if room == 1 else [3, 3, 1])


def test_a_grid_is_drawn_in_halves_too(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_codes, drawn = GeneratorModule.sample_codes, []

    def some_codes(module: GeneratorModule, inputs: Inputs, *rest: Any, **more: Any) -> Tensor:
        if rows(inputs) > 2:
            raise torch.OutOfMemoryError("no room")
        drawn.append(rows(inputs))
        return sample_codes(module, inputs, *rest, **more)

    def run(out: str) -> bytes:
        labels = ["--label", "0", "1", "2", "0", "1"]
        main(["sample", "--checkpoint", str(generator), *labels, "--out", str(tmp_path / out)])
        return (tmp_path / out).read_bytes()

    whole = run("whole.png")
    monkeypatch.setattr(GeneratorModule, "sample_codes", some_codes)
    assert run("halved.png") == whole and drawn == [2, 2, 1]


def test_no_room_for_one_image_is_told(
    generator: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def none(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(GeneratorModule, "sample_codes", none)
    with pytest.raises(SystemExit):
        draw(generator, tmp_path / "a")
    assert "--batch-size: not even one image fits" in capsys.readouterr().err


def test_a_rank_encodes_its_own_prompts(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only what its folder lacks; a mistake in any of them fails before the first image."""
    text = generator.parent / "text"
    export_generator(text, MINILM)
    prompts = [f"an image of {what}" for what in ("a cat", "two dogs", "the red car", "it")]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    encoded: list[str] = []
    encode = TextEncoder.encode

    def note(encoder: TextEncoder, captions: list[str], *rest: Any, **more: Any) -> Any:
        encoded.extend(captions)
        return encode(encoder, captions, *rest, **more)

    monkeypatch.setattr(TextEncoder, "encode", note)

    def run(out: str) -> dict[str, bytes]:
        main(["sample", "--checkpoint", str(text), "--prompts", str(tmp_path / "prompts.txt"),
              "--out", f"{tmp_path / out}/"])  # fmt: skip
        return {path.name: path.read_bytes() for path in (tmp_path / out).glob("*.png")}

    whole = run("one")
    assert encoded == prompts
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        encoded.clear()
        ranked = run("two")
        assert encoded == prompts[rank::2]
    assert ranked == whole
    encoded.clear()
    (tmp_path / "two" / "000003.png").unlink()
    assert run("two") == whole and encoded == prompts[3:]
    (tmp_path / "prompts.txt").write_text("\n".join([*prompts, "word " * 40]))
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(SystemExit):
        run("three")
    assert not list((tmp_path / "three").glob("*.png"))


def test_int8_needs_torchao_or_draws_nearly_the_same(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("torchao") is None:
        with pytest.raises(SystemExit):
            draw(generator, tmp_path / "a", "--int8")
        assert "pip install 'lgpl[int8]'" in capsys.readouterr().err
        return
    rounded = transformer((2, 4, 64), codebook_size=48, grid=(6, 5), num_classes=3).eval()
    torch.nn.init.normal_(rounded.output.weight)
    codes, classes = torch.randint(48, (8, 30)), labels(*(i % 3 for i in range(8)))
    with torch.no_grad():
        before = rounded(codes, classes)
        int8_weights(rounded)
        after = rounded(codes, classes)
    assert 0 < (after - before).norm() < 0.05 * before.norm()
    assert len(draw(generator, tmp_path / "a", "--int8")) == 7
