"""The number of steps of a parallel generator wherever images are drawn, and its training by
command."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.cli import main
from lgpl.generator import Sampling
from lgpl.inference import load_generator
from lgpl.serving.api import create_app
from lgpl.serving.engine import ImageJob
from lgpl.serving.sampler import SamplerEngine
from tests.conftest import TINY, TINY_GENERATOR, Chain, logs, scalars
from tests.serving.servers import export, in_process
from tests.shards import EMOJI_VAL

PARALLEL = "configs/generator/parallel/emoji_parallel.yaml"


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One of 6x5 codes and ten classes, of random weights."""
    folder = tmp_path_factory.mktemp("parallel")
    return str(export(folder, model="ParallelTransformer", steps=7))


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export(tmp_path_factory.mktemp("raster")))


def drawn(checkpoint: str, out: Path, *options: str) -> Any:
    main(["sample", "--checkpoint", checkpoint, "--label", "3", "--out", str(out), *options])
    return np.asarray(Image.open(out))


def test_sample(parallel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {n: drawn(parallel, tmp_path / f"{n}.png", "--steps", n) for n in ("1", "7", "30")}
    assert "seed 0, steps 30" in capsys.readouterr().out
    own = drawn(parallel, tmp_path / "own.png")
    assert np.array_equal(own, images["7"])
    assert not np.array_equal(own, images["1"]) and not np.array_equal(own, images["30"])


def test_evaluate_sweeps_over_steps(parallel: str, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    main(
        ["evaluate", "generation", "--checkpoint", parallel, "--reference", EMOJI_VAL,
         "--images", "20", "--extractor", "tests.metrics.pixels.Pixels", "--cache", str(tmp_path),
         "--steps", "30", "2", "--out", str(out), "--npz", str(tmp_path / "a.npz")]
    )  # fmt: skip
    reports = json.loads(out.read_text())
    assert [one["steps"] for one in reports] == [30, 2]
    assert reports[0]["metrics"] != reports[1]["metrics"]
    assert len(list(tmp_path.glob("a-*.npz"))) == 2 and out.with_suffix(".png").exists()


def test_refused(parallel: str, raster: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = str(tmp_path / "a.png")
    reference = ("--reference", "nowhere.npz", "--out", str(tmp_path / "a.json"))
    for command in (("sample", "--label", "3", "--out", out), ("serve", "--port", "0")):
        for steps, checkpoint, said in (
            ("31", parallel, "steps must be from 1 to 30, the codes to draw, got 31"),
            ("0", parallel, "steps must be >= 1, got 0"),
            ("4", raster, "steps must be left out, got 4: Raster takes no number of steps."),
        ):
            asked = (*command, "--checkpoint", checkpoint, "--steps", steps)
            assert fails(*asked) == said
    # Before the reference is read.
    pixels = ("--extractor", "tests.metrics.pixels.Pixels")
    evaluate = ("evaluate", "generation", *reference, *pixels, "--checkpoint", parallel)
    assert fails(*evaluate, "--steps", "4", "31").startswith("steps must be from 1 to 30")
    assert not list(tmp_path.iterdir())


def test_served_to_everybody_at_once(parallel: str, raster: str) -> None:
    """Each image is the one of its own number of steps, in whatever batch."""
    module = load_generator(parallel, None, "cpu")
    engine = SamplerEngine(module, batch_size=4)
    with in_process(engine) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

        def ask(**body: Any) -> httpx.Response:
            return client.post("/v1/images/generations", json={"prompt": "3", **body}, timeout=60)

        alone = {n: ask(seed=5, steps=n).json()["data"][0]["b64_json"] for n in (1, 7, 30)}
        assert len({*alone.values()}) == 3
        assert ask(seed=5).json()["data"][0]["b64_json"] == alone[7]
        streamed = ask(seed=5, steps=30, stream=True, partial_images=3).text
        events = [json.loads(x[6:]) for x in streamed.splitlines() if x.startswith("data:")]
        assert len(events) == 4 and events[-1]["b64_json"] == alone[30]
        for steps, said in ((31, "from 1 to 30, the codes to draw, got 31"), (0, "got 0")):
            answer = ask(steps=steps)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["param"] == "steps"
            assert said in error["message"]
        assert client.get("/page/model").json()["steps"] == 30
    with in_process(SamplerEngine(load_generator(raster, None, "cpu"))) as port:
        url = f"http://127.0.0.1:{port}"
        body = {"prompt": "3", "steps": 4}
        answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "steps"
        assert httpx.get(f"{url}/page/model").json()["steps"] is None


def test_an_edit_has_no_more_steps_than_codes_to_draw(
    parallel: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Those that are meant for whole images become as many; others that were asked for do not."""
    image, wide = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    Image.effect_noise((20, 24), 90).convert("RGB").save(image)
    mask = Image.new("RGBA", (20, 24))
    mask.paste("black", (0, 0, 20, 20))  # five codes are left
    mask.save(tmp_path / "mask.png")
    engine = SamplerEngine(load_generator(parallel, None, "cpu"))
    app = create_app(engine, "generator", defaults=Sampling(steps=20))
    with in_process(engine, app=app) as port:

        def ask(**fields: str) -> httpx.Response:
            files = {"image": Path(image), "mask": tmp_path / "mask.png"}
            return httpx.post(
                f"http://127.0.0.1:{port}/v1/images/edits",
                files={name: path.read_bytes() for name, path in files.items()},
                data={"prompt": "3", "seed": "5", **fields},
                timeout=60,
            )

        own, most, fewer = (
            ask(**more).json()["data"] for more in ({}, {"steps": "5"}, {"steps": "1"})
        )
        assert own == most != fewer
        refused = ask(steps="6").json()["error"]
        assert (
            refused["param"] == "steps" and "from 1 to 5, the codes to draw" in refused["message"]
        )
    edit = ("edit", image, wide, "--checkpoint", parallel, "--label", "3", "--mask", "0,20,20,24")
    main([*edit, "--steps", "5"])
    said = "steps must be from 1 to 5, the codes to draw, got 6"
    assert said in fails(*edit, "--steps", "6")
    assert Sampling(steps=20).within(5).steps == 5 and Sampling().within(5).steps is None


def test_images_of_fewer_steps_are_whole_first(parallel: str) -> None:
    """Of those that were asked for together, each the one that it is alone."""
    engine = SamplerEngine(load_generator(parallel, None, "cpu"), batch_size=4)
    prompt, shown, done = engine.prepare("3"), list[tuple[int, Any]](), threading.Semaphore(0)

    def see(steps: int, file: Any, is_whole: bool) -> None:
        shown.append((steps, file))
        done.release()

    def ask(*numbers: int) -> list[tuple[int, Any]]:
        shown.clear()
        jobs = [ImageJob(prompt, Sampling(steps=n), 5, 0, partial(see, n)) for n in numbers]
        engine.queue.put(jobs)
        for _ in numbers:
            assert done.acquire(timeout=60)
        return [*shown]

    together = ask(30, 2, 7, 2)
    assert [steps for steps, _ in together] == [2, 2, 7, 30]
    assert together[1:] == [*ask(2), *ask(7), *ask(30)]
    engine.close()


def fit(folder: Path, chain: Chain, epochs: int, *options: str) -> Path:
    """Two optimizer steps an epoch of the emoji's recipe, tiny; gives the checkpoint."""
    main(
        ["fit", "-c", PARALLEL, *TINY, *TINY_GENERATOR, *logs(folder),
         "--data.train", f"{chain.codes}/train-*.tar", "--data.val", f"{chain.codes}/val-*.tar",
         "--data.batch_size", "8", "--data.epoch_samples", "16",
         "--trainer.max_epochs", str(epochs), "--model.init_args.tokenizer", chain.tokenizer,
         *options]
    )  # fmt: skip
    return folder / "parallel/checkpoints/last.ckpt"


def test_fits_and_goes_on_exactly(chain: Chain, tmp_path: Path) -> None:
    """A run that was stopped after an epoch ends with the same weights to the bit."""
    whole = fit(tmp_path / "whole", chain, 2)
    figures = scalars(tmp_path / "whole/parallel")
    assert {"val/loss", "val/samples", "train/gradient_norm"} <= figures.keys()
    stopped = fit(tmp_path / "stopped", chain, 1)
    halfway = torch.load(stopped, weights_only=True)["state_dict"]
    again = fit(tmp_path / "stopped", chain, 2, "--ckpt_path", "last")
    first, second = (torch.load(path, weights_only=True) for path in (whole, again))
    assert first["global_step"] == second["global_step"] == 4
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name])
    assert any(not torch.equal(t, halfway[n]) for n, t in first["state_dict"].items())
