"""Whatever a group swaps goes through every command: classes that live in the tests, by their path
in YAML, trained on emoji of a few pixels."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

import lgpl
from lgpl.cli import main
from lgpl.errors import UserError
from lgpl.inference import load_generator
from lgpl.serving.sampler import SamplerEngine
from tests.serving.servers import TOKEN, in_process, serve
from tests.shards import EMOJI_TRAIN, EMOJI_VAL, image_bytes

Config = dict[str, Any]
COLOURS = "#ff8000 #00ff00 #0000ff #ffffff"


def entry(path: str, **arguments: Any) -> Config:
    return {"class_path": path, "init_args": arguments}


VQ = entry("lgpl.tokenizer.VectorQuantizer", codebook_size=16, dim=4)
RESIDUAL = entry("lgpl.tokenizer.ResidualQuantizer", quantizer=VQ, depth=2)
CLASSES = entry("lgpl.generator.ClassCondition", num_classes=9)
MEANS = entry("tests.contracts.MeanColours")


def vq_model(quantizer: Config) -> Config:
    sizes = {"multipliers": [1, 1], "patch": 4, "width": 32, "blocks": 1, "z_channels": 32}
    return entry("lgpl.tokenizer.VQModel", quantizer=quantizer, **sizes)


@dataclass(frozen=True)
class Case:
    """What is swapped, and what its codes and prompts are."""

    prompts: tuple[str, str]
    autoencoder: Config
    image_size: tuple[int, int] = (32, 32)
    layout: tuple[int, int, int] = (4, 4, 1)
    condition: Config | None = None
    decoder: Config | None = None
    model: str = "lgpl.generator.Transformer"
    option: str = "--label"
    own: bool = True  # has classes that are not lgpl's

    @property
    def transformer(self) -> Config:
        rows, columns, depth = self.layout
        options: Config = {"codebook_size": 16, "grid": [rows, columns]}
        if self.model.startswith("lgpl."):
            options |= {"size": [1, 2, 32], "depth": depth, "dropout": 0.0}
        return entry(self.model, condition=self.condition or CLASSES, **options)


PLAIN = Case(("3", "5"), vq_model(VQ))
CASES = {
    "a condition": replace(
        PLAIN, condition=MEANS, prompts=(COLOURS, COLOURS[::-1].replace("#", "") and "000000 " * 4),
        option="--prompt",
    ),
    "a list of conditions": replace(
        PLAIN, condition=entry("lgpl.generator.Conditions", parts=[CLASSES, MEANS]),
        prompts=(f"3 | {COLOURS}", "1 |"), option="--prompt",
    ),
    "a row of codes": replace(
        PLAIN, autoencoder=entry("tests.contracts.OneRow", quantizer=VQ), layout=(1, 16, 1)
    ),
    "residual depth": replace(
        PLAIN, autoencoder=vq_model(RESIDUAL), layout=(4, 4, 2), own=False
    ),
    "a decoder": replace(PLAIN, decoder=entry("tests.contracts.EvenFirst")),
    "a model": replace(PLAIN, model="tests.contracts.Frequencies"),
    "parallel groups": replace(PLAIN, model="lgpl.generator.ParallelTransformer", own=False),
    "no square": replace(PLAIN, image_size=(64, 96), layout=(8, 12, 1), own=False),
}  # fmt: skip


@dataclass
class Trained:
    """What the commands made of a case."""

    case: Case
    folder: Path

    @property
    def tokenizer(self) -> str:
        return str(self.folder / "tokenizer/checkpoints/last.ckpt")

    @property
    def generator(self) -> str:
        return str(self.folder / "generator/checkpoints/last.ckpt")

    @property
    def trust(self) -> tuple[str, ...]:
        return ("--trust", "tests") if self.case.own else ()

    def config(self, name: str) -> str:
        return str(self.folder / f"{name}.yaml")


def trainer(folder: Path, name: str) -> Config:
    return {
        "accelerator": "cpu", "max_steps": 2, "limit_val_batches": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "logger": entry(
            "lightning.pytorch.loggers.TensorBoardLogger",
            save_dir=str(folder), name=name, version="",
        ),
        "callbacks": [
            entry("lightning.pytorch.callbacks.ModelCheckpoint", save_last=True),
        ],
    }  # fmt: skip


def write(path: str, config: Config) -> None:
    Path(path).write_text(yaml.safe_dump(config))


def train(case: Case, folder: Path) -> Trained:
    """fit, validate and predict of the tokenizer, fit and validate of the generator."""
    made = Trained(case, folder)
    data: Config = {
        "train": EMOJI_TRAIN, "val": EMOJI_VAL, "image_size": list(case.image_size),
        "batch_size": 4, "epoch_samples": 8,
    }  # fmt: skip
    loss = entry("lgpl.tokenizer.TokenizerLoss")
    module = entry("lgpl.tokenizer.TokenizerModule", autoencoder=case.autoencoder, loss=loss)
    write(
        made.config("tokenizer"),
        {"data": data, "model": module, "trainer": trainer(folder, "tokenizer")},
    )
    config = ("-c", made.config("tokenizer"))
    main(["fit", *config])
    main(["validate", *config, "--ckpt_path", made.tokenizer])
    writer = entry("lgpl.callbacks.CodeShardWriter", out=str(folder / "codes"))
    write(
        made.config("predict"),
        {"data": {"predict": EMOJI_VAL}, "trainer": {"callbacks": [writer]}},
    )
    main(["predict", *config, "-c", made.config("predict"), "--ckpt_path", made.tokenizer])

    codes = str(folder / "codes/*.tar")
    fields = ["codes", "class"]
    if "MeanColours" in str(case.condition):  # which reads images, and so the codes are made anew
        fields = ["image", "class"]
    else:
        data |= {"train": codes, "val": codes}
    own = {"decoder": case.decoder} if case.decoder else {}
    module = entry(
        "lgpl.generator.GeneratorModule",
        transformer=case.transformer, tokenizer=made.tokenizer, **own,
    )  # fmt: skip
    options = trainer(folder, "generator")
    options["callbacks"].append(entry("lgpl.callbacks.SampleImages", count=2))
    write(
        made.config("generator"),
        {"data": {**data, "fields": fields}, "model": module, "trainer": options},
    )
    config = ("-c", made.config("generator"), *made.trust)
    main(["fit", *config])
    main(["validate", *config, "--ckpt_path", made.generator])
    return made


# tests/test_steps.py has the most of it, too.
SLOW = {"parallel groups": [pytest.mark.slow]}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=SLOW.get(name, [])) for name in CASES]
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    case = CASES[request.param]
    return train(case, tmp_path_factory.mktemp("contract"))


def test_code_shards_say_their_layout(trained: Trained) -> None:
    (statistics,) = (trained.folder / "codes").glob("*_stats.json")
    made_by = json.loads(statistics.read_text())["made_by"]
    assert made_by["layout"] == [*trained.case.layout] and made_by["views"] == 1
    assert made_by["dtype"] == "uint16"


def test_it_is_drawn_by_command(trained: Trained, tmp_path: Path) -> None:
    line = ["sample", "--checkpoint", trained.generator, *trained.trust, "--guidance", "2"]
    line += [trained.case.option, *trained.case.prompts]
    main([*line, "--out", f"{tmp_path}/"])
    main([*line, "--out", f"{tmp_path}/again/", "--batch-size", "1"])
    height, width = trained.case.image_size
    for number in range(2):
        image, again = (Image.open(tmp_path / f / f"{number:06d}.png") for f in (".", "again"))
        assert image.size == (width, height) and image.tobytes() == again.tobytes()
    main([*line[:-1], "--out", str(tmp_path / "bf16.png"), "--dtype", "bf16"])
    assert Image.open(tmp_path / "bf16.png").size == (width, height)


def test_it_is_evaluated(trained: Trained, tmp_path: Path) -> None:
    out, prompts = tmp_path / "report.json", tmp_path / "prompts.txt"
    prompts.write_text("\n".join(trained.case.prompts))
    asked = ("--prompts", str(prompts)) if trained.case.option == "--prompt" else ()
    main(
        ["evaluate", "generation", "--checkpoint", trained.generator, *trained.trust, *asked,
         "--reference", EMOJI_VAL, "--images", "70", "--extractor", "tests.metrics.pixels.Pixels",
         "--npz", str(tmp_path / "samples.npz"), "--cache", str(tmp_path), "--out", str(out)]
    )  # fmt: skip
    assert json.loads(out.read_text())["N"] == 70
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert images.shape == (70, *trained.case.image_size, 3)
    rebuilt = tmp_path / "rebuilt.json"
    size = [str(side) for side in trained.case.image_size]
    main(
        ["evaluate", "reconstruction", "--checkpoint", trained.tokenizer, *trained.trust,
         "--data", EMOJI_VAL, "--image-size", *size, "--lpips", "none",
         "--extractor", "tests.metrics.pixels.Pixels", "--out", str(rebuilt)]
    )  # fmt: skip
    assert json.loads(rebuilt.read_text())["N"] == 93


def test_images_go_through_it_and_are_completed(trained: Trained, tmp_path: Path) -> None:
    size = [str(side) for side in trained.case.image_size]
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(image_bytes(i, (140, 120)))
    images = [str(tmp_path / f"{i}.jpg") for i in range(2)]
    height, width = trained.case.image_size
    out = str(tmp_path / "pairs.png")
    main(
        ["reconstruct", *images, out, "--checkpoint", trained.tokenizer, *trained.trust,
         "--image-size", *size, "--lpips", "none"]
    )  # fmt: skip
    assert Image.open(out).width >= 2 * width and Image.open(out).height >= 2 * height
    if trained.case.layout[0] > 1:
        main(
            ["complete", images[0], out, "--checkpoint", trained.generator, *trained.trust,
             trained.case.option, trained.case.prompts[0], "--rows", "2", "--count", "2"]
        )  # fmt: skip
        assert Image.open(out).width >= 3 * width


def test_a_python_script_draws_it(trained: Trained) -> None:
    trust = trained.trust[1:]
    model = lgpl.load(trained.generator, device="cpu", trust=trust)
    images = model.draw(list(trained.case.prompts), seed=0, guidance=1.5)
    height, width = trained.case.image_size
    assert [image.size for image in images] == [(width, height)] * 2
    codes = model.tokenizer.encode(images[0])
    assert codes.shape == model.module.model.layout.shape
    assert model.tokenizer.decode(codes).size == (width, height)
    parts = list(model.stream(trained.case.prompts[0], partial=3, guidance=1.5))
    assert 1 < len(parts) <= 4 and parts[-1].tobytes() == images[0].tobytes()
    assert parts[0].tobytes() != parts[-1].tobytes()


def test_it_is_served(trained: Trained) -> None:
    module = load_generator(trained.generator, None, "cpu", trust=trained.trust[1:])
    height, width = trained.case.image_size
    with in_process(SamplerEngine(module)) as port:
        url = f"http://127.0.0.1:{port}/v1/images/generations"
        body: Config = {"prompt": trained.case.prompts[0], "seed": 0, "guidance": 1.5}
        answer = httpx.post(url, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        png = base64.b64decode(answer.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(png)).size == (width, height)
        streamed = httpx.post(url, json={**body, "stream": True, "partial_images": 2}, timeout=60)
        events = [json.loads(x[6:]) for x in streamed.text.splitlines() if x.startswith("data:")]
        kinds = [event["type"].rpartition(".")[2] for event in events]
        assert kinds[-1] == "completed" and 1 <= kinds.count("partial_image") <= 2
        assert base64.b64decode(events[-1]["b64_json"]) == png
        told = httpx.get(f"http://127.0.0.1:{port}/page/model", timeout=60).json()
        assert (told["height"], told["width"]) == (height, width) and told["label"]


def test_it_is_planned(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    for name, codes in (("tokenizer", 1), ("generator", 1)):
        main(["plan", "-c", trained.config(name), *trained.trust])
        said = capsys.readouterr().out
        rows, columns, depth = trained.case.layout
        assert f"{4 * rows * columns * depth * codes:,}\n" in said, said


def test_others_classes_need_trust(trained: Trained, fails: Callable[..., str]) -> None:
    if not trained.case.own:
        main(["export", trained.generator, "--out", str(trained.folder / "exported")])
        return
    sample = ("sample", "--checkpoint", trained.generator, "--out", "unwritten.png")
    said = fails(*sample, trained.case.option, trained.case.prompts[0])
    assert "names tests.contracts." in said and "--trust tests" in said
    with pytest.raises(UserError, match=r"names tests\.contracts"):
        lgpl.load(trained.generator, device="cpu")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield train(CASES["a decoder"], tmp_path_factory.mktemp("one"))


def test_the_command_serves_it(one: Trained) -> None:
    with serve(Path(one.generator), *one.trust) as server:
        answer = server.post({"prompt": "3", "n": 2})
        assert answer.status_code == 200 and len(answer.json()["data"]) == 2 and TOKEN


def fit(case: Case, one: Trained, **changes: Any) -> tuple[str, ...]:
    """A fit of a generator that does not fit to the tokenizer or the codes."""
    config = yaml.safe_load(Path(one.config("generator")).read_text())
    config["model"]["init_args"]["transformer"] = case.transformer
    config["model"]["init_args"] |= changes
    config["trainer"]["logger"]["init_args"]["name"] = "wrong"
    write(one.config("wrong"), config)
    return ("fit", "-c", one.config("wrong"), "--trust", "tests")


def test_what_does_not_fit_is_named(one: Trained, fails: Callable[..., str]) -> None:
    deep = replace(PLAIN, layout=(4, 4, 2))
    said = fails(*fit(deep, one))
    assert "4x4x2" in said and "the tokenizer has depth 1" in said
    wide = replace(PLAIN, layout=(4, 8, 1))
    said = fails(*fit(wide, one, tokenizer=None))
    assert "[4, 4, 1]" in said and "[4, 8, 1]" in said
    said = fails(*fit(replace(PLAIN, condition=entry("tests.contracts.OneRow")), one))
    assert "condition: " in said and "OneRow' to be a subclass of Condition" in said
    said = fails(*fit(replace(PLAIN, condition=MEANS), one))
    assert said == "data.fields lacks image, which MeanColours reads, got codes, class."
    raster = entry("lgpl.generator.Raster")
    said = fails(*fit(CASES["a model"], one, decoder=raster))
    assert said.startswith("model.decoder: Frequencies cannot serve Raster, which needs a")
