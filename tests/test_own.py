"""Own data from end to end: the tutorial of configs/README.md, in seconds instead of minutes."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lgpl.checkpoints import read_checkpoint
from lgpl.cli import main
from lgpl.errors import UserError
from lgpl.generator import ClassCondition, TextCondition, Transformer
from lgpl.inference import load_generator
from tests.conftest import CONDITION, ROOT, TINY, TINY_TOKENIZER
from tests.serving.servers import serve
from tests.shards import image_bytes
from tests.test_readme import commands

SECTION = (ROOT / "configs/README.md").read_text().partition("\n## Your own images\n")[2]
TUTORIAL, _, REST = SECTION.partition("\n## ")[0].partition("\n### Images with captions\n")
CAPTIONS = REST.partition("\n### ")[0]
STEPS = ["--trainer.max_steps", "3", "--trainer.accelerator", "cpu", *TINY]
SMALL = ["--model.init_args.transformer.init_args.size", "[2, 2, 32]"]
# What makes minutes seconds, for each command; the recipes stay.
SHRUNK = {
    "configs/own/tokenizer.yaml": [*STEPS, *TINY_TOKENIZER],
    "configs/own/encode.yaml": ["--trainer.enable_progress_bar", "false"],
    "configs/own/class.yaml": [*STEPS, *SMALL],
    "configs/own/text.yaml": [*STEPS, *SMALL],
}
TRANSFORMER = "--model.init_args.transformer.init_args"


def run(command: str, *options: str) -> None:
    """A command of the tutorial; those that train or encode in small."""
    _, name, *rest = shlex.split(command)
    if name in ("fit", "predict"):
        rest += [option for word in rest for option in SHRUNK.get(word, [])]
    if name == "predict":
        rest = [word for word in rest if word not in STEPS]
    if name == "evaluate":
        rest[rest.index("--extractor") + 1] = "tests.metrics.pixels.Pixels"
        rest[rest.index("--images") + 1] = "64"
    main([name, *rest, *options])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tutorial was followed, up to its server."""
    folder = tmp_path_factory.mktemp("own")
    for i in range(60):
        path = folder / "images" / ("cats", "dogs", "red foxes")[i % 3] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(i, (70, 66)))
        (folder / "captioned").mkdir(exist_ok=True)
        (folder / "captioned" / f"{i}.jpg").write_bytes(image_bytes(i, (70, 66)))
        (folder / "captioned" / f"{i}.txt").write_text(f"a thing of number {i}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for text in (TUTORIAL, CAPTIONS):
            for command in commands(text):
                if " serve " not in command:
                    run(command)
    return folder


def test_the_tutorial_leads_to_images(own: Path) -> None:
    names = ["cats", "dogs", "red foxes"]
    assert (own / "runs/own/codes/classes.txt").read_text().splitlines() == names
    for name in ("samples", "captioned"):
        assert Image.open(own / f"{name}.png").width > 64
    assert json.loads((own / "gfid.json").read_text())


def test_a_request_to_the_server_of_the_tutorial(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    (command,) = (line for line in commands(TUTORIAL) if " serve " in line)
    options = shlex.split(command)[2:]
    checkpoint = options[options.index("--checkpoint") + 1]
    with serve(Path(checkpoint).resolve(), "--device", "cpu") as server:
        body = {"prompt": "red foxes", "response_format": "b64_json"}
        answer = server.post(body).raise_for_status().json()
    image = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert image.size == (64, 64)


def test_checkpoints_hold_what_was_found(own: Path) -> None:
    found = {}
    for name in ("class", "text"):
        config = read_checkpoint(own / f"runs/own/{name}/checkpoints/last.ckpt").described()
        found[name] = config["init_args"]["transformer"]["init_args"]
        sizes = {key: found[name][key] for key in ("codebook_size", "grid", "depth")}
        assert sizes == {"codebook_size": 64, "grid": [8, 8], "depth": 1}
    classes = found["class"]["condition"]["init_args"]
    assert classes["names"] == ["cats", "dogs", "red foxes"] and classes["num_classes"] == 3
    text = found["text"]["condition"]["init_args"]
    assert (text["features"], text["length"]) == (384, 32)


def test_another_folder_finds_the_tokenizer(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """From wherever one stands, and where the run was moved."""
    monkeypatch.chdir(tmp_path)
    checkpoint = "class/checkpoints/last.ckpt"
    assert load_generator(str(own / "runs/own" / checkpoint), None, "cpu").image_size == (64, 64)
    shutil.copytree(own / "runs/own", tmp_path / "moved")
    assert load_generator(f"moved/{checkpoint}", None, "cpu").image_size == (64, 64)
    shutil.copytree(own / "runs/own/class", tmp_path / "alone")
    said = fails("sample", "--checkpoint", "alone/checkpoints/last.ckpt", "--label", "0",
                 "--out", "a.png")  # fmt: skip
    assert said.startswith("runs/own/tokenizer/checkpoints/last.ckpt: no such checkpoint")


@pytest.mark.parametrize("name", ["tokenizer", "class", "text"])
def test_plan(
    own: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own)
    main(["plan", "-c", f"configs/own/{name}.yaml"])
    assert "GiB to spare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            "class",
            [f"{CONDITION}.num_classes", "4"],
            "condition.num_classes is 4, but runs/own/codes/classes.txt names 3 classes",
        ),
        (
            "class",
            [f"{TRANSFORMER}.codebook_size", "128"],
            "a generator of 8x8 codes out of 128 do not belong together: the tokenizer has 8x8 "
            "codes out of 64",
        ),
        (
            "class",
            [f"{TRANSFORMER}.grid", "[4, 4]"],
            "holds codes of the layout [8, 8, 1], but the model's [rows, columns, depth] is "
            "[4, 4, 1]",
        ),
        (
            "text",
            [f"{CONDITION}.features", "128"],
            "holds text features of the features 384, but condition.features is 128",
        ),
        (
            "text",
            [f"{CONDITION}.encoder.init_args.max_length", "16"],
            "holds text features of the length 32, but condition.length is 16",
        ),
        ("class", ["--data.train", "nowhere/*.tar"], "nowhere/*.tar"),
        ("class", ["--model.init_args.tokenizer", "none.ckpt"], "none.ckpt: no such checkpoint"),
        (
            "class",
            ["--data.train", "runs/none/*.tar"],
            "'runs/none/*.tar' matches no file; `lgpl predict` writes the codes of images there",
        ),
        ("class", ["--model.init_args.tokenizer", "null"], "transformer.codebook_size is not set"),
    ],
)
def test_what_contradicts_the_data_is_refused(
    own: Path,
    recipe: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    monkeypatch.chdir(own)
    fit = ("fit", "-c", f"configs/own/{recipe}.yaml", *STEPS, *SMALL, "--trainer.logger", "false")
    assert message in fails(*fit, *options)


def test_numbers_that_nobody_knows() -> None:
    condition = ClassCondition(8, 3)
    with pytest.raises(UserError, match=r"codebook_size is not set; give .* model.tokenizer"):
        Transformer(lambda dim: condition, (1, 2, 8))
    with pytest.raises(UserError, match="grid is not set; give rows and columns"):
        Transformer(lambda dim: condition, (1, 2, 8), 16)
    with pytest.raises(UserError, match=r"num_classes is not set; give it, .* classes.txt"):
        ClassCondition(8)
    with pytest.raises(UserError, match="features is not set; give it, an encoder"):
        TextCondition(8)
