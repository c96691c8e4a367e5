"""The training stream goes on where a checkpoint stood, on any number of workers and ranks."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.loader import TrainLoader
from lgpl.data.streams import Rank
from tests.data.test_datamodule import module, take, train
from tests.shards import samples, write_shard, write_shards


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """61 samples in uneven shards, 7 of them bad."""
    paths = write_shards(tmp_path, [9, 17, 5, 3, 20])
    content = samples(7, 54)
    for sample in content:
        sample["jpg"] = b"broken"
    return [*paths, write_shard(tmp_path / "bad.tar", content)]


GOOD = [f"{i:05d}" for i in range(54)]


def merged(loaders: list[TrainLoader]) -> dict[str, Any]:
    """What the ranks together put in a checkpoint."""
    states = [loader.state_dict() for loader in loaders]
    state = states[0]
    for other in states[1:]:
        state["places"] |= other["places"]
        state["turns"] += other["turns"]
    return state


def on_ranks(count: int, shards: list[str], **options: Any) -> list[TrainLoader]:
    options = {"train": shards, "shuffle": 8, "epoch_samples": 10**6, "max_bad": 1.0, **options}
    return [train(module(Rank(rank, count), **options)) for rank in range(count)]


@pytest.mark.parametrize("before", [0, 2, 3])
@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("stop", [1, 5, 14])
def test_any_number_of_workers(shards: list[str], before: int, after: int, stop: int) -> None:
    (reference,) = on_ranks(1, shards, num_workers=before)
    expected = take(reference, 30)
    (first,) = on_ranks(1, shards, num_workers=before)
    keys = take(first, stop)
    (second,) = on_ranks(1, shards, num_workers=after)
    second.load_state_dict(first.state_dict())
    assert keys + take(second, 30 - stop) == expected


def test_resumed_twice_and_at_once(shards: list[str]) -> None:
    (reference,) = on_ranks(1, shards)
    expected, keys, state = take(reference, 20), [], {}
    for batches in (0, 3, 0, 7, 10):
        (loader,) = on_ranks(1, shards)
        loader.load_state_dict(state)
        keys += take(loader, batches)
        state = loader.state_dict()
    assert keys == expected


def test_an_epoch_skips_the_bad_and_holds_the_good_once(shards: list[str]) -> None:
    (loader,) = on_ranks(1, shards, batch_size=6)
    assert sorted(take(loader, 9)) == GOOD


@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 1), (2, 1)])
def test_ranks_that_share_the_lanes_see_the_same_global_batches(
    shards: list[str], before: int, after: int
) -> None:
    whole = shards[:-1]  # a bad sample shifts its partition alone

    def steps(loaders: list[TrainLoader], number: int) -> list[list[str]]:
        given = [list(itertools.islice(loader, number)) for loader in loaders]
        return [
            sorted(k for batch in step for k in batch["key"]) for step in zip(*given, strict=True)
        ]

    expected = steps(on_ranks(before, whole, batch_size=2), 12)
    first = on_ranks(before, whole, batch_size=2)
    seen = steps(first, 5)
    second = on_ranks(after, whole, batch_size=2 * before // after)
    for loader in second:
        loader.load_state_dict(merged(first))
    assert seen + steps(second, 7) == expected
    # From the beginning, too, where the partitions are named.
    fresh = on_ranks(after, whole, batch_size=2 * before // after, partitions=before)
    assert steps(fresh, 12) == expected


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (4, 3), (3, 4)])
def test_on_other_ranks_nothing_is_lost_or_seen_twice(
    shards: list[str], before: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shards[:-1]
    first = on_ranks(before, whole, batch_size=2)
    seen = [key for rank, loader in enumerate(first) for key in take(loader, 2 + rank)]
    state = merged(first)
    for count in (after, before):  # twice: the second change meets what the first has left
        loaders = on_ranks(count, whole, batch_size=1)
        for loader in loaders:
            loader.load_state_dict(state)
        left = len(GOOD) - len(seen)
        for rank, loader in enumerate(loaders):
            share = -(-left * (rank + 1) // count) + (-left * rank // count)
            seen += take(loader, share if count == before else share // 2)
        state = merged(loaders)
    assert "do not divide evenly" in caplog.text
    assert sorted(seen) == GOOD


def test_mixed_data_sets_resume_and_keep_their_weights(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("a", "b")}
    write_shards(folders["a"], [30, 30])
    for index, folder in enumerate(write_shards(folders["b"], [10])):
        write_shard(Path(folder), samples(10, 1000 + 100 * index))
    mixture = {f"{folders['a']}/*.tar": 3.0, f"{folders['b']}/*.tar": 1.0}

    def loader() -> TrainLoader:
        return train(module(train=mixture, shuffle=8, epoch_samples=10**6))

    expected = take(loader(), 200)
    first = loader()
    keys = take(first, 37)
    second = loader()
    second.load_state_dict(first.state_dict())
    assert keys + take(second, 163) == expected
    small = [key for key in expected if key >= "01000"]
    assert 0.2 < len(small) / len(expected) < 0.3
    # Each data set has epochs of its own.
    assert sorted(small[:10]) == [f"{i:05d}" for i in range(1000, 1010)]
    large = [key for key in expected if key < "01000"]
    assert sorted(large[:60]) == [f"{i:05d}" for i in range(60)]


def test_other_data_start_at_the_beginning(
    shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = on_ranks(1, shards)
    take(first, 3)
    (second,) = on_ranks(1, shards[:-1])
    expected = take(on_ranks(1, shards[:-1])[0], 5)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == expected and "start at the beginning" in caplog.text


def test_killed_workers_cost_no_sample(shards: list[str]) -> None:
    expected = take(on_ranks(1, shards, num_workers=2)[0], 40)
    (loader,) = on_ranks(1, shards, num_workers=2)
    keys = []
    for number, batch in enumerate(itertools.islice(loader, 40)):
        keys += batch["key"]
        if number in (3, 20):
            workers = children()
            assert len(workers) == 2
            os.kill(workers[number % 2], signal.SIGKILL)
            time.sleep(0.1)  # this process lives on while a step is under way
    assert keys == expected and loader.skipped["worker killed"] == 2


def children() -> list[int]:
    """Process ids of this process's children."""
    pid = os.getpid()
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
