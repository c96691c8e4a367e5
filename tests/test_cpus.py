"""Threads and workers keep to the CPUs that a container or an affinity leaves, and the user's own
variables stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgpl import cpus
from lgpl.data import ShardDataModule
from tests.conftest import ROOT

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# Prints how many threads compute in a process of the command line, and how they wait.
THREADS = """
import functools, os, sys
from lgpl import cpus
from lgpl.cli import main
if sys.argv[1:]:
    cpus.available = functools.partial(cpus.available, *sys.argv[1:])
main(["--help"])
import torch
before = len(os.listdir("/proc/self/task"))
torch.ones(10**6) + 1
threads = 1 + len(os.listdir("/proc/self/task")) - before
print(threads, torch.get_num_threads(), os.environ["GOMP_SPINCOUNT"])
"""


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpus, "_prepared", {})
    monkeypatch.setattr(cpus, "_affinity", lambda: 16)


def hierarchy(folder: Path, groups: str, files: dict[str, str]) -> tuple[str, str]:
    """What `available` reads: the process's cgroups and the files below the mount."""
    (folder / "groups").write_text(groups)
    for name, text in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder / "groups"), str(folder / "mount")


def v1(group: str, quota: int, period: int) -> dict[str, str]:
    return {f"{group}/cpu.cfs_quota_us": str(quota), f"{group}/cpu.cfs_period_us": str(period)}


V1 = "4:cpu,cpuacct:/pod/box\n1:memory:/pod\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/pod/box\n", {"pod/box/cpu.max": "400000 100000\n"}, 4),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000\n"}, 16),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 1\n", "pod/cpu.max": "300000 100000\n"}, 3),
        ("0::/pod/box\n", {"pod/box/cpu.max": "900 100\n", "pod/cpu.max": "200 100\n"}, 2),
        ("0::/pod/box\n", {"pod/other/cpu.max": "100 100\n"}, 16),
        ("0::/\n", {"cpu.max": "500000 100000\n"}, 5),  # a container with a namespace of its own
        ("0::/host/path\n", {"cpu.max": "500000 100000\n"}, 5),  # and one without
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # half a CPU
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 16),  # more than the affinity
        (V1, v1("cpu/pod/box", 150000, 50000), 3),
        (V1, v1("cpu/pod/box", -1, 100000), 16),
        (V1, v1("cpu/pod/box", -1, 100000) | v1("cpu/pod", 200000, 100000), 2),
        (V1, v1("cpu", 700000, 100000), 7),
        ("", {}, 16),
    ],
    ids=str,
)  # fmt: skip
def test_the_smallest_quota_counts(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert cpus.available(*hierarchy(tmp_path, groups, files)) == expected


def test_without_any_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert cpus.available(str(tmp_path / "none"), str(tmp_path / "none")) == 16


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux alone has it")
@pytest.mark.parametrize("by", ["affinity", "quota"])
def test_a_command_has_as_many_threads_as_it_may_use(tmp_path: Path, by: str) -> None:
    half = hierarchy(tmp_path, "0::/\n", {"cpu.max": "50000 100000\n"})
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", THREADS, *(half if by == "quota" else ())],
        cwd=ROOT, check=True, capture_output=True, text=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if by == "affinity" else None,
    )  # fmt: skip
    assert done.stdout.split()[-3:] == ["1", "1", str(cpus.SPINS)]


def test_how_threads_wait_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # GOMP_SPINCOUNT would go before it
    cpus.prepare()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_ranks_share_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available", lambda: 8)
    cpus.prepare()
    assert os.environ["OMP_NUM_THREADS"] == "8"
    assert cpus.part(2) == 4 and os.environ["OMP_NUM_THREADS"] == "4"
    assert cpus.part(2) is None  # those that it starts take it as it is
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpus.part(2) is None and os.environ["OMP_NUM_THREADS"] == "3"


def test_more_workers_than_cpus_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shard = str(ROOT / "data/emoji/val-0000.tar.gz")
    monkeypatch.setattr(cpus, "available", lambda: 2)
    ShardDataModule(val=shard, num_workers=2).setup("validate")
    assert not caplog.messages
    ShardDataModule(val=shard, num_workers=8).setup("validate")
    assert caplog.messages == [
        "data.num_workers: 8 processes share 2 CPUs; 2 would read as fast and take less memory."
    ]
