"""The CPUs that this process may use, and how its threads wait for each other. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# How often a thread of libgomp looks for work before it sleeps. Its own 300 000 looks keep a core
# busy that others need; with none, threads are woken anew for each of the small steps of decoding.
SPINS = 1000

_prepared: dict[str, str] = {}  # the number of threads, where it was not the user's


def available(groups: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> int:
    """CPUs that this process may keep busy, at least 1: by its affinity and by the quotas of its
    cgroups (v1 or v2), of a quota in whole CPUs. Threads that wait for each other all stand still
    once the quota of a period is used up.

    Args:
        groups: file that lists the process's cgroups.
        mount: where the hierarchies of cgroups are mounted.
    """
    return max(1, min([_affinity(), *map(int, _quotas(Path(groups), Path(mount)))]))


def _affinity() -> int:
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _quotas(groups: Path, mount: Path) -> Iterator[float]:
    """CPUs by the quota of each group that the process is in, and of those around it."""
    for line in _read(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the one outside; its own group is the root then.
        root = mount / "cpu" if controllers else mount
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _quota(folder)


def _quota(group: Path) -> Iterator[float]:
    """CPUs by a group's quota; nothing where it has none."""
    v1 = f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
    for words in (_read(group / "cpu.max").split(), v1.split()):
        if len(words) == 2 and words[0].isdigit():  # otherwise "max", or -1
            yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def prepare() -> None:
    """Set the variables for OpenMP that the environment leaves open, for this process and those
    that it starts; one that has imported torch reads them no more. How threads wait is the user's
    where she sets OMP_WAIT_POLICY or GOMP_SPINCOUNT, and their number where OMP_NUM_THREADS."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*os.environ}:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    # OpenMP itself knows the affinity.
    if "OMP_NUM_THREADS" not in os.environ and (count := available()) < _affinity():
        os.environ["OMP_NUM_THREADS"] = _prepared["threads"] = str(count)


def part(ranks: int) -> int | None:
    """Threads of one of so many processes on this machine, and of those that it starts, where
    `prepare` has set their number; None elsewhere."""
    if os.environ.get("OMP_NUM_THREADS") != _prepared.get("threads", ""):
        return None
    threads = max(1, available() // ranks)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads
