"""The files that images are sent as: formats, qualities and sizes, decoded and compared."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.servers import Server, export, serve

OWN = (24, 24)
EVERY = {
    "quality": ["auto", "low", "medium", "high", "standard", "hd"],
    "style": ["vivid", "natural"],
    "moderation": ["auto", "low"],
    "user": ["somebody"],
    "background": ["auto", "opaque"],
    "output_format": ["png"],
    "output_compression": [0, 100],
    "response_format": ["b64_json"],
    "size": ["auto", "24x24"],
    "model": ["generator"],
    "n": [1],
    "stream": [False],
    "partial_images": [0],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(export(tmp_path_factory.mktemp("square"), grid=[6, 6])) as running:
        yield running


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model whose images are 20 wide and 24 high."""
    with serve(export(tmp_path_factory.mktemp("other"))) as running:
        yield running


def ask(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.post({"prompt": "3", "seed": 4, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refusal(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.post({"prompt": "3", **body})
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"].endswith(".") and error["message"].count(". ") == 0  # one sentence
    return error


def opened(answer: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))


def offline(server: Server) -> Image.Image:
    return Image.open(io.BytesIO(server.offline(3, 4)))


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean over the pixels, from 0 to 255."""
    pixels = [np.asarray(image.convert("RGB")).astype(float) for image in (first, second)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


@pytest.mark.parametrize(("name", "value"), [(name, v) for name in EVERY for v in EVERY[name]])
def test_fields_of_openai_without_effect(server: Server, name: str, value: Any) -> None:
    answer = ask(server, **{name: value})
    assert base64.b64decode(answer["data"][0]["b64_json"]) == server.offline(3, 4)
    assert answer["quality"] == (value if name == "quality" else "auto")
    assert answer["background"] == "opaque" and answer["output_format"] == "png"


def test_null_is_the_default_of_every_field(server: Server) -> None:
    others = ("temperature", "top_k", "top_p", "guidance", "guidance_schedule")
    answer = ask(server, **dict.fromkeys([*EVERY, *others]))
    assert base64.b64decode(answer["data"][0]["b64_json"]) == server.offline(3, 4)
    assert server.post({"prompt": "3", "seed": None}).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quality", "best"),
        ("style", "plain"),
        ("moderation", "none"),
        ("background", "transparent"),
        ("output_format", "gif"),
        ("output_compression", 101),
        ("output_compression", -1),
        ("response_format", "file"),
        ("user", 3),
    ],
)
def test_other_values_are_refused(server: Server, name: str, value: Any) -> None:
    error = refusal(server, **{name: value})
    assert error["param"] == name and repr(value) in error["message"]


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_formats(server: Server, file_format: str) -> None:
    answer = ask(server, output_format=file_format, size="96x96")
    image = opened(answer)
    assert answer["output_format"] == file_format and image.format == file_format.upper()
    plain = offline(server).resize((96, 96), Image.Resampling.LANCZOS)
    most = {"png": 0, "jpeg": 2, "webp": 12}  # WebP halves the resolution of colours
    assert difference(image, plain) <= most[file_format]


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_compression_is_the_quality_of_a_format(server: Server, file_format: str) -> None:
    sizes, far = [], []
    for quality in (0, 50, 100):
        given = {"output_format": file_format, "output_compression": quality, "size": "240x240"}
        answer = ask(server, **given)
        sizes.append(len(answer["data"][0]["b64_json"]))
        plain = offline(server).resize((240, 240), Image.Resampling.LANCZOS)
        far.append(difference(opened(answer), plain))
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2
    assert far == sorted(far, reverse=True) and far[2] < far[0] / 2
    best = ask(server, output_format=file_format, size="240x240")
    assert len(best["data"][0]["b64_json"]) == sizes[2]  # 100 is the default


@pytest.mark.parametrize("size", ["auto", "24x24", "256x256", "1024x1024", "2048x2048", "8x8"])
def test_squares_by_lanczos(server: Server, size: str) -> None:
    answer = ask(server, size=size)
    wanted = OWN if size == "auto" else tuple(map(int, size.split("x")))
    assert answer["size"] == f"{wanted[0]}x{wanted[1]}" and answer["drawn_size"] == "24x24"
    image, plain = opened(answer), offline(server)
    assert image.size == wanted
    assert difference(image, plain.resize(wanted, Image.Resampling.LANCZOS)) == 0


@pytest.mark.parametrize(
    "size",
    ["2049x2049", "1792x1024", "24", "0x0", "-8x-8", "24x24x24", "big", "", "٢٤x٢٤", "024x024"],
)  # fmt: skip
def test_other_sizes_of_a_square_model(server: Server, size: str) -> None:
    error = refusal(server, size=size)
    accepted = "auto, 24x24 or any square up to 2048x2048"
    assert error["param"] == "size" and f"size must be {accepted}, got" in error["message"]


@pytest.mark.parametrize("size", ["20x24", "40x48", "10x12", "1700x2040", "5x6"])
def test_a_model_that_is_not_square_keeps_its_shape(wide: Server, size: str) -> None:
    answer = ask(wide, size=size)
    wanted = tuple(map(int, size.split("x")))
    assert answer["size"] == size and answer["drawn_size"] == "20x24"
    plain = offline(wide).resize(wanted, Image.Resampling.LANCZOS)
    assert difference(opened(answer), plain) == 0


@pytest.mark.parametrize("size", ["24x20", "1024x1024", "20x25", "1710x2052"])
def test_other_sizes_of_a_model_that_is_not_square(wide: Server, size: str) -> None:
    error = refusal(wide, size=size)
    assert error["param"] == "size" and "20x24" in error["message"]


def test_events_carry_the_form(server: Server) -> None:
    body = {"prompt": "3", "seed": 4, "stream": True, "partial_images": 2, "quality": "hd"}
    body |= {"output_format": "webp", "size": "48x48", "output_compression": 90}
    lines = server.post(body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [event["type"].rpartition(".")[2] for event in events] == [
        "partial_image", "partial_image", "completed",
    ]  # fmt: skip
    for event in events:
        said = [event[name] for name in ("output_format", "size", "drawn_size", "quality")]
        assert said == ["webp", "48x48", "24x24", "hd"]
        image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
        assert (image.format, image.size) == ("WEBP", (48, 48))
