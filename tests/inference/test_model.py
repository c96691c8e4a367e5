"""A checkpoint in Python: `lgpl.load`, and the images that the command draws."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lgpl
from lgpl.checkpoints import read_checkpoint
from lgpl.cli import main
from lgpl.errors import UserError
from lgpl.inference import Generator, Tokenizer
from tests.serving.generators import MINILM, class_config, export_generator, export_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "classes", class_config(10))
    export_generator(folder / "text", MINILM)
    return folder


def opened(path: Path) -> Generator:
    model = lgpl.load(path, device="cpu")
    assert isinstance(model, Generator)
    return model


def test_it_draws_what_the_command_draws(models: Path, tmp_path: Path) -> None:
    for kind, option, prompts in (
        ("classes", "--label", ["3", "7"]),
        ("text", "--prompt", ["a cat", "two dogs"]),
    ):
        images = opened(models / kind).draw(prompts, seed=5, guidance=1.5, top_k=9)
        out = tmp_path / kind
        main(
            ["sample", "--checkpoint", str(models / kind), option, *prompts, "--seed", "5",
             "--guidance", "1.5", "--top-k", "9", "--out", f"{out}/"]
        )  # fmt: skip
        for i, image in enumerate(images):
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(out / f"{i:06d}.png")))


def test_what_is_not_said_is_the_models_own(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A config's `sampling` holds for Python and the commands, option by option."""
    for name in ("tokenizer", "classes"):
        shutil.copytree(models / name, tmp_path / name)
    config = tmp_path / "classes/config.json"
    entry = json.loads(config.read_text())
    entry["config"]["init_args"]["sampling"] = {"temperature": 0.0, "top_k": 5}
    config.write_text(json.dumps(entry))
    monkeypatch.chdir(tmp_path)

    plain, own = opened(models / "classes"), opened(tmp_path / "classes")
    (greedy,) = plain.draw("3", temperature=0.0)
    (varied,) = plain.draw("3", top_k=5, temperature=2.0)
    assert own.draw("3")[0].tobytes() == own.draw("3", seed=9)[0].tobytes() == greedy.tobytes()
    assert own.draw("3", temperature=2.0)[0].tobytes() == varied.tobytes() != greedy.tobytes()
    command = ["sample", "--checkpoint", "classes", "--label", "3", "--out"]
    main([*command, "a.png"])
    assert capsys.readouterr().out == "a.png: 1 image, seed 0, temperature 0.0, top-k 5\n"
    assert Image.open("a.png").convert("RGB").tobytes() == greedy.tobytes()
    main([*command, "b.png", "--temperature", "2"])
    assert Image.open("b.png").convert("RGB").tobytes() == varied.tobytes()
    main([*command, "c.png", "--temperature", "1", "--top-k", "0"])  # a default may be asked for
    (default,) = plain.draw("3")
    assert Image.open("c.png").convert("RGB").tobytes() == default.tobytes()


def test_the_folder_of_a_run_is_its_last_checkpoint(tmp_path: Path) -> None:
    export_tokenizer(tmp_path / "tokenizer")
    export_generator(tmp_path / "classes", class_config(10))
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    exported = read_checkpoint(tmp_path / "classes")
    described = exported.described()
    described["init_args"]["tokenizer"] = str(tmp_path / "tokenizer")
    state = {f"transformer.{name}": t for name, t in exported.weights().items()}
    torch.save({"lgpl": {"kind": "generator", "config": described}, "state_dict": state}, last)
    (one,), (other,) = (opened(path).draw("3") for path in (last.parent.parent, last))
    assert one.tobytes() == other.tobytes()


def test_one_prompt_batches_and_progress(models: Path) -> None:
    model, seen = opened(models / "classes"), []
    together = model.draw(["1", "2", "3"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(count * 3, 90) for count in range(1, 31)]
    parts = model.draw(["1", "2", "3"], batch_size=2)
    assert [image.tobytes() for image in parts] == [image.tobytes() for image in together]
    (one,) = model.draw("1")
    assert one.tobytes() == together[0].tobytes()


def test_an_image_grows_and_its_drawing_ends_with_the_loop(models: Path) -> None:
    model = opened(models / "classes")
    images = list(model.stream("4", seed=2, partial=2))
    assert len(images) == 3 and {image.size for image in images} == {images[0].size}
    assert images[-1].tobytes() == model.draw("4", seed=2)[0].tobytes()
    grey = np.asarray(images[0])[-1]
    assert (grey == grey[0, 0]).all()
    before = threading.active_count()
    assert len(list(itertools.islice(model.stream("4"), 2))) == 2
    assert threading.active_count() == before
    with pytest.raises(UserError, match="'99' is no class"):
        list(model.stream("99"))


def test_codes_and_back(models: Path) -> None:
    model = opened(models / "classes")
    (image,) = model.draw("0")
    codes = model.tokenizer.encode(image)
    assert codes.dtype == torch.int64 and codes.shape == (6, 5)
    again = model.tokenizer.decode(codes)
    assert again.size == image.size
    alone = lgpl.load(models / "tokenizer", device="cpu")
    assert isinstance(alone, Tokenizer) and torch.equal(alone.encode(image), codes)


def test_mistakes_are_told(models: Path, tmp_path: Path) -> None:
    model = opened(models / "classes")
    for wrong, said in (
        (lambda: model.draw("10"), "'10' is no class: give one from 0 to 9"),
        (lambda: model.draw("1", guidance=-1), "guidance must be >= 0, got -1"),
        (lambda: lgpl.load(tmp_path / "none"), "no such checkpoint"),
        (lambda: lgpl.load(models / "text", dtype="fp16"), "dtype must be one of float32, bf16"),
        (lambda: lgpl.load(models / "text", tokenizer=models / "text"), "a tokenizer is wanted"),
    ):
        with pytest.raises(UserError, match=said):
            wrong()
