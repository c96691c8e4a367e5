"""Whatever the members of a sample hold, it becomes a good sample or is skipped and counted."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lgpl.cli import main
from lgpl.codes import CodeLayout
from lgpl.data.decode import Field, SampleDecoder
from lgpl.data.filters import Filter, JsonCondition
from lgpl.data.members import BadSample, guarded
from lgpl.data.order import Span
from lgpl.data.store import Store
from lgpl.data.streams import Chunk, ReadRequest, Samples
from lgpl.errors import UserError
from tests.shards import image_bytes, write_shard


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def sound(number: int, **members: bytes) -> dict[str, Any]:
    return {
        "__key__": f"{number:03d}",
        "jpg": image_bytes(number),
        "txt": b"a red fox",
        "cls": b"7",
        "codes.npy": npy(np.full((2, 2), 3, np.uint16)),
        "text.npy": npy(np.ones((3, 4), np.float16)),
        "json": b'{"width": 40, "height": 32, "score": 1.5, "alt": "a red fox"}',
        **members,
    }


def causes(chunk: Chunk) -> list[str]:
    return [cause for cause, _ in chunk.skipped]


def chunk(shard: str, decoder: SampleDecoder, count: int) -> Chunk:
    """All samples of a shard as a run decodes and collates them."""
    places = np.arange(count)
    none = np.zeros_like(places)
    return Samples([shard], decoder, Store())[ReadRequest(Span(none, none, places))]


def checked(shard: str, capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    """Causes that `lgpl data check` lists of a shard's second sample."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["data", "check", "--workers", "1", shard])
    lines = capsys.readouterr().out.splitlines()
    prefix = f"{shard}: 001: "
    return Counter(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


NOT_FINITE = "JSON with a number that no float64 holds, such as NaN or Infinity"
NO_PIXELS = "JSON in which the image's width and height are no pixels"
SURROGATE = "JSON with a lone surrogate, half a character, in a text"
NO_NPY = "codes that are no .npy array of numbers"
LARGE = Filter(min_side=8, max_aspect_ratio=3.0)
SCORED = Filter(json={"score": JsonCondition(min=0)})
HUGE_NPY = npy(np.zeros((2, 2), np.uint16)).replace(b"(2, 2)", b"(-2,2)")


def sizes(width: object, height: object = 32) -> dict[str, bytes]:
    text = width if isinstance(width, str) else json.dumps(width)
    return {"json": f'{{"width": {text}, "height": {json.dumps(height)}}}'.encode()}


def scores(text: str) -> dict[str, bytes]:
    return {"json": f'{{"score": {text}}}'.encode()}


CASES: list[tuple[Field, dict[str, bytes], dict[str, Any], str]] = [
    # members that end a run, or end it once they are in a batch
    ("class", {"cls": b"%d" % 2**70}, {}, "class outside 0 to 9223372036854775807"),
    ("class", {"cls": b"%d" % 2**63}, {}, "class outside 0 to 9223372036854775807"),
    ("class", {"cls": b"1" * 5000}, {}, "class that is no number"),
    ("class", {"cls": b"1e3"}, {}, "class that is no number"),
    (
        "codes",
        {"codes.npy": npy(np.full((2, 2), 2**63, np.uint64))},
        {},
        "codes outside 0 to 9223372036854775807",
    ),
    ("codes", {"codes.npy": HUGE_NPY}, {}, NO_NPY),
    (
        "codes",
        {"codes.npy": npy(np.zeros((1, 2**20 + 1), np.uint8))},
        {},
        "codes of uint8 1x1048577, more than 1048576",
    ),
    (
        "codes",
        {"codes.npy": npy(np.full((3, 2), 3, np.uint16))},
        {},
        "codes of 3x2 where the first sample's are 2x2",
    ),
    (
        "text",
        {"text.npy": npy(np.ones((3, 5), np.float16))},
        {},
        "text features of width 5 where the first sample's are 4",
    ),
    *(
        (
            "text",
            {"text.npy": npy(np.array([[0, 1, 2, value]], dtype))},
            {},
            "text features that are not finite",
        )
        for value, dtype in (
            (np.nan, np.float16), (np.inf, np.float32), (-np.inf, np.float16), (1e300, np.float64)
        )
    ),
    # numbers in the JSON
    *(
        ("codes", sizes(text), {"filter": LARGE}, NOT_FINITE)
        for text in ("Infinity", "-Infinity", "NaN", "1e999", str(10**400))
    ),
    *(
        ("codes", sizes(text, 2**40), {"filter": LARGE}, NO_PIXELS)
        for text in ("0", "-5", str(2**40), '"wide"', "[]", str(10**30))
    ),
    ("codes", sizes("1" * 5000), {"filter": LARGE}, "JSON that does not parse"),
    *(
        ("codes", scores(text), {"filter": SCORED}, NOT_FINITE)
        for text in ("Infinity", "NaN", "1e999", str(10**400), str(-(10**400)))
    ),
    ("codes", {"json": b"[" * 10**5}, {"filter": SCORED}, "JSON that does not parse"),
    (
        "codes",
        {"json": b'{"a": "' + b"x" * 2**22 + b'"}'},
        {"filter": SCORED},
        "JSON of more than 4194304 bytes",
    ),
    # captions
    ("caption", {"json": rb'{"alt": "a \ud83d fox"}'}, {"captions": {"json:alt": 1.0}}, SURROGATE),
    ("caption", {"txt": b"a" * 10001}, {}, "caption of more than 10000 characters"),
    (
        "caption",
        {"txt": b"&#" + b"1" * 5000 + b";"},
        {},
        "caption that cannot be cleaned of markup",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("field", "members", "options", "cause"), CASES)
def test_one_sample_never_ends_a_run_and_check_gives_its_cause(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    field: Field,
    members: dict[str, bytes],
    options: dict[str, Any],
    cause: str,
) -> None:
    path = write_shard(tmp_path / "a.tar", [sound(0), sound(1, **members), sound(2)])
    for augment in (False, True):
        found = chunk(path, SampleDecoder((field,), (16, 16), augment=augment, **options), 3)
        assert causes(found) == [cause] and found.unwanted == 0
        assert found.good == [0, 2] and found.batch and found.batch["key"] == ["000", "002"]
    assert checked(path, capsys)[cause] == 1
    main(["data", "show", path])
    shown = capsys.readouterr().out
    assert cause in shown or "first sample's" in cause  # arrays of other shapes are listed as such


def test_what_a_run_does_not_read_is_only_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """img2dataset leaves NaN in columns that nobody asks for."""
    json = b'{"width": 40, "height": 32, "score": 2, "exif": {"iso": [1, NaN]}}'
    path = write_shard(tmp_path / "a.tar", [sound(0), sound(1, json=json)])
    wanted = Filter(min_side=8, json={"score": JsonCondition(min=0)})
    assert chunk(path, SampleDecoder(("image", "codes"), (16, 16), filter=wanted), 2).good == [0, 1]
    assert checked(path, capsys) == {NOT_FINITE: 1}


def test_shapes_are_those_of_the_first_sample_of_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that all ranks and workers agree, wherever they begin to read."""
    other = {"codes.npy": npy(np.zeros((3, 3), np.uint16))}
    one = write_shard(tmp_path / "1.tar", [sound(0, cls=b"?"), sound(1)])
    two = write_shard(tmp_path / "2.tar", [sound(2, **other), sound(3), sound(4, **other)])
    samples = Samples([one, two], SampleDecoder(("codes",), (16, 16)), Store())
    shards, places = np.array([1, 1, 1, 0]), np.array([0, 1, 2, 0])
    found = samples[ReadRequest(Span(np.zeros(4, np.int64), shards, places))]
    assert found.good == [1, 3]
    assert causes(found) == ["codes of 3x3 where the first sample's are 2x2"] * 2
    with pytest.raises(SystemExit):
        main(["data", "check", "--workers", "1", one, two])
    said = capsys.readouterr().out
    assert f"{two}: codes of 3x3 where the first sample's are 2x2" in said
    # A model that names its grid has the last word.
    samples = Samples(
        [one, two], SampleDecoder(("codes",), (16, 16), layout=CodeLayout(3, 3)), Store()
    )
    assert samples[ReadRequest(Span(np.zeros(4, np.int64), shards, places))].good == [0, 2]


def test_members_named_like_what_lgpl_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tarfile

    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.__key__", b"b"), ("a.__shard__", b"b"), ("a.jpg", image_bytes(1))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert chunk(str(path), SampleDecoder(("image",), (16, 16)), 1).good == [0]
    main(["data", "check", "--workers", "1", str(path)])
    main(["data", "show", str(path), "--out", str(tmp_path / "sheet.png")])
    assert "1 samples: no faults" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, RecursionError, IndexError])
def test_exceptions_that_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(*_: object) -> None:
        raise error("no message of a codec's stands in the cause")

    monkeypatch.setattr("lgpl.data.decode.open_image", fails)
    path = write_shard(tmp_path / "a.tar", [sound(0)])
    cause = f"sample that does not decode ({error.__name__})"
    assert causes(chunk(path, SampleDecoder(("image",), (16, 16)), 1)) == [cause]


def test_mistakes_and_interrupts_are_nobodys_sample() -> None:
    for error in (
        UserError("a key"),
        KeyboardInterrupt("stop"),
        SystemExit(1),
        BadSample("a cause"),
    ):
        with pytest.raises(type(error), match=str(error)), guarded():
            raise error


def test_a_disk_that_gives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "a.tar", [sound(0)])
    samples = Samples([path], SampleDecoder(("image",), (16, 16)), Store())
    assert len(samples._open[path]) == 1

    def fails(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lgpl.data.shards.os.pread", fails)
    one = np.zeros(1, np.int64)
    assert causes(samples[ReadRequest(Span(one, one, one))]) == [
        "sample that cannot be read ([Errno 5] Input/output error)"
    ]
    found = Samples([path], SampleDecoder(("image",), (16, 16)), Store())[
        ReadRequest(Span(one, one, one))
    ]
    assert causes(found) == ["sample of a damaged or vanished shard"]
