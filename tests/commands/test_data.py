"""`lgpl data index`, `show` and `check`: what is in shards, and what is wrong with it."""

from __future__ import annotations

import functools
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.cli import main
from lgpl.data import ShardDataModule
from lgpl.data.index import read_index
from lgpl.data.shards import read_shard
from lgpl.data.store import Store
from lgpl.data.transforms import to_image
from lgpl.training import load_module
from tests.conftest import ROOT, Chain
from tests.shards import EMOJI_TRAIN, EMOJI_VAL, image_bytes, samples, write_shard, write_shards

Fails = Callable[..., str]


def data(*args: object) -> None:
    main(["data", *map(str, args)])


def checked(*args: object) -> int:
    """Exit status of `lgpl data check`."""
    try:
        data("check", "--workers", 1, *args)
    except SystemExit as done:
        assert isinstance(done.code, int)
        return done.code
    return 0


# index


def test_index_moves_with_its_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "here", [3, 1, 2])
    data("index", tmp_path / "here/*.tar", "--out", tmp_path / "here/train.json")
    shutil.move(tmp_path / "here", tmp_path / "there")
    index = str(tmp_path / "there/train.json")
    assert list(read_index(index, Store()).values()) == [3, 1, 2]
    module = ShardDataModule(predict=index, image_size=32)
    module.setup("predict")
    assert sum(len(batch["key"]) for batch in module.predict_dataloader()) == 6


def test_index_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path / "shards", [3, 1])
    monkeypatch.chdir(tmp_path)
    data("index", "shards/*.tar", "--out", "lists/all.json")
    assert read_index("lists/all.json", Store()) == dict(zip(paths, [3, 1], strict=True))


def test_index_takes_the_statistics_that_img2dataset_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_shards(tmp_path, [3])
    Path(path.replace(".tar", "_stats.json")).write_text('{"count": 10, "successes": 3}')
    monkeypatch.setattr("lgpl.data.index.Shard", None)  # which would be read for its headers
    data("index", path, "--out", tmp_path / "index.json")
    assert read_index(str(tmp_path / "index.json"), Store()) == {path: 3}


def test_index_names_damaged_shards(
    tmp_path: Path, fails: Fails, caplog: pytest.LogCaptureFixture
) -> None:
    good, cut, empty = write_shards(tmp_path, [2, 4, 0])
    whole = Path(cut).read_bytes()
    Path(cut).write_bytes(whole[: len(whole) // 2])
    index = tmp_path / "index.json"
    with pytest.raises(SystemExit) as done:
        data("index", tmp_path / "*.tar", "--out", index)
    assert done.value.code == 1
    assert f"{cut} is damaged" in caplog.text and f"{empty} holds no samples" in caplog.text
    counts = read_index(str(index), Store())
    assert list(counts) == [good, cut] and counts[good] == 2
    assert "no sample to count" in fails("data", "index", empty, "--out", str(index))
    assert "must end in .json" in fails("data", "index", good, "--out", str(tmp_path / "a.txt"))
    assert "matches no file" in fails("data", "index", "nowhere/*.tar", "--out", str(index))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a folder on this machine's HTTP server."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_remote_shards(tmp_path: Path, served: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "served", [3, 2])
    store = ("--store.cache", tmp_path / "cache", "--store.retries", 0)
    index = tmp_path / "remote.json"
    data("index", f"{served}/{{0000..0001}}.tar", "--out", index, *store)
    counts = {f"{served}/0000.tar": 3, f"{served}/0001.tar": 2}
    assert read_index(str(index), Store()) == counts
    assert checked(index, *store) == 0
    assert shown(capsys, index, *store)["samples"] == "5, all looked at"
    assert checked(f"{served}/gone.tar", *store) == 1
    assert f"{served}/gone.tar: cannot be read" in capsys.readouterr().out


# check


def test_sound_shards_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(EMOJI_TRAIN, EMOJI_VAL) == 0
    assert capsys.readouterr().out == "5 shards, 1852 samples: no faults\n"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ({"jpg": image_bytes(1)[:-400]}, "image that does not decode"),
        ({"webp": b"RIFF"}, "image that does not decode"),
        ({"txt": "Füchse".encode("latin-1")}, "caption that is not UTF-8"),
        ({"short.txt": b""}, "empty caption"),
        ({"cls": b"fox"}, "class that is no number"),
        ({"cls": b"-1"}, "class outside 0 to"),
        ({"json": b"{"}, "JSON that does not parse"),
        ({"json": b"[" * 10**5}, "JSON that does not parse"),
        ({"json": b"[]"}, "JSON that is no object"),
        ({"codes.npy": b"\x93NUMPY"}, "codes that are no .npy array"),
        ({"codes.npy": npy(np.zeros((2, 2)))}, "codes that are no integers"),
        ({"codes.npy": npy(np.array([[{}]]))}, "codes that are no .npy array"),
        ({"text.npy": npy(np.zeros(3, np.float16))}, "text features that are no floats"),
        ({"short.text.npy": b"?"}, "text features that are no .npy array"),
        ({"pkl": b"cos\nsystem\n"}, "a pickle (.pkl), which lgpl never opens"),
        ({"features.pth": b""}, "a pickle (.features.pth)"),
    ],
)
def test_check_finds(
    tmp_path: Path, members: dict[str, bytes], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content: list[dict[str, Any]] = samples(3)
    content[1].update(members)
    path = write_shard(tmp_path / "a.tar", content)
    assert checked(path) == 1
    first, *_ = lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: 00001: {cause}")
    assert lines[1] == "1 shards, 3 samples: 1 faults" and len(lines) == 3


def test_check_finds_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_shard(tmp_path / "a.tar", [{"__key__": "a", "txt": b"a", "xml": b"<a/>"}])
    assert checked(path) == 1
    said = capsys.readouterr().out
    assert f"{path}: a: neither image nor codes" in said
    assert "1 samples hold a .xml, which nothing reads" in said
    assert checked(write_shard(tmp_path / "b.tar", [{**samples(1)[0], "xml": b""}])) == 0


def test_check_finds_damaged_shards_and_wrong_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, cut, empty = write_shards(tmp_path, [3, 4, 0])
    data("index", good, cut, "--out", tmp_path / "index.json")
    write_shard(Path(good), samples(2))
    whole = Path(cut).read_bytes()
    Path(cut).write_bytes(whole[: len(whole) // 2])
    assert checked(tmp_path / "index.json", empty) == 1
    said = capsys.readouterr().out
    assert f"{good}: 2 samples instead of 3" in said
    assert f"{cut}: cut off at byte {len(whole) // 2}" in said
    assert f"{empty}: 0 samples instead of 1" in said


def test_check_finds_keys_that_occur_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = (content[0] for content in (samples(1), samples(1, 1), samples(1, 2)))
    first = write_shard(tmp_path / "0.tar", [a, b, a])
    second = write_shard(tmp_path / "1.tar", [c, b])
    assert checked(first, second) == 1
    said = capsys.readouterr().out
    follow = "members of a sample must follow each other, as tar --sort=name does it"
    assert f"{first}: 00000: key of an earlier sample of its shard: {follow}\n" in said
    assert f"{second}: 00001: key of an earlier sample\n" in said
    assert "2 shards, 5 samples: 2 faults" in said


def test_check_finds_members_that_are_there_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tar"
    part = Path(write_shard(tmp_path / "b.tar", samples(2))).read_bytes()
    path.write_bytes(part * 2)
    assert checked(path) == 1
    assert "more behind its end mark at byte" in capsys.readouterr().out
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.txt", "a.txt"):
            data = image_bytes(0) if name.endswith("jpg") else b"a cat"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert checked(path) == 1
    assert f"{path}: a: member .txt that is there twice" in capsys.readouterr().out


def test_check_finds_members_that_no_run_would_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgpl.data.shards.LARGEST_MEMBER", 4000)
    sample = {**samples(1)[0], "txt": b"x" * 5000}
    path = write_shard(tmp_path / "a.tar", [sample])
    assert checked(path) == 1
    assert f"{path}: 00000: member .txt that is too large to be read" in capsys.readouterr().out


def test_check_by_several_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, [5] * 6)
    data("check", tmp_path / "*.tar", "--workers", 2)
    assert "6 shards, 30 samples: no faults" in capsys.readouterr().out


# show


def shown(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, str]:
    """Figures by their name."""
    capsys.readouterr()
    data("show", *args)
    lines = capsys.readouterr().out.splitlines()
    return {line[:22].strip(): line[22:] for line in lines if line[:22].strip()}


def test_figures_of_a_known_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: list[dict[str, Any]] = [
        {
            "__key__": str(i),
            "png" if i % 2 else "jpg": image_bytes(i, (20 + i, 40), "png" if i % 2 else "jpeg"),
            "txt": b"x" * (i + 1),
            "short.txt": b"s",
            "cls": b"%d" % (i % 3),
            "json": b'{"url": "a", "score": 1}' if i else b"{}",
            "codes.npy": npy(np.zeros((10, 1, 4, 4), np.uint16)),
            "text.npy": npy(np.zeros((5, 8), np.float16)),
            "xml": b"",
        }
        for i in range(9)
    ]
    content += [{"__key__": "bad", "jpg": b"x", "txt": b"long" * 100}]
    path = write_shard(tmp_path / "a.tar", content)
    figures = shown(capsys, path)
    assert figures["shards"] == f"1: {Path(path).stat().st_size / 1e6:.1f} MB"
    assert figures["samples"] == "10, all looked at"
    assert figures["images"] == "JPEG (5), PNG (4)"
    assert figures["width"] == "20 / 24 / 28 px" and figures["height"] == "40 / 40 / 40 px"
    assert figures["captions .txt"] == "9, 1 / 5 / 9 characters"
    assert figures["captions .short.txt"] == "9, 1 / 1 / 1 characters"
    assert figures["classes"] == "3, 0 to 2"
    assert figures["samples of each"] == "0 (3), 1 (3), 2 (3)"
    assert figures[".codes.npy"] == "uint16 [10, 1, 4, 4] (9)"
    assert figures[".text.npy"] == "float16 [5, 8] (9)"
    assert figures["JSON keys"] == "url (8), score (8)"
    assert figures["never read"] == ".xml (9)"
    data("show", path)
    assert f"none of JPEG, PNG, WEBP, GIF, such as bad in {path}" in capsys.readouterr().out


def test_show_looks_at_some_samples_of_some_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, [3] * 40)
    figures = shown(capsys, tmp_path / "*.tar", "--samples", 20)
    assert figures["shards"].startswith("32 of 40, spread evenly: ")
    assert figures["samples"] == "96, 20 looked at, spread evenly"
    assert figures["images"] == "JPEG (20)" and figures["broken"] == "nothing"


def test_show_tells_of_damaged_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(write_shard(tmp_path / "a.tar", samples(4)))
    path.write_bytes(path.read_bytes()[:9000])
    data("show", path)
    assert f"1: shard: cut off at byte 9000, such as {path}" in capsys.readouterr().out


def test_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheets/emoji.png"
    figures = shown(capsys, EMOJI_VAL, "--out", out)
    assert figures["contact sheet"] == str(out) and figures["samples"] == "93, all looked at"
    with Image.open(out) as image:
        assert image.width == 8 * (128 + 6) + 6 and len(image.getcolors(10**6) or []) > 1000


def test_what_show_cannot_do(fails: Fails, tmp_path: Path) -> None:
    codes = {"__key__": "a", "codes.npy": npy(np.zeros((2, 2), np.uint8))}
    path = write_shard(tmp_path / "codes.tar", [codes])
    assert "matches no file" in fails("data", "show", "nowhere/*.tar")
    assert "--samples must be >= 1, got 0" in fails("data", "show", path, "--samples", "0")
    assert "no ending of an image" in fails("data", "show", path, "--out", "sheet")
    assert "no sound image" in fails("data", "show", path, "--out", str(tmp_path / "a.png"))
    assert "--workers must be >= 1, got 0" in fails("data", "check", path, "--workers", "0")


def test_show_cuts_long_captions_and_prints_what_a_terminal_cannot_show(tmp_path: Path) -> None:
    content = samples(2)
    content[0]["txt"] = ("très long " * 100).encode()
    content[1]["txt"] = "第一行\nsecond line".encode()
    shard = write_shard(tmp_path / "a.tar", content)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "lgpl.cli", "data", "show", shard],
        capture_output=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    said = done.stdout.decode("ascii")
    assert done.returncode == 0 and "\\u7b2c\\u4e00\\u884c second line" in said
    (line,) = (line for line in said.splitlines() if "long" in line)
    assert line.count("long") == 20 and "\\u2026" in line


def test_codes_are_shown_through_their_tokenizer(
    chain: Chain, tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    out, shards = tmp_path / "sheet.png", f"{chain.codes}/val-*.tar"
    figures = shown(capsys, shards, "--tokenizer", chain.tokenizer, "--out", out)
    raws = [
        raw for path in sorted(Path(chain.codes).glob("val-*.tar")) for raw in read_shard(str(path))
    ]
    codes = [np.load(io.BytesIO(raw["codes.npy"])) for raw in raws]
    part = len(np.unique(codes)) / 64
    assert figures["codebook"].startswith(f"{part:.1%} of 64 codes in 93 samples, perplexity ")
    module = load_module(chain.tokenizer, "tokenizer")
    with torch.inference_mode():
        (first,) = module.autoencoder.decode(torch.from_numpy(codes[0][0].astype(np.int64)))
    expected = to_image(first).resize((128, 128), Image.Resampling.BICUBIC)
    with Image.open(out) as sheet:
        tile = sheet.crop((6, 6, 134, 134))
    assert np.array_equal(np.asarray(tile), np.asarray(expected))

    encoded = {"__key__": "a", "codes.npy": npy(np.full((2, 2), 64, np.uint8))}
    path = write_shard(tmp_path / "other.tar", [encoded, {**encoded, "__key__": "b"}])
    said = fails("data", "show", path, "--tokenizer", chain.tokenizer)
    assert said == "--tokenizer: no codes in the samples that were looked at."
    (tmp_path / "other_stats.json").write_text('{"successes": 2, "made_by": {"tokenizer": "abc"}}')
    said = fails("data", "show", path, "--tokenizer", chain.tokenizer)
    assert said.startswith(f"--tokenizer: {path} holds codes of the tokenizer abc, but ")
    assert "give --tokenizer" in fails("data", "show", shards, "--out", str(out))
