"""`lgpl data pack`: class folders and captioned images become shards."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lgpl.cli import main
from lgpl.commands.data.pack import unique_key
from lgpl.commands.data.processes import in_processes
from lgpl.data import ShardDataModule
from lgpl.data.index import read_index
from lgpl.data.shards import read_shard
from lgpl.data.store import Store
from lgpl.data.writer import ShardWriter
from lgpl.errors import UserError
from tests.conftest import ROOT
from tests.shards import image_bytes, samples, write_shard

Fails = Callable[..., str]
KINDS = {"jpg": "jpeg", "JPEG": "jpeg", "png": "png", "webp": "webp"}


def pack(source: Path, out: Path, *options: object) -> None:
    main(["data", "pack", str(source), "--out", str(out), "--workers", "1", *map(str, options)])


def class_folder(folder: Path, counts: dict[str, int]) -> dict[str, bytes]:
    """Images of four formats, one folder a class; gives their bytes by key."""
    found = {}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            extension, kind = list(KINDS.items())[i % len(KINDS)]
            content = image_bytes(zlib.crc32(f"{name} {i}".encode()), kind=kind)
            (folder / name / f"{i}.{extension}").write_bytes(content)
            found[f"{name}_{i}"] = content
    return found


def packed(out: Path, split: str) -> dict[str, dict[str, bytes]]:
    """Members of each sample of a split, found by its index."""
    shards = read_index(str(out / f"{split}.json"), Store())
    found: dict[str, dict[str, bytes]] = {}
    for path, number in shards.items():
        raws = list(read_shard(path))
        assert len(raws) == number
        found |= {raw["__key__"]: {k: v for k, v in raw.items() if k[0] != "_"} for raw in raws}
    return found


def captions(out: Path) -> dict[str, str]:
    return {key: members["txt"].decode() for key, members in packed(out, "train").items()}


def test_class_folder_becomes_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = class_folder(tmp_path / "in", {"n02": 30, "n01": 30, "n03": 30})
    (tmp_path / "in/n01/broken.jpg").write_bytes(image_bytes(1, (400, 300))[:-300])
    (tmp_path / "in/n01/old.gif").write_bytes(image_bytes(1, kind="gif"))
    (tmp_path / "in/n01/.hidden.jpg").write_bytes(b"")
    (tmp_path / "in/n01/notes.md").write_text("nobody's business")
    (tmp_path / "in/loose.jpg").write_bytes(image_bytes(1))
    out = tmp_path / "out"
    pack(tmp_path / "in", out, "--shard-samples", 20, "--val", 0.2)
    said = capsys.readouterr().out
    assert "skipped 1: image that does not decode: damaged, such as n01/broken.jpg" in said
    assert "skipped 1: .gif is none of .jpg .jpeg .png .webp, such as n01/old.gif" in said
    assert "skipped 1: image outside of the class folders, such as loose.jpg" in said
    assert f"data.train: {out}/train.json" in said
    assert "hidden" not in said and "notes" not in said

    train, val = packed(out, "train"), packed(out, "val")
    assert len(train) + len(val) == 90 and not train.keys() & val.keys() and 17 <= len(val) <= 18
    for key, members in (train | val).items():
        (name,) = members.keys() - {"cls"}
        assert name in ("jpg", "jpeg", "png", "webp") and members[name] == wanted[key]
        assert int(members["cls"]) == ["n01", "n02", "n03"].index(key[:3])
    assert (out / "classes.txt").read_text().split() == ["n01", "n02", "n03"]
    for path in out.glob("train-*.tar"):  # every shard is a mixture
        assert {raw["cls"] for raw in read_shard(str(path))} == {b"0", b"1", b"2"}
    assert not list(out.glob("*.partial"))

    module = ShardDataModule(
        train=str(out / "train.json"),
        val=str(out / "val.json"),
        fields=("image", "class"),
        image_size=32,
        batch_size=8,
        epoch_samples=len(train) // 8 * 8,
    )
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert batches[0]["image"].shape == (8, 3, 32, 32)
    labels = {k: int(c) for b in batches for k, c in zip(b["key"], b["class"], strict=True)}
    assert labels and all(labels[key] == int(train[key]["cls"]) for key in labels)
    assert sum(int(batch["valid"].sum()) for batch in module.val_dataloader()) == len(val)


def test_the_same_command_gives_the_same_shards_another_seed_others(tmp_path: Path) -> None:
    class_folder(tmp_path / "in", {"a": 12, "b": 12})
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        pack(tmp_path / "in", tmp_path / name, "--seed", seed, "--val", 4)
    one, two, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.tar")}
        for name in ("one", "two", "other")
    )
    assert one == two and one != other
    assert len(packed(tmp_path / "one", "val")) == 4
    assert packed(tmp_path / "one", "val").keys() != packed(tmp_path / "other", "val").keys()


def test_a_size_limits_shards_too(tmp_path: Path) -> None:
    folder = tmp_path / "in/a"
    folder.mkdir(parents=True)
    for i in range(6):
        noise = np.random.RandomState(i).randint(0, 256, (400, 500, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")  # 600 kB
    pack(tmp_path / "in", tmp_path / "out", "--shard-mb", 2, "--val", 0)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("train-*.tar")]
    assert len(sizes) == 2 and max(sizes) < 2e6
    assert not (tmp_path / "out/val.json").exists()


def test_held_out_folder_keeps_the_classes_of_the_training_folder(
    tmp_path: Path, fails: Fails
) -> None:
    class_folder(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    class_folder(tmp_path / "val", {"a": 2, "c": 2})
    pack(tmp_path / "train", tmp_path / "out", "--val", tmp_path / "val")
    val = packed(tmp_path / "out", "val")
    # Both folders hold an a/0.jpg.
    assert {key: members["cls"] for key, members in val.items()} == {
        "a_0_2": b"0", "a_1_2": b"0", "c_0_2": b"2", "c_1_2": b"2",
    }  # fmt: skip
    assert len(packed(tmp_path / "out", "train")) == 9
    class_folder(tmp_path / "val", {"d": 1})
    said = fails(
        *("data", "pack", str(tmp_path / "train"), "--out", str(tmp_path / "other")),
        *("--val", str(tmp_path / "val")),
    )
    assert said.endswith("val/d is the folder of a class that SOURCE lacks.")


def test_captions_beside_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    texts = {"a": "a red fox, “quoted”", "sub/b": "ein Fuchs im Grünen\n", "c": "狐"}
    for i, (name, text) in enumerate(texts.items()):
        (folder / f"{name}.jpg").write_bytes(image_bytes(i))
        (folder / f"{name}.txt").write_text(text, "utf-8")
    for name, content in (("latin", "Füchse".encode("latin-1")), ("empty", b" ")):
        (folder / f"{name}.png").write_bytes(image_bytes(9, kind="png"))
        (folder / f"{name}.txt").write_bytes(content)
    (folder / "alone.jpg").write_bytes(image_bytes(8))
    pack(folder, tmp_path / "out", "--val", 0)
    assert captions(tmp_path / "out") == {k.replace("/", "_"): v for k, v in texts.items()}
    said = capsys.readouterr().out
    assert "skipped 1: caption that is not UTF-8, such as latin.png" in said
    assert "skipped 1: empty caption, such as empty.png" in said
    assert "skipped 1: image without a .txt beside it, such as alone.jpg" in said


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
def test_captions_in_a_table(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in/x.y").mkdir(parents=True)
    texts = {
        "one.jpg": 'a fox, a "hen" and 3,5 kg of grain',
        "x.y/two.WEBP": "two lines\nof größe",
        "three.png": "; ' \t 狐",
    }
    for file in texts:
        kind = KINDS.get(file.rpartition(".")[2], "webp")
        (tmp_path / "in" / file).write_bytes(image_bytes(len(file), kind=kind))
    rows = [{"path": file, "caption": text, "short": file[0]} for file, text in texts.items()]
    rows += [{"path": "gone.jpg", "caption": "nothing there", "short": ""}]
    rows += [{"path": "notes.md", "caption": "no image", "short": ""}]
    table = write_table(tmp_path / name, rows)
    columns = ("--file-column", "path", "--caption-column", "caption")
    pack(tmp_path / "in", tmp_path / "out", "--captions", table, *columns, "--val", 0)
    assert captions(tmp_path / "out") == {
        "one": texts["one.jpg"], "x_y_two": texts["x.y/two.WEBP"], "three": texts["three.png"],
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "skipped 1: no such file, such as gone.jpg" in said
    assert "skipped 1: file that is none of .jpg .jpeg .png .webp, such as notes.md" in said

    module = ShardDataModule(
        predict=str(tmp_path / "out/train.json"),
        fields=("caption",),
        captions={"json:short": 1.0},
    )
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert sorted(batch["caption"]) == ["o", "t", "x"]


def test_a_table_with_what_is_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing numbers, as pandas writes them, and files that no run would read."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / f"in/{name}.jpg").write_bytes(image_bytes(1))
    (tmp_path / "in/c.jpg").write_bytes(bytes(20_000))
    monkeypatch.setattr("lgpl.commands.data.pack.LARGEST_MEMBER", 19_999)
    table = tmp_path / "table.jsonl"
    table.write_text(
        '{"file_name": "a.jpg", "text": "a", "score": NaN, "width": Infinity, "exif": [1e999]}\n'
        '{"file_name": "b.jpg", "text": "b \\ud83d", "score": 1.5, "alt": "\\ud83d"}\n'
        '{"file_name": "c.jpg", "text": "c", "score": 1}\n'
    )
    pack(tmp_path / "in", tmp_path / "out", "--captions", table, "--val", 0)
    found = packed(tmp_path / "out", "train")
    assert {key: json.loads(members["json"]) for key, members in found.items()} == {
        "a": {"score": None, "width": None, "exif": [None]}, "b": {"score": 1.5, "alt": "?"}
    }  # fmt: skip
    main(["data", "check", "--workers", "1", str(tmp_path / "out/train.json")])


def test_an_image_with_several_captions_is_never_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = []
    for i in range(10):
        (tmp_path / f"in/{i}.jpg").write_bytes(image_bytes(i))
        rows += [{"file_name": f"{i}.jpg", "text": f"caption {n} of {i}"} for n in range(5)]
    table = write_table(tmp_path / "table.csv", rows)
    pack(tmp_path / "in", tmp_path / "out", "--captions", table, "--val", 0.3)
    train, val = packed(tmp_path / "out", "train"), packed(tmp_path / "out", "val")
    assert (len(train), len(val)) == (35, 15)
    assert not {m["jpg"] for m in train.values()} & {m["jpg"] for m in val.values()}


@pytest.mark.parametrize("kind", ["TXT", "caption", "CAPTION"])
def test_captions_of_other_tools(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.JPG").write_bytes(image_bytes(0))
    (folder / f"a.{kind}").write_text("a red fox")
    (folder / "b.jpg").write_bytes(image_bytes(1))
    (folder / "b.caption").write_text("by one tool")
    (folder / "b.txt").write_text("by a person")
    pack(folder, tmp_path / "out", "--val", 0)
    assert captions(tmp_path / "out") == {"a": "a red fox", "b": "by a person"}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_table_among_the_images(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(image_bytes(i))
    rows = [{"file_name": "0.jpg", "text": ["a fox", "red"]}]
    rows += [{"file_name": "2.jpg", "text": "a dog"}]
    if name.endswith("csv"):
        (folder / name).write_text("file_name,text\n0.jpg,a fox\n2.jpg,a dog\n")
    else:
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "\n")
    pack(folder, tmp_path / "out", "--val", 0)
    assert captions(tmp_path / "out") == {"0": "a fox", "2": "a dog"}
    if name.endswith("jsonl"):  # the whole list is kept
        found = packed(tmp_path / "out", "train")
        assert json.loads(found["0"]["json"]) == {"text": ["a fox", "red"]}
        assert "json" not in found["2"]


def keys_by_table(tmp_path: Path, images: int, name: str, content: bytes) -> list[str]:
    """What is packed of so many images by a table of this name and content."""
    folder, table = tmp_path / "in", tmp_path / name
    folder.mkdir(exist_ok=True)
    for i in range(images):
        (folder / f"{i}.jpg").write_bytes(image_bytes(i))
    table.write_bytes(content)
    pack(folder, tmp_path / f"out {name}", "--val", 0, "--captions", table)
    return sorted(packed(tmp_path / f"out {name}", "train"))


def test_a_row_that_cannot_be_read_ends_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = partial(keys_by_table, tmp_path, 6)

    def table(third: str) -> bytes:
        texts = ["a cat", "a cat", third, "a cat", "a cat", "a cat"]
        rows = "".join(f"{i}.jpg,{text}\n" for i, text in enumerate(texts))
        return f"file_name,text\n{rows}".encode()

    assert keys("long.csv", table("x" * 140_000)) == ["0", "1", "3", "4", "5"]
    assert "skipped 1: caption of more than 10000 characters" in capsys.readouterr().out
    assert keys("quote.csv", table('"a 5 inch')) == ["0", "1"]
    said = capsys.readouterr().out
    assert "skipped 4: row that is no CSV (unexpected end of data), such as" in said
    assert "quote.csv, line 4" in said
    lines = [json.dumps({"file_name": f"{i}.jpg", "text": "a cat"}) for i in range(6)]
    lines[1], lines[3] = "{no json", "[]"
    assert keys("rows.jsonl", "\n".join([*lines, "", "  ", ""]).encode()) == ["0", "2", "4", "5"]
    assert "skipped 2: row that is no JSON object, such as" in capsys.readouterr().out


def test_rows_of_a_table_in_another_encoding_or_with_what_no_text_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each such row is skipped and counted, the others are packed."""
    keys = partial(keys_by_table, tmp_path, 4)
    table = b"\n\nfile_name,text\n0.jpg,a\n\n1.jpg,caf\xe9\n2.jpg,b\n"
    assert keys("rows.CSV", table) == ["0", "2"]
    assert "skipped 1: row that is not UTF-8, such as" in capsys.readouterr().out
    rows = [
        rb'{"file_name": "\ud83d.jpg", "text": "a"}',
        rb'{"file_name": "0\u0000.jpg", "text": "a"}',
        b'{"file_name": "1.jpg", "text": "caf\xe9"}',
        b'{"file_name": "2.jpg", "text": "a", "n": %s, "m": NaN}' % (b"9" * 5000),
        b'{"file_name": "3.jpg", "text": [null, " ", "a text"]}',
    ]
    assert keys("rows.jsonl", b"\n".join(rows)) == ["2", "3"]
    said = capsys.readouterr().out
    assert "skipped 2: no such file" in said and "skipped 1: row that is not UTF-8" in said
    found = packed(tmp_path / "out rows.jsonl", "train")
    assert json.loads(found["2"]["json"]) == {"n": None, "m": None}
    assert found["3"]["txt"] == b"a text"


def test_links_are_followed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.jpg").write_bytes(image_bytes(len(name)))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.jpg").write_bytes(image_bytes(1))
    (folder / "all").symlink_to(".")
    (folder / "birds").symlink_to(tmp_path / "elsewhere")
    (folder / "cats/again.jpg").symlink_to("0.jpg")
    (folder / "cats/gone.jpg").symlink_to("nothing.jpg")
    (folder / "dogs/itself.jpg").symlink_to("itself.jpg")
    pack(folder, tmp_path / "out", "--val", 0)
    assert sorted(packed(tmp_path / "out", "train")) == ["birds_1", "cats_0", "dogs_0"]
    said = capsys.readouterr().out
    assert "skipped 2: link to what is there already, such as all" in said
    assert "skipped 2: link that leads nowhere, such as cats/gone.jpg" in said
    assert "3 classes" in said


def test_pipes_and_devices_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder, through a link or in a table: reading one might never end."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(image_bytes(0))
    os.mkfifo(folder / "1.jpg")
    (folder / "2.jpg").symlink_to("/dev/zero")
    for i in range(3):
        (folder / f"{i}.txt").write_text("a cat")
    pack(folder, tmp_path / "out", "--val", 0)
    assert list(packed(tmp_path / "out", "train")) == ["0"]
    said = capsys.readouterr().out
    assert "skipped 1: neither a file nor a folder, such as 1.jpg" in said
    assert "skipped 1: link to what is neither a file nor a folder, such as 2.jpg" in said
    table = tmp_path / "rows.csv"
    table.write_text("file_name,text\n" + "".join(f"{i}.jpg,a cat\n" for i in range(3)))
    pack(folder, tmp_path / "by_table", "--captions", table, "--val", 0)
    assert list(packed(tmp_path / "by_table", "train")) == ["0"]
    assert "skipped 2: what is no file, such as" in capsys.readouterr().out


def test_files_of_several_names(tmp_path: Path) -> None:
    """A caption may stand for several images by links; of two hard links each is a file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(image_bytes(i))
    (folder / "0.txt").write_text("a cat")
    os.link(folder / "0.txt", folder / "1.txt")
    (folder / "2.txt").symlink_to("0.txt")
    os.link(folder / "2.jpg", folder / "3.jpg")
    (folder / "3.txt").write_text("another")
    pack(folder, tmp_path / "out", "--val", 0)
    found = packed(tmp_path / "out", "train")
    captions = {key: raw["txt"].decode() for key, raw in found.items()}
    assert captions == {"0": "a cat", "1": "a cat", "2": "a cat", "3": "another"}


def test_keys_are_unique_and_without_dots() -> None:
    taken: set[str] = set()
    files = ["a/b.c.jpg", "a_b/c.jpg", "a/b_c.png", "ä b.webp", "a/b_c_2.jpg"]
    keys = [unique_key(file, taken) for file in files]
    assert keys == ["a_b_c", "a_b_c_2", "a_b_c_3", "ä b", "a_b_c_2_2"]
    assert [unique_key(file, taken) for file in ("x\ny.jpg", "x_y.jpg")] == ["x_y", "x_y_2"]


def test_long_and_foreign_names(tmp_path: Path) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    names = ["x" * 180, "größe 狐", os.fsdecode(b"latin-\xe4")]
    for i, name in enumerate(names):
        (tmp_path / "in/a" / f"{name}.jpg").write_bytes(image_bytes(i))
    (tmp_path / "in" / os.fsdecode(b"klasse-\xe4")).mkdir()
    (tmp_path / "in" / os.fsdecode(b"klasse-\xe4") / "x.jpg").write_bytes(b"broken")
    pack(tmp_path / "in", tmp_path / "out", "--val", 0)
    assert (tmp_path / "out/classes.txt").read_text() == "a\nklasse-\ufffd\n"
    keys = packed(tmp_path / "out", "train").keys()
    assert keys == {f"a_{'x' * 180}", "a_größe 狐", "a_latin-\ufffd"}


def test_killed_pack_goes_on_with_the_same_command(tmp_path: Path) -> None:
    class_folder(tmp_path / "in", {"a": 200, "b": 200})
    command = ["data", "pack", str(tmp_path / "in"), "--shard-samples", "20", "--workers", "1"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    main([*command, "--out", str(whole)])
    process = subprocess.Popen(
        [sys.executable, "-m", "lgpl.cli", *command, "--out", str(out)],
        cwd=ROOT,
        start_new_session=True,
    )
    while len(list(out.glob("*.tar"))) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    for name in ("train-00.tar", "train.json", "classes.txt", "other.tar"):
        (out / f"{name}.0123456789ab.partial").write_bytes(b"half")
    assert 3 <= len(done) < 20 and not (out / "train.json").exists()
    main([*command, "--out", str(out)])
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    assert not list(whole.glob("*.partial"))
    (left,) = out.glob("*.partial")
    assert left.name.startswith("other.tar")  # nobody's business
    left.unlink()
    assert {p.name: p.read_bytes() for p in out.glob("*.[tj]*")} == {
        p.name: p.read_bytes() for p in whole.glob("*.[tj]*")
    }


def test_what_pack_cannot_do(fails: Fails, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"

    def pack(*options: object, source: Path = source) -> str:
        return fails("data", "pack", str(source), "--out", str(out), *map(str, options))

    assert pack() == f"SOURCE: {source} is neither a folder nor a .txt file of paths."
    source.mkdir()
    assert pack() == f"{source} holds no images (.jpg .jpeg .png .webp)."
    (source / "a.jpg").write_bytes(image_bytes(0))
    assert pack() == "--val: 0.01 of 1 images leaves none to train on."
    listed = tmp_path / "list.txt"
    listed.write_text("\n \n")
    assert pack(source=listed) == f"SOURCE: {listed} lists no images; write a path on every line."
    listed.write_text("gone.jpg\n")
    assert pack(source=listed).endswith("most often: no such file, such as gone.jpg.")
    assert "SOURCE is their folder, no list" in pack("--captions", "t.csv", source=listed)
    table = write_table(tmp_path / "t.csv", [{"file": "a.jpg", "text": "a"}])
    columns = ("--file-column", "file", "--caption-column", "text", "a b")
    assert pack("--captions", table, *columns) == (
        "--caption-column: 'a b' cannot name a member KEY.NAME.txt; leave it out and read it as "
        "json:a b instead."
    )
    assert "no column 'short' but file, text" in pack("--captions", table, *columns[:-1], "short")
    assert pack("--captions", table) == (
        f"{table} has no column 'file_name' but file, text; name it with --file-column."
    )
    assert "no column 'caption' but file, text; name it with --caption-column" in pack(
        *("--captions", table, "--file-column", "file", "--caption-column", "caption")
    )
    gone = write_table(tmp_path / "gone.jsonl", [{"file_name": "b.jpg", "text": "b"}])
    assert pack("--captions", gone).endswith("most often: no such file, such as b.jpg.")
    assert "is neither .csv nor .jsonl" in pack("--captions", tmp_path / "t.xlsx")
    assert "cannot be read (" in pack("--captions", tmp_path / "none.csv")
    (tmp_path / "bad.jsonl").write_text("hello\n")
    assert "bad.jsonl, line 1: no row can be read: row that is no JSON object." in pack(
        "--captions", tmp_path / "bad.jsonl"
    )
    (tmp_path / "none.csv").write_bytes(b"file_name,text\n")
    assert "none.csv: no row can be read: it has none." in pack("--captions", tmp_path / "none.csv")
    for content, says in (
        (b"file_name,text\na.jpg,\xe4\xe4\n", "2: no row can be read: row that is not UTF-8."),
        ("file_name,text\na.jpg,a\n".encode("utf-16"), "1: the header is not UTF-8."),
    ):
        (tmp_path / "latin.csv").write_bytes(content)
        assert f"latin.csv, line {says}" in pack("--captions", tmp_path / "latin.csv")

    classes = tmp_path / "classes"
    class_folder(classes, {"a": 3})
    for share in ("much", "-0.1", "nan", "inf", "1.5"):
        said = pack("--val", share, source=classes)
        assert said.startswith(f"--val: '{share}' is neither a share below 1, a number")
    assert pack("--val", source, source=classes).startswith(f"{source} holds no folders of images")
    assert pack("--val", 3, source=classes) == "--val: 3 of 3 images leaves none to train on."
    assert pack("--shard-samples", 0, source=classes) == "--shard-samples must be >= 1, got 0"
    assert pack("--workers", 0, source=classes) == "--workers must be >= 1, got 0"
    assert "--val: with --captions" in pack(
        *("--captions", table, "--file-column", "file", "--val", classes)
    )
    assert not list(out.glob("*.tar"))
    for path in classes.rglob("*.*"):
        path.write_bytes(b"no image")
    assert "no image can be trained on; most often: image that does not decode" in pack(
        source=classes
    )
    write_shard(out / "other.tar", samples(1))
    assert f"{out}/other.tar is no shard of these images and options" in pack(source=classes)
    (out / "other.tar").unlink()
    class_folder(tmp_path / "new", {"a": 3})
    main(["data", "pack", str(tmp_path / "new"), "--out", str(out)])
    said = pack("--val", 2, source=tmp_path / "new")
    assert f"{out}/train-0.tar is no shard of these images and options" in said
    (tmp_path / "file").write_text("")
    out = tmp_path / "file/out"
    assert "cannot be written (Not a directory)" in pack(source=classes)


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_killed_process_is_told() -> None:
    assert list(in_processes(killed, [0, 1, 2], 2)) == [0, 1, 2]
    with pytest.raises(UserError, match="A worker process was killed"):
        list(in_processes(killed, range(10), 2))


def children(process: int) -> set[int]:
    """Processes that it started and that still run, by Linux' own list."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def ends(processes: set[int]) -> None:
    deadline = time.monotonic() + 10
    while left := set(filter(running, processes)):
        if time.monotonic() > deadline:
            for process in left:
                os.kill(process, signal.SIGKILL)
            raise AssertionError("workers outlive the command")
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    """Busy ones and idle ones: there are more workers than shards."""
    (tmp_path / "in/a").mkdir(parents=True)
    noise = Image.frombytes("RGB", (2000, 2000), os.urandom(2000 * 2000 * 3))
    for number in range(4):
        noise.save(tmp_path / f"in/a/{number}.png", compress_level=0)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "lgpl.cli", "data", "pack", str(tmp_path / "in"), "--val", "0"),
            *("--out", str(tmp_path / "out"), "--shard-samples", "2", "--workers", "4"),
        ],
        cwd=ROOT,
    )
    workers: set[int] = set()
    while len(workers) < 4:
        assert process.poll() is None
        workers = children(process.pid)
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ends(workers)


def waits(number: int) -> int:
    if number == 0:
        while True:  # in Python, where only the interpreter can stop it
            number += 1
    return number


def all_waits() -> None:
    list(in_processes(waits, range(3), 3))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_workers_of_any_command_end_with_it() -> None:
    process = multiprocessing.get_context("fork").Process(target=all_waits)
    process.start()
    assert process.pid is not None
    workers: set[int] = set()
    while len(workers) < 3:
        assert process.is_alive()
        workers = children(process.pid)
        time.sleep(0.005)
    time.sleep(0.5)
    assert all(map(running, workers))  # one busy, two idle
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    ends(workers)


def test_full_disk_ends_with_a_sentence(
    tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "write", full)
    class_folder(tmp_path / "in", {"a": 3})
    said = fails("data", "pack", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert said == f"--out: {tmp_path}/out cannot be written (No space left on device)."
    assert not list((tmp_path / "out").glob("*.tar*"))


def test_a_line_of_captions_of_several_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"a": "one\ntwo\nthree\n", "b": "alone\n", "c": "\nfirst\r\n\r\nsecond"}
    (tmp_path / "in").mkdir()
    for number, (name, text) in enumerate(texts.items()):
        (tmp_path / f"in/{name}.jpg").write_bytes(image_bytes(number))
        (tmp_path / f"in/{name}.txt").write_bytes(text.encode())
    pack(tmp_path / "in", tmp_path / "all", "--val", 0)
    assert "2 captions have several lines: all of them" in capsys.readouterr().out
    assert captions(tmp_path / "all") == texts
    pack(tmp_path / "in", tmp_path / "second", "--val", 0, "--caption-line", 2)
    assert "2 captions have several lines: line 2 of each" in capsys.readouterr().out
    assert captions(tmp_path / "second") == {"a": "two", "b": "alone\n", "c": "second"}
    pack(tmp_path / "in", tmp_path / "third", "--val", 0, "--caption-line", 3)
    assert "skipped 1: caption without a line 3, such as c.jpg" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # other captions are other shards
        pack(tmp_path / "in", tmp_path / "third", "--val", 0, "--caption-line", 1)


def test_images_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As COCO's val2014, a flat folder with neither classes nor captions."""
    (tmp_path / "in").mkdir()
    wanted = {f"COCO_val2014_{i:012}": image_bytes(i) for i in range(6)}
    for name, content in wanted.items():
        (tmp_path / f"in/{name}.jpg").write_bytes(content)
    (tmp_path / "in/README.txt").write_text("of no image")
    pack(tmp_path / "in", tmp_path / "out", "--val", 2)
    assert "images alone, with neither classes nor captions" in capsys.readouterr().out
    train, val = (packed(tmp_path / "out", split) for split in ("train", "val"))
    assert len(train) == 4 and len(val) == 2
    assert {key: members["jpg"] for key, members in (train | val).items()} == wanted
    assert {*map(len, train.values())} == {1} and not (tmp_path / "out/classes.txt").exists()


@pytest.mark.parametrize("captioned", [False, True])
def test_a_list_of_paths(
    tmp_path: Path, captioned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lists").mkdir()
    class_folder(tmp_path / "in", {"n01": 2, "n02": 2})
    here, there = "../in/n02/0.jpg", str(tmp_path / "in/n01/1.JPEG")
    rest = b"../in/n01/gone.jpg\n\n../in/n01/0.jpg\r\n" + here.encode() + b"\nnotes.md\n"
    (tmp_path / "lists/train.txt").write_bytes(
        b"\xef\xbb\xbf" + f"{here}\n{there}\n".encode() + rest
    )
    if captioned:
        for file in (here, there):
            (tmp_path / "lists" / file).with_suffix(".txt").write_text(f"of {file[-6:]}")
    pack(tmp_path / "lists/train.txt", tmp_path / "out", "--val", 0)
    found = packed(tmp_path / "out", "train")
    images = {
        next(data for name, data in sample.items() if name != "txt") for sample in found.values()
    }
    listed = [here, there, *([] if captioned else ["../in/n01/0.jpg"])]
    assert images == {(tmp_path / "lists" / file).read_bytes() for file in listed}
    assert all(("txt" in members) == captioned for members in found.values())
    assert all(not key.startswith((".", "_")) for key in found)
    said = capsys.readouterr().out
    assert "skipped 1: path that is listed already, such as ../in/n02/0.jpg" in said
    assert "skipped 1: file that is none of .jpg .jpeg .png .webp, such as notes.md" in said
    missing = "image without a .txt beside it" if captioned else "no such file"
    assert f"skipped {2 if captioned else 1}: {missing}, such as ../in/n01/" in said


def test_several_columns_of_captions(tmp_path: Path) -> None:
    """A list counts by its first text and stays in the JSON; a missing caption is no fault."""
    rows: list[dict[str, Any]] = [
        {"file_name": "a.jpg", "text": ["", "a fox", "a red fox"], "short": "fox", "score": 1},
        {"file_name": "b.jpg", "text": "a hen", "short": ["hen", "bird"]},
        {"file_name": "c.jpg", "text": "one\nline", "short": " "},
    ]
    (tmp_path / "in").mkdir()
    for i, row in enumerate(rows):
        (tmp_path / "in" / row["file_name"]).write_bytes(image_bytes(i))
    table = write_table(tmp_path / "table.jsonl", rows)
    columns = ("--captions", table, "--caption-column", "text", "short")
    pack(tmp_path / "in", tmp_path / "out", *columns, "--val", 0, "--caption-line", 2)
    found = packed(tmp_path / "out", "train")
    texts = {
        key: {name: data.decode() for name, data in members.items() if name.endswith("txt")}
        for key, members in found.items()
    }
    assert texts == {
        "a": {"txt": "a fox", "short.txt": "fox"},
        "b": {"txt": "a hen", "short.txt": "hen"},
        "c": {"txt": "line"},
    }
    assert json.loads(found["a"]["json"]) == {"text": rows[0]["text"], "score": 1}
    assert json.loads(found["b"]["json"]) == {"short": ["hen", "bird"]}
