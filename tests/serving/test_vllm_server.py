"""`lgpl serve --engine vllm` as a process of its own, with real clients over loopback."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lgpl.generator import Sampling, generate
from tests.conftest import ROOT
from tests.models import labels
from tests.serving.generators import MINILM, class_config, export_generator
from tests.serving.servers import LONG, Server, export, serve, wait_until
from tests.test_readme import SERVING, blocks, commands

pytestmark = pytest.mark.serving

VLLM = ("--engine", "vllm", "--vllm.dtype", "float32", "--vllm.enforce_eager", "true")
# Of one moment: every image another guidance, none another random number.
KINDS: list[dict[str, Any]] = [
    {},
    {"guidance": 2.5},
    {"guidance": 7.5},
    {"guidance": 4.0, "guidance_schedule": "linear"},
    {"guidance": 4.0, "guidance_schedule": "cosine", "guidance_start": 3},
    {"guidance": 4.0, "guidance_schedule": "power-cosine", "guidance_power": 1.5},
    {"guidance": 3.0, "guidance_steps": 7},
    {"guidance": 0.0},
]
PROMPTS = [
    *("a pizza", "an umbrella in the rain", "dog", "a red heart with an arrow through it"),
    *("the flag of Brazil", "night sky", "!", "a cat that laughs and cries and laughs again"),
]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = export(tmp_path_factory.mktemp("classes"))
    with serve(folder, *VLLM, "--batch-size", "5") as running:
        yield running


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(export(tmp_path_factory.mktemp("texts"), MINILM), *VLLM) as running:
        yield running


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Server]:
    few = ("--batch-size", "1", "--queue", "2")
    with serve(export(tmp_path, **LONG), *VLLM, *few) as running:
        yield running


def ask(server: Server, prompt: str, **fields: Any) -> bytes:
    answer = server.client().images.generate(prompt=prompt, extra_body=fields)
    assert answer.data
    return base64.b64decode(answer.data[0].b64_json or "")


def all_at_once(server: Server, prompts: list[str]) -> list[bytes]:
    with ThreadPoolExecutor(len(KINDS)) as pool:
        futures = [
            pool.submit(ask, server, prompt, temperature=0, **kind)
            for prompt, kind in zip(prompts, KINDS, strict=True)
        ]
        return [future.result() for future in futures]


def test_classes_of_every_guidance_in_one_batch(classes: Server) -> None:
    before = [classes.metric(f"lgpl_batch_images_{part}") for part in ("sum", "count")]
    pngs = all_at_once(classes, [str(i) for i in range(8)])
    for i, (png, kind) in enumerate(zip(pngs, KINDS, strict=True)):
        assert png == classes.offline(i, 0, Sampling(temperature=0, **kind))
    images, steps = (
        classes.metric(f"lgpl_batch_images_{part}") - was
        for part, was in zip(("sum", "count"), before, strict=True)
    )
    assert images / steps > 1.5  # lgpl's own engine takes one guidance a batch


def test_texts_of_every_guidance_in_one_batch(texts: Server) -> None:
    pngs = all_at_once(texts, PROMPTS)
    for prompt, png, kind in zip(PROMPTS, pngs, KINDS, strict=True):
        assert png == texts.offline(prompt, 0, Sampling(temperature=0, **kind))
    assert len(set(pngs)) == 8


def test_stream_fills_in(texts: Server) -> None:
    fields = {"seed": 9, "temperature": 0}
    stream = texts.client().images.generate(
        prompt="a dog", stream=True, partial_images=3, extra_body=fields
    )
    *partial, last = list(stream)
    assert [event.partial_image_index for event in partial] == [0, 1, 2]  # type: ignore[union-attr]
    assert base64.b64decode(last.b64_json) == texts.offline("a dog", 9, Sampling(temperature=0))
    rows = []
    for event in partial:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(event.b64_json))))
        rows.append(int((pixels != 128).any(axis=(1, 2)).sum()))
    assert rows == [8, 12, 16]  # of 24, the rest is grey


def test_seeds_repeat(classes: Server) -> None:
    answers = [
        classes.post({"prompt": "3", "seed": seed, "n": 2, "guidance": 2}).raise_for_status()
        for seed in (5, 5, 2**63 - 1)
    ]
    first, again, other = (
        [data["b64_json"] for data in answer.json()["data"]] for answer in answers
    )
    assert first == again and len({*first, *other}) == 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "10"}, "prompt"),
        ({"prompt": "1", "guidance": "much"}, "guidance"),
        ({"prompt": "1", "guidance_schedule": "steep"}, "guidance_schedule"),
        ({"prompt": "1", "size": "1024x1024"}, "size"),
        ({"prompt": "1", "n": 11}, "n"),
    ],
)
def test_bad_field_is_named(classes: Server, body: dict[str, Any], param: str) -> None:
    answer = classes.post(body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_long_prompt_is_refused(texts: Server) -> None:
    answer = texts.post({"prompt": "word " * 100})
    assert answer.status_code == 400 and "the limit is 24" in answer.json()["error"]["message"]
    assert texts.post({"prompt": "word " * 22}).status_code == 200


def test_leaving_frees_the_queue(slow: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        slow.post({"prompt": "1", "n": 2}, timeout=0.2)
    wait_until(lambda: slow.metric('lgpl_requests_total{status="499"}') == 1)
    with slow.client().images.generate(prompt="1", stream=True, partial_images=3) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"
    wait_until(lambda: slow.metric('lgpl_requests_total{status="499"}') == 2)
    assert slow.post({"prompt": "1"}).status_code == 200
    assert slow.metric("lgpl_images_total") == 1
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: slow.post({"prompt": "1"}).status_code, range(6)))
    assert set(answers) == {200, 429}


def test_sigterm_finishes_what_runs_and_waits(slow: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(ask, slow, str(i), temperature=0) for i in range(2)]
        wait_until(lambda: httpx.get(f"{slow.url}/health").json()["waiting"] == 1)
        slow.process.send_signal(signal.SIGTERM)
        pngs = [future.result() for future in futures]
    assert pngs == [slow.offline(i, 0, Sampling(temperature=0)) for i in range(2)]
    slow.process.wait(60)
    assert not any("Traceback" in line for line in slow.log)


@pytest.mark.parametrize("draws", [True, False])
def test_the_server_ends_with_vllm(slow: Server, draws: bool) -> None:
    """vLLM dies while it draws and others wait, or while it is idle."""
    import psutil

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(slow.post, {"prompt": "1"}) for _ in range(3 * draws)]
        if draws:
            wait_until(lambda: httpx.get(f"{slow.url}/health").json()["waiting"] == 2)
        for process in psutil.Process(slow.process.pid).children(recursive=True):
            process.kill()
        answers = [future.result(20) for future in futures]
    assert all(answer.status_code == 503 for answer in answers)
    assert all(answer.json()["error"]["code"] == "engine_ended" for answer in answers)
    assert slow.process.wait(60) == 1
    wait_until(lambda: "the engine has ended" in slow.log[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vllm.colour", "red"], "vLLM does not start: .*colour"),
        (["--vllm.tensor_parallel_size", "2"], "tensor_parallel_size .* must be 1"),
        (["--tokenizer", "nowhere"], "nowhere: no such checkpoint"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, fails: Callable[..., str], options: list[str], message: str
) -> None:
    output = fails("serve", *VLLM, "--checkpoint", str(export(tmp_path)), *options)
    assert re.search(message, output)


def test_a_training_checkpoint_must_be_exported(tmp_path: Path, fails: Callable[..., str]) -> None:
    folder = export(tmp_path)
    entry = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    state = {f"transformer.{name}": tensor for name, tensor in weights.items()}
    torch.save({"lgpl": entry, "state_dict": state}, tmp_path / "last.ckpt")
    output = fails("serve", *VLLM, "--checkpoint", str(tmp_path / "last.ckpt"))
    assert output.endswith(f"`lgpl export {tmp_path / 'last.ckpt'} --out FOLDER` does it.")


def test_the_readmes_command(tmp_path: Path) -> None:
    (command,) = [line for line in commands(SERVING) if "--engine vllm" in line]
    _, _, *options = shlex.split(command)
    at = options.index("--checkpoint")
    del options[at : at + 2]
    with serve(export(tmp_path), *options, "--vllm.enforce_eager", "true") as server:
        assert ask(server, "3", temperature=0, guidance=3)


def test_the_readmes_snippet(tmp_path: Path) -> None:
    (code,) = [block for block in blocks(SERVING, "python") if "import vllm" in block]
    model = export_generator(tmp_path / "exported/c2i_b", class_config(10))
    script = tmp_path / "script.py"
    script.write_text(f"{code}    import torch\n    torch.save(codes, 'codes.pt')\n")
    # All of the environment: without a PATH the compiler does not find its own parts.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"}
    run = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    sampling = Sampling(guidance=2.0, temperature=0)
    wanted = generate(model, labels(7, 3), sampling=sampling)
    assert torch.equal(torch.load(tmp_path / "codes.pt"), wanted)
