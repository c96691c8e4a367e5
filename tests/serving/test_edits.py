"""Edits and variations of images by the OpenAI images API: what is drawn, kept and refused."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from lgpl.data.transforms import to_image
from lgpl.generator import Sampling
from lgpl.inference import editing, load_generator
from lgpl.serving import limits, sampler
from lgpl.serving.api import create_app
from lgpl.serving.edits import Files
from lgpl.serving.engine import ImageJob
from lgpl.serving.limits import LARGEST_FORM, Limits
from lgpl.serving.sampler import SamplerEngine
from tests.commands.test_edit import header
from tests.models import labels
from tests.serving.generators import EVEN_FIRST
from tests.serving.servers import TOKEN, Server, export, in_process, serve
from tests.shards import image_bytes

WIDTH, HEIGHT = 20, 24  # pixels; 6x5 codes of 4 a side
TAIL, HOLE = (0, 12, 20, 24), (8, 8, 16, 16)
Form = dict[str, Any]


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamplerEngine]:
    """Draws in an order that is no raster."""
    checkpoint = export(tmp_path_factory.mktemp("free"), decoder=EVEN_FIRST)
    engine = SamplerEngine(load_generator(str(checkpoint), None, "cpu", trust=["tests"]))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: SamplerEngine) -> Iterator[str]:
    with in_process(engine, Limits(token=TOKEN)) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as made:
        yield made


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(scale: int = 1, seed: int = 3) -> Image.Image:
    size = (scale * WIDTH, scale * HEIGHT)
    return Image.open(io.BytesIO(image_bytes(seed, size, "png"))).convert("RGB")


def mask(*box: int, scale: int = 1) -> bytes:
    image = Image.new("RGBA", (scale * WIDTH, scale * HEIGHT), "black")
    image.paste((0, 0, 0, 0), tuple(scale * side for side in box))
    return png(image)


def opened(item: Any) -> Image.Image:
    """Of an answer's data, or of an event."""
    text = item.b64_json if hasattr(item, "b64_json") else item["b64_json"]
    return Image.open(io.BytesIO(base64.b64decode(text)))


def offline(
    engine: SamplerEngine, seed: int, box: editing.Box, scale: int = 1, sampling: Any = Sampling()
) -> np.ndarray:
    """The edit of the photograph without a server, in the photograph's size."""
    hole = Image.new("L", (scale * WIDTH, scale * HEIGHT))
    hole.paste(255, tuple(scale * side for side in box))  # type: ignore[arg-type]
    edit = editing.edit(engine.module, photograph(scale), hole)
    codes = engine.module.sample_codes(labels(7), sampling, [seed], given=edit.given[None])
    return np.asarray(edit.over(to_image(engine.module.decode(codes)[0])))


def send(url: str, route: str, files: Form, token: str = TOKEN, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
    return httpx.post(f"{url}/images/{route}", files=files, headers=headers, timeout=60, **options)


def test_edits_of_the_openai_client(client: openai.OpenAI, engine: SamplerEngine) -> None:
    """Every field that its signature has; images of the seeds, as the sampler alone draws them."""
    answer = client.images.edit(
        image=("photo.png", png(photograph(4))), mask=("mask.png", mask(*TAIL, scale=4)),
        prompt="7", n=2, size="80x96", model="generator", background="opaque",
        input_fidelity="high", output_format="png", output_compression=100, quality="high",
        response_format="b64_json", user="somebody",
        extra_body={"seed": 5, "guidance": 2.0, "top_k": 20},
    )  # fmt: skip
    assert answer.data and len(answer.data) == 2 and answer.size == "80x96"
    for seed, item in zip((5, 6), answer.data, strict=True):
        wanted = offline(engine, seed, TAIL, 4, Sampling(2.0, top_k=20))
        assert (np.asarray(opened(item)) == wanted).all()
    assert (np.asarray(opened(answer.data[0]))[:48] == np.asarray(photograph(4))[:48]).all()


def test_an_edit_of_any_part(free: SamplerEngine) -> None:
    """By a decoder of any order: the middle, and nothing else, changes."""
    with in_process(free) as port, openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none"
    ) as client:  # fmt: skip
        answer = client.images.edit(
            image=[png(photograph())], mask=mask(*HOLE), prompt="7", extra_body={"seed": 5}
        )
    assert answer.data
    after, before = (np.asarray(image) for image in (opened(answer.data[0]), photograph()))
    assert (after == offline(free, 5, HOLE)).all()
    hole = np.zeros((HEIGHT, WIDTH), bool)
    hole[HOLE[1] : HOLE[3], HOLE[0] : HOLE[2]] = True
    assert (after[~hole] == before[~hole]).all() and (after[hole] != before[hole]).any()


def test_the_transparent_part_of_an_image_is_its_mask(
    client: openai.OpenAI, engine: SamplerEngine
) -> None:
    clear = photograph().convert("RGBA")
    clear.paste((0, 0, 0, 0), TAIL)
    answer = client.images.edit(image=png(clear), prompt="7", extra_body={"seed": 5})
    assert answer.data
    after = np.asarray(opened(answer.data[0]))
    assert (after[:12] == np.asarray(photograph())[:12]).all()
    assert (after[15:] != np.asarray(photograph())[15:]).any()


def test_a_stream_of_an_edit(client: openai.OpenAI, engine: SamplerEngine) -> None:
    """Previews come while what is drawn grows, and keep what is kept."""
    stream = client.images.edit(
        image=png(photograph()), mask=mask(*TAIL), prompt="7", stream=True, partial_images=3,
        extra_body={"seed": 5},
    )  # fmt: skip
    *partial, last = list(stream)
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 3
    assert last.type == "image_edit.completed"
    assert (np.asarray(opened(last)) == offline(engine, 5, TAIL)).all()
    kept, grey = np.asarray(photograph())[:12], []
    for event in partial:
        pixels = np.asarray(opened(event))
        assert (pixels[:12] == kept).all()
        grey.append(int((pixels[15:] == 128).all(-1).sum()))  # what is still to come
    assert grey == sorted(grey, reverse=True) and grey[0] > grey[2] > 0


def test_variations_of_the_openai_client(client: openai.OpenAI, engine: SamplerEngine) -> None:
    """By raster order the second half of the codes is drawn, without a prompt."""
    source, module = png(photograph()), engine.module
    answer = client.images.create_variation(
        image=source, n=2, size="20x24", response_format="b64_json", user="somebody",  # type: ignore[arg-type]
        extra_body={"seed": 5},
    )  # fmt: skip
    given = editing.codes_of(module, photograph())
    given[15:] = -1
    assert answer.data and len(answer.data) == 2
    for seed, item in zip((5, 6), answer.data, strict=True):
        codes = module.sample_codes(labels(10), Sampling(), [seed], given=given[None])
        assert (np.asarray(opened(item)) == np.asarray(to_image(module.decode(codes)[0]))).all()
    prompted = client.images.create_variation(image=source, extra_body={"seed": 5, "prompt": "7"})
    assert prompted.data and prompted.data[0].b64_json != answer.data[0].b64_json


def test_a_variation_by_any_order_keeps_a_random_half(free: SamplerEngine) -> None:
    codes = editing.codes_of(free.module, photograph())
    first, second = free.vary(Files(io.BytesIO(IMAGE), None), [0, 1])
    (again,) = free.vary(Files(io.BytesIO(IMAGE), None), [0])
    assert torch.equal(first, again) and not torch.equal(first >= 0, second >= 0)
    for given in (first, second):
        assert int((given < 0).sum()) == 15 and torch.equal(given[given >= 0], codes[given >= 0])
        assert (given < 0)[:15].any() and (given < 0)[15:].any()


FRAMES = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
MOVES = png(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
OPAQUE = png(Image.new("RGB", (WIDTH, HEIGHT), "white"))
STILL = png(FRAMES[0], "GIF")
IMAGE = png(photograph())
GOOD: Form = {"image": IMAGE, "mask": mask(*TAIL), "prompt": "7"}
GOOD_FILES: Form = {
    "image": ("a.png", IMAGE), "mask": ("m.png", GOOD["mask"]), "prompt": (None, "7"),
}  # fmt: skip
ALLOWED = "https://app.example.org"


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"mask": None}, "mask", "it must be given for an image without a transparent part"),
        ({"mask": mask(*HOLE)}, "mask", "all that follows its first code (row 3, column 3 of 6x5)"),
        ({"mask": mask(0, 0, 0, 0)}, "mask", "the mask has no hole"),
        ({"mask": OPAQUE}, "mask", "no hole: what is to be drawn must be transparent in it"),
        ({"mask": mask(*TAIL, scale=2)}, "mask", "as large as the image, 20x24, got 40x48"),
        ({"mask": b"no image"}, "mask", "none of JPEG, PNG, WEBP, GIF"),
        ({"mask": MOVES}, "mask", "an animation, where one still image is wanted"),
        ({"mask": header(20000, 10000)}, "mask", "more than 67108864 pixels"),
        ({"image": None}, "image", "one file is needed, got '0 files'"),
        ({"image": b""}, "image", "none of JPEG, PNG, WEBP, GIF"),
        ({"image": IMAGE[:60]}, "image", "damaged"),
        ({"image": STILL[:-1] + b","}, "image", "damaged"),
        ({"image": MOVES}, "image", "an animation, where one still image is wanted"),
        ({"image": header(20000, 10000)}, "image", "more than 67108864 pixels"),
        ({"image": "a text"}, "image", "a file is needed, got 'a text'"),
        ({"prompt": None}, "prompt", "prompt"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": "a dog"}, "prompt", "'a dog' is no class"),
        ({"prompt": b"a file"}, "prompt", "text is needed, got 'a file'"),
        ({"n": "11"}, "n", "<= 10"),
        ({"n": "many"}, "n", "valid integer, unable to parse string as an integer, got 'many'"),
        ({"n": "2", "stream": "true"}, "n", "1 for a stream"),
        ({"size": "21x24"}, "size", "auto, 20x24"),
        ({"seed": "-1"}, "seed", "greater than or equal to 0"),
        ({"guidance": "nan"}, "guidance", "finite"),
        ({"stream": "perhaps"}, "stream", "valid boolean"),
        ({"input_fidelity": "none"}, "input_fidelity", "'low' or 'high'"),
        ({"colour": "red"}, "colour", "Extra inputs"),
        ({"model": "dall-e-2"}, "model", "generator"),
    ],
)
def test_what_is_wrong_with_a_form_is_named(url: str, changes: Form, param: str, said: str) -> None:
    form = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    files = {k: (f"{k}.bin", v) if isinstance(v, bytes) else (None, v) for k, v in form.items()}
    answer = send(url, "edits", files)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert said in error["message"] and error["type"] == "invalid_request_error", error


def test_one_image_is_edited(url: str) -> None:
    files = [("image[]", ("a.png", IMAGE)), ("image[]", ("b.png", IMAGE)), ("prompt", (None, "7"))]
    error = send(url, "edits", files).json()["error"]  # type: ignore[arg-type]
    assert error["param"] == "image" and "one file is needed, got '2 files'" in error["message"]
    error = send(url, "variations", GOOD_FILES).json()["error"]
    assert error["param"] == "mask" and "no file is needed" in error["message"]
    many = [("image", (f"{i}.png", b"")) for i in range(40)]
    answer = send(url, "edits", many)  # type: ignore[arg-type]
    assert answer.status_code == 400 and "Too many files" in answer.json()["error"]["message"]


def test_bodies_that_are_no_forms(url: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for route in ("edits", "variations"):
        address = f"{url}/images/{route}"
        assert httpx.post(address, json={"prompt": "7"}, headers=headers).status_code == 415
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
            typed = {**headers, "Content-Type": kind}
            answer = httpx.post(address, content=b"--x\r\nno form", headers=typed)
            assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_the_token_is_asked_for_before_the_body_is_read(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or anybody could have the server keep 50 MiB."""

    async def one(token: str) -> httpx.Response:
        app = create_app(engine, "generator", limits=Limits(token=TOKEN))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"Authorization": f"Bearer {token}"}
            content = {"image": IMAGE, "mask": bytes(3000)}
            return await client.post("/v1/images/edits", files=content, headers=headers)

    monkeypatch.setattr(limits, "LARGEST_FORM", 2000)
    assert asyncio.run(one("wrong")).status_code == 401
    answer = asyncio.run(one(TOKEN))
    assert answer.status_code == 413 and "at most 2000 bytes" in answer.json()["error"]["message"]
    assert LARGEST_FORM == 50 * 2**20


def test_uploads_share_a_bounded_room(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or clients that never finish would fill the disk; what one held, the next may."""
    url, files = "/v1/images/edits", {"other": IMAGE}
    whole = httpx.Request("POST", f"http://localhost{url}", files=files)
    monkeypatch.setattr(limits, "HELD_FORMS", len(whole.read()) + 100)

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(create_app(engine, "generator"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            leave, arrived = asyncio.Event(), asyncio.Event()

            async def body() -> AsyncIterator[bytes]:
                yield whole.read()[:-1]
                arrived.set()
                await leave.wait()
                yield whole.read()[-1:]

            slow = client.post(url, content=body(), headers=whole.headers)
            first = asyncio.create_task(slow)
            await arrived.wait()
            second = await client.post(url, files=files)
            leave.set()
            answers = [second, await first, await client.post(url, files=files)]
            return [answer.status_code for answer in answers]

    assert asyncio.run(statuses()) == [429, 400, 400]  # there is no field `other`


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://behind.a.proxy", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": ALLOWED, "Sec-Fetch-Site": "cross-site"}, 200),
    ],
)
def test_pages_of_other_sites_may_not_send_forms(
    engine: SamplerEngine, headers: dict[str, str], status: int
) -> None:
    """Browsers send them without a preflight."""
    app = create_app(engine, "generator", limits=Limits(origins=frozenset([ALLOWED])))

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/images/edits", files=GOOD_FILES, headers=headers)

    answer = asyncio.run(one())
    assert answer.status_code == status, answer.text
    assert status == 200 or "--cors-origin" in answer.json()["error"]["message"]


def test_an_engine_of_whole_images_refuses(
    url: str, engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SamplerEngine, "masks", property(lambda _: "none"))
    monkeypatch.setattr(SamplerEngine, "prepare", lambda *_: 1 / 0)  # not even asked
    for route in ("edits", "variations"):
        files = dict(GOOD_FILES)
        if route == "variations":
            del files["mask"]
        error = send(url, route, files).json()["error"]
        assert error["param"] == "image" and "draws whole images only" in error["message"]
    assert httpx.get(url.replace("/v1", "/page/model")).json()["masks"] == "tail"


def test_images_that_know_different_codes_are_drawn_at_once(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the one that it is alone; those that know as many begin together."""
    groups: list[int] = []
    codes = editing.codes_of(engine.module, photograph())
    gate, done = threading.Event(), threading.Semaphore(0)
    shown: dict[int, bytes | BaseException] = {}

    class Counted(sampler.Group):
        def __init__(self, module: Any, jobs: list[ImageJob]) -> None:
            assert gate.wait(30)
            groups.append(len(jobs))
            super().__init__(module, jobs)

    def job(number: int, known: int | None) -> ImageJob:
        given = None
        if known is not None:
            given = codes.clone()
            given[known:] = -1

        def show(image: bytes | BaseException, is_complete: bool) -> None:
            shown[number] = image
            done.release()

        return ImageJob(engine.prepare("7"), Sampling(), number, 0, show, given=given)

    def draw(jobs: list[ImageJob]) -> list[bytes | BaseException]:
        engine.queue.put(jobs)
        for _ in jobs:
            assert done.acquire(timeout=60)
        return [shown.pop(job.seed) for job in jobs]

    known = [None, 10, 0, 20, 10, None]
    alone = [draw([job(i, number)])[0] for i, number in enumerate(known)]
    monkeypatch.setattr(sampler, "Group", Counted)
    first = job(99, None)
    engine.queue.put([first])  # holds the engine while the others come to wait together
    jobs = [job(i, number) for i, number in enumerate(known)]
    engine.queue.put(jobs)
    gate.set()
    for _ in range(7):
        assert done.acquire(timeout=60)
    assert [shown[job.seed] for job in jobs] == alone
    assert len(set(map(bytes, alone))) == 6  # type: ignore[arg-type]
    assert sorted(groups) in ([1, 1, 2, 3], [1, 2, 4])  # whether the first came alone


@pytest.mark.slow
def test_many_edits_at_once(tmp_path: Path) -> None:
    """64 connections, edits and variations and new images: no answer is lost or mixed up."""
    with serve(export(tmp_path), "--batch-size", "16", "--queue", "128") as server:
        module = server.module

        def ask(i: int) -> bytes:
            with server.client() as client:
                seeded = {"extra_body": {"seed": i}}
                source = png(photograph(seed=i % 5))
                if i % 3 == 0:
                    box = (0, 4 * (i % 5 + 1), WIDTH, HEIGHT)
                    answer = client.images.edit(
                        image=source, mask=mask(*box), prompt=str(i % 10), **seeded
                    )
                elif i % 3 == 1:
                    answer = client.images.create_variation(image=source, **seeded)
                else:
                    answer = client.images.generate(prompt=str(i % 10), **seeded)
            assert answer.data
            return base64.b64decode(answer.data[0].b64_json or "")

        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(ask, range(192)))
        for i, answer in enumerate(answers):
            assert answer == expected(server, module, i), i


def expected(server: Server, module: Any, i: int) -> bytes:
    """What the sampler alone draws, with the server's one thread."""
    if i % 3 == 2:
        return server.offline(i % 10, i)
    threads, source = torch.get_num_threads(), photograph(seed=i % 5)
    torch.set_num_threads(1)
    try:
        hole = Image.new("L", (WIDTH, HEIGHT))
        hole.paste(255, (0, 4 * (i % 5 + 1), WIDTH, HEIGHT))
        edit = editing.edit(module, source, hole)
        given = edit.given
        if i % 3 == 1:
            given = editing.codes_of(module, source)
            given[15:] = -1
        label = labels(i % 10 if i % 3 == 0 else 10)
        codes = module.sample_codes(label, Sampling(), [i], given=given[None])
        image = to_image(module.decode(codes)[0])
    finally:
        torch.set_num_threads(threads)
    return png(edit.over(image) if i % 3 == 0 else image)
