"""What img2dataset downloads is trained on as it comes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lgpl.data.filters import Filter, JsonCondition
from lgpl.data.index import count_samples
from lgpl.data.shards import read_shard
from lgpl.data.store import Store
from tests.data.servers import Server
from tests.data.test_datamodule import module, take, train
from tests.shards import image_bytes


@pytest.mark.network
def test_shards_of_img2dataset(tmp_path: Path) -> None:
    """The real program, in an environment of its own, against a server on loopback."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [environment / "bin/pip", "install", "-q", "img2dataset==1.47.0"]
    subprocess.run(install, check=True, capture_output=True)

    (tmp_path / "web").mkdir()
    server = Server(tmp_path / "web")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open(tmp_path / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption", "score"])
        for i in range(60):
            name = f"{i}.jpg"
            if i % 10 == 3:
                (tmp_path / "web" / name).write_text("no image")
            elif i % 10 != 4:  # that one is not there
                (tmp_path / "web" / name).write_bytes(image_bytes(i, (200 + i, 100)))
            rows.writerow([f"{server.url}/{name}", f"image {i}, it says “{i}”", i])
    subprocess.run(
        [
            *(environment / "bin/img2dataset", "--url_list", tmp_path / "list.csv"),
            *("--input_format", "csv", "--url_col", "url", "--caption_col", "caption"),
            *("--save_additional_columns", '["score"]', "--output_format", "webdataset"),
            *("--output_folder", tmp_path / "out", "--number_sample_per_shard", "25"),
            *("--image_size", "64", "--min_image_size", "32", "--resize_mode", "keep_ratio"),
            *("--processes_count", "1", "--thread_count", "4", "--retries", "0"),
        ],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    server.shutdown()
    server.server_close()

    shards = sorted(map(str, tmp_path.glob("out/*.tar")))
    assert len(shards) == 3
    counts = [count_samples(shard, Store()) for shard in shards]
    assert sum(number for number, _ in counts) == 48 and not any(d for _, d in counts)
    stats = json.loads(Path(shards[0].replace(".tar", "_stats.json")).read_text())
    assert stats["successes"] == counts[0][0] and stats["count"] == 25
    options = {"train": shards, "fields": ["image", "caption"], "epoch_samples": 48}
    loader = train(module(**options))
    assert len(set(take(loader, 12))) == 48 and not loader.skipped
    batch = next(iter(loader))
    assert batch["image"].shape == (4, 3, 16, 16) and "it says “" in batch["caption"][0]
    values = {raw["__key__"]: json.loads(raw["json"]) for s in shards for raw in read_shard(s)}
    wide = {key for key, value in values.items() if value["width"] >= 150 and value["score"] < 50}
    assert 4 < len(wide) < 40
    wanted = Filter(
        min_side=60, json={"width": JsonCondition(min=150), "score": JsonCondition(max=49)}
    )
    loader = train(module(**options, filter=wanted))
    assert set(take(loader, 20)) == wide and loader.skipped_counts.bad == 0
