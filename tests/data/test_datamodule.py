"""The streams: split, order, exactly once, faults, positions."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgpl.data import ShardDataModule
from lgpl.data.codecs import FORMATS
from lgpl.data.loader import TrainLoader
from lgpl.data.streams import Rank
from lgpl.errors import UserError
from tests.shards import EMOJI_TRAIN, EMOJI_VAL, samples, write_shard, write_shards


def module(rank: Rank = Rank(), **options: Any) -> ShardDataModule:
    options = {"image_size": 16, "batch_size": 4, "shuffle": 0, "fields": ["image"], **options}
    data = ShardDataModule(**options)
    data._rank = lambda: rank  # type: ignore[method-assign]
    return data


def train(data: ShardDataModule) -> TrainLoader:
    data.setup("fit")
    return data.train_dataloader()


def endless(loader: TrainLoader) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def take(loader: TrainLoader, count: int) -> list[str]:
    return [key for batch in itertools.islice(endless(loader), count) for key in batch["key"]]


def test_emoji() -> None:
    data = module(
        train=EMOJI_TRAIN, val=EMOJI_VAL, image_size=64, fields=["image", "caption", "class"]
    )
    batch = next(iter(train(data)))
    assert batch["image"].shape == (4, 3, 64, 64) and len(batch["caption"]) == 4
    assert sum(int(b["valid"].sum()) for b in data.val_dataloader()) == 93


def test_images_need_not_be_square(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [8])
    options: dict[str, Any] = {"image_size": (64, 96), "ten_crop": (1.1,)}
    data = module(train=shards, val=shards, predict=shards, **options)
    assert data.image_size == (64, 96) and module(image_size=[48]).image_size == (48, 48)
    assert next(iter(train(data)))["image"].shape == (4, 3, 64, 96)
    assert next(iter(data.val_dataloader()))["image"].shape == (4, 3, 64, 96)
    data.setup("predict")
    assert next(iter(data.predict_dataloader()))["image"].shape == (4, 10, 3, 64, 96)
    with pytest.raises(UserError, match=r"data.image_size must be a side, or height and width"):
        module(image_size=(64, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_epoch_holds_every_sample_once(tmp_path: Path, workers: int) -> None:
    data = module(
        train=write_shards(tmp_path, [8, 8, 8, 8]), num_workers=workers, shuffle=5, epoch_samples=32
    )
    loader = train(data)
    assert len(loader) == 8
    first, second = take(loader, 8), take(loader, 8)
    assert sorted(first) == sorted(second) == [f"{i:05d}" for i in range(32)]
    assert first != second and first != sorted(first)


@pytest.mark.parametrize("counts", [[8, 8, 8, 8], [16]], ids=["many shards", "one shard"])
def test_ranks_see_disjoint_samples(tmp_path: Path, counts: list[int]) -> None:
    shards = write_shards(tmp_path, counts)
    half = sum(counts) // 2
    seen = [
        take(train(module(Rank(rank, 2), train=shards, shuffle=5)), half // 4) for rank in (0, 1)
    ]
    assert sorted(seen[0] + seen[1]) == [f"{i:05d}" for i in range(sum(counts))]


def test_order_follows_the_seed(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [8, 8])
    orders = [take(train(module(train=shards, shuffle=5, seed=seed)), 4) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_gives_every_sample_once(tmp_path: Path, ranks: int, workers: int) -> None:
    shards = write_shards(tmp_path, [5, 1, 7])
    seen, batches = [], set()
    for rank in range(ranks):
        data = module(Rank(rank, ranks), val=shards, num_workers=workers)
        data.setup("validate")
        loader = data.val_dataloader()
        given = list(loader)
        batches.add((len(given), len(loader), sum(len(b["key"]) for b in given)))
        seen += [k for b in given for k, valid in zip(b["key"], b["valid"], strict=True) if valid]
    assert sorted(seen) == [f"{i:05d}" for i in range(13)]
    assert len(batches) == 1  # all ranks the same: nobody waits for a collective that never comes


def test_validation_skips_and_counts_bad_samples(tmp_path: Path) -> None:
    content = samples(6)
    content[1]["jpg"] = content[4]["jpg"] = b"broken"
    data = module(val=write_shard(tmp_path / "a.tar", content), batch_size=2)
    data.setup("validate")
    loader = data.val_dataloader()
    seen = [k for b in loader for k, valid in zip(b["key"], b["valid"], strict=True) if valid]
    assert seen == ["00000", "00002", "00003", "00005"]
    (cause,) = loader.skipped
    assert "does not decode" in cause and loader.skipped[cause] == 2


def test_training_goes_on_past_faults_and_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = samples(8)
    content[2]["jpg"] = b"broken"
    del content[5]["txt"]
    whole = write_shard(tmp_path / "a.tar", content)
    truncated = Path(write_shard(tmp_path / "b.tar", samples(8, 8)))
    truncated.write_bytes(truncated.read_bytes()[:15000])
    (tmp_path / "c.tar").write_bytes(b"")
    data = module(train=str(tmp_path / "*.tar"), fields=["image", "caption"])
    loader = train(data)
    keys = take(loader, 9)
    assert {"00002", "00005"}.isdisjoint(keys) and len(keys) == 36
    assert set(loader.skipped) == {
        f"image that does not decode: none of {', '.join(FORMATS)}",
        "sample without its caption (.txt)",
    }
    for part in (
        "skipped 1 so far: image that does not decode",
        f"(00002 in {whole})",
        f"{truncated} is damaged or cannot be read after",
        "c.tar holds no samples",
    ):
        assert part in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_ends_with_a_sentence(tmp_path: Path, workers: int) -> None:
    content: list[dict[str, Any]] = [{"__key__": str(i), "jpg": b"broken"} for i in range(3)]
    data = module(train=write_shard(tmp_path / "a.tar", content), num_workers=workers)
    with pytest.raises(UserError, match=r"No usable sample .*does not decode"):
        next(iter(train(data)))
    (tmp_path / "b.tar").write_bytes(b"")
    data = module(val=str(tmp_path / "b.tar"))
    data.setup("validate")
    with pytest.raises(UserError, match=r"b.tar: no samples at all"):
        data.val_dataloader()


def test_too_many_bad_samples_end_with_a_sentence(tmp_path: Path) -> None:
    content = samples(200)
    for sample in content[::5]:
        sample["jpg"] = b"broken"
    shard = write_shard(tmp_path / "a.tar", content)
    # Above the limit, but not before enough were read to judge.
    loader = train(module(train=shard, batch_size=50))
    with pytest.raises(UserError, match=r"200 of 1000 training samples are bad, more than data"):
        for number, _ in enumerate(endless(loader)):
            assert number < 20
    assert number >= 14
    borne = train(module(train=shard, batch_size=50, max_bad=0.25))
    assert len(take(borne, 40)) == 2000


def test_more_readers_than_samples(tmp_path: Path) -> None:
    data = module(Rank(3, 4), train=write_shards(tmp_path, [2]))
    with pytest.raises(UserError, match=r"too few samples for 4 readers"):
        next(iter(train(data)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch_samples", [None, 16])
def test_cursor_continues_the_same_sequence(
    tmp_path: Path, workers: int, epoch_samples: int | None
) -> None:
    options = {
        "train": write_shards(tmp_path, [9, 7, 5, 3]),
        "shuffle": 5,
        "num_workers": workers,
        "epoch_samples": epoch_samples,
    }
    loader = train(module(**options))
    stream = endless(loader)
    for _ in range(5):
        next(stream)
    state = loader.state_dict()
    rest = [next(stream)["key"] for _ in range(6)]
    again = train(module(**options))
    again.load_state_dict(state)
    assert [batch["key"] for batch in itertools.islice(endless(again), 6)] == rest


def test_an_epoch_is_as_long_as_the_data(tmp_path: Path) -> None:
    shards, more = write_shards(tmp_path, [9, 7]), write_shards(tmp_path / "more", [6])
    assert len(train(module(train=shards))) == 4
    assert len(train(module(Rank(1, 2), train=shards, batch_size=3))) == 2
    assert len(train(module(train={p: 1.0 for p in (*shards, *more)}))) == 5
    assert len(train(module(train=more, batch_size=8))) == 1  # a batch of more than all of them


def test_expected_limits_reach_the_decoder(tmp_path: Path) -> None:
    data = module(train=write_shards(tmp_path, [8]), fields=["class"])
    data.expect(num_classes=2)
    loader = train(data)
    labels = Counter(int(c) for b in itertools.islice(loader, 3) for c in b["class"])
    assert set(labels) == {0, 1} and "class outside 0 to 1" in next(iter(loader.skipped))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "data.batch_size: 0 is below 1"),
        ({"num_workers": -1}, "data.num_workers: -1 is below 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        module(**options)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_global_batch_is_shared_by_the_ranks(tmp_path: Path, ranks: int) -> None:
    shards = write_shards(tmp_path, [16, 16])
    options: dict[str, Any] = {"train": shards, "global_batch": 8, "epoch_samples": 32}
    for index in range(ranks):
        loader = train(module(Rank(index, ranks), **options))
        assert {len(batch["key"]) for batch in loader} == {8 // ranks} and len(loader) == 4
    with pytest.raises(UserError, match=r"data.global_batch: 8 does not divide by 3 ranks x 1 acc"):
        train(module(Rank(0, 3), **options))


def test_missing_split_is_named() -> None:
    with pytest.raises(UserError, match=r"data.train is not set"):
        module(val=EMOJI_VAL).setup("fit")


def test_ranks_together_read_and_decode_one_pass(tmp_path: Path) -> None:
    """Four ranks on uneven shards: what one of them trains on, no other reads or decodes."""
    content = samples(400)
    for sample in content:
        sample["jpg"] += bytes(80_000)  # a photograph's size
    cuts = [0, 30, 31, 170, 360, 400]
    shards = [
        write_shard(tmp_path / f"{i}.tar", content[start:end])
        for i, (start, end) in enumerate(itertools.pairwise(cuts))
    ]
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        seen, read = manager.list(), manager.list()
        ranks = [
            context.Process(target=_one_pass, args=(shards, Rank(r, 4), seen, read))
            for r in range(4)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert sorted(seen) == [f"{i:05d}" for i in range(400)]
        assert sum(read) <= 1.02 * sum(Path(shard).stat().st_size for shard in shards)


def _one_pass(shards: list[str], rank: Rank, seen: Any, read: Any) -> None:
    """One rank's share of an epoch, in a process of its own, with the bytes that it read."""
    total, original = 0, os.pread

    def counting(file: int, size: int, offset: int) -> bytes:
        nonlocal total
        data = original(file, size, offset)
        total += len(data)
        return data

    loader = train(module(rank, train=shards, shuffle=50, epoch_samples=400, batch_size=5))
    os.pread = counting  # after the counting of samples, which one rank does for all
    seen.extend(take(loader, 20))
    read.append(total)


def test_a_missing_member_says_which_fields_to_give(tmp_path: Path) -> None:
    content = samples(4)
    for sample in content:
        del sample["txt"]
    shard = write_shard(tmp_path / "a.tar", content)
    said = r"without its caption \(.txt\).* give --data.fields '\[image\]'"
    for workers in (0, 1):
        data = module(train=shard, fields=["image", "caption"], num_workers=workers)
        with pytest.raises(UserError, match=said):
            take(train(data), 1)
    data = module(val=shard, fields=["image", "caption"])
    data.setup("validate")
    with pytest.raises(UserError, match=said):
        next(iter(data.val_dataloader()))


def test_what_looks_wrong_is_said_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_shards(tmp_path, [8])
    data = module(train=shards, fields=["class"], batch_size=9)
    data.expect(num_classes=2)
    train(data)
    for part in (
        "data.val is not set",
        "data.batch_size: a batch of 9 on each of 1 ranks is larger than the data, 8 samples",
        f"num_classes is 2, but 2 of the 8 samples of {shards[0]} have classes up to 2",
    ):
        assert part in caplog.text
    caplog.clear()
    data = module(train=shards, val=shards, fields=["class"], batch_size=8)
    data.expect(num_classes=3)
    train(data)
    assert not caplog.text
