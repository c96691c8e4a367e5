"""Samples that stall or end whoever decodes them: left out once and for all, nothing else lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgpl.cli import main
from lgpl.data import codecs
from lgpl.data.decode import SampleDecoder
from lgpl.data.loader import TrainLoader
from lgpl.data.watch import ENDED, SECONDS
from lgpl.errors import UserError
from tests.data.test_datamodule import module, take, train
from tests.shards import samples, write_shards

LATE = "sample that takes more than 1 s to decode"
KEYS = [f"{i:05d}" for i in range(24)]


def sleeps() -> None:
    while True:
        time.sleep(60)


def raises_signal(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Any]]:
    """What happens where samples of these keys are decoded."""
    what: dict[str, Callable[[], Any]] = {}
    decode = SampleDecoder.__call__

    def decoded(self: SampleDecoder, raw: Any, rng: Any) -> Any:
        what.get(raw["__key__"], lambda: None)()
        return decode(self, raw, rng)

    monkeypatch.setattr(SampleDecoder, "__call__", decoded)
    return what


def loader(tmp_path: Path, **options: Any) -> TrainLoader:
    shards = write_shards(tmp_path, [8, 8, 8])
    options = {"shuffle": 5, "num_workers": 2, "sample_seconds": 1, "max_bad": 1.0, **options}
    return train(module(train=shards, epoch_samples=10**6, **options))


CASES = [
    (sleeps, LATE, 0),
    (raises_signal(signal.SIGSEGV), ENDED, 0),
    (raises_signal(signal.SIGABRT), ENDED, 0),
    (raises_signal(signal.SIGKILL), ENDED, 1),
    (lambda: os._exit(3), ENDED, 0),
    (lambda: os._exit(0), ENDED, 1),
]
NAMES = ["sleeps", "segv", "abort", "kill", "exit 3", "exit 0"]


@pytest.mark.parametrize(("what", "cause", "killed"), CASES, ids=NAMES)
def test_training_goes_on_without_it(
    tmp_path: Path,
    evil: dict[str, Callable[[], Any]],
    what: Callable[[], Any],
    cause: str,
    killed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = [key for key in take(loader(tmp_path), 18) if key != "00013"]
    evil["00013"] = what
    training = loader(tmp_path)
    keys = take(training, 17)  # three passes over 23 samples; only the first meets it
    assert keys == expected[:68] and sorted(keys[:23]) == [k for k in KEYS if k != "00013"]
    assert training.skipped[cause] in (2, 3)  # once in each pass
    assert training.skipped["worker killed"] == killed
    assert f"{cause} (00013 in {tmp_path / '0001.tar'})" in caplog.text


def test_validation_counts_it_once_and_another_pass_does_not_try_again(
    tmp_path: Path, evil: dict[str, Callable[[], Any]]
) -> None:
    tries = tmp_path / "tries"

    def segv() -> None:
        with tries.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGSEGV)

    evil["00003"] = evil["00004"] = evil["00017"] = segv
    data = module(val=write_shards(tmp_path, [8, 8, 8]), num_workers=2)
    data.setup("validate")
    validation = data.val_dataloader()
    for _ in range(2):
        seen = [
            k for b in validation for k, valid in zip(b["key"], b["valid"], strict=True) if valid
        ]
        assert seen == [k for k in KEYS if k not in evil]
        assert validation.skipped == {ENDED: 3}
    assert tries.read_text() == "xxx"


def test_resume_is_exact_past_it(tmp_path: Path, evil: dict[str, Callable[[], Any]]) -> None:
    """A checkpoint knows the sample, which is not tried again."""
    tries = tmp_path / "tries"

    def segv() -> None:
        with tries.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGSEGV)

    evil["00013"] = segv
    expected = take(loader(tmp_path), 16)
    tries.unlink()
    first = loader(tmp_path)
    keys = take(first, 7)
    second = loader(tmp_path, num_workers=1, partitions=2)
    second.load_state_dict(first.state_dict())
    assert keys + take(second, 9) == expected
    assert tries.read_text() == "x" and second.skipped[ENDED] >= 1


def test_a_library_that_ends_every_worker_ends_the_run(
    tmp_path: Path, evil: dict[str, Callable[[], Any]]
) -> None:
    evil |= dict.fromkeys(KEYS, raises_signal(signal.SIGSEGV))
    with pytest.raises(UserError, match=r"again and again, at \d+ samples .*ended a worker"):
        take(loader(tmp_path, batch_size=24), 1)


def test_the_bound_is_kept_without_workers_and_alarms_are_put_back(
    tmp_path: Path, evil: dict[str, Callable[[], Any]]
) -> None:
    evil["00013"] = sleeps
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        training = loader(tmp_path, num_workers=0, sample_seconds=0.5)
        assert sorted(take(training, 6)[:23]) == [k for k in KEYS if k != "00013"]
        assert training.skipped == {"sample that takes more than 0.5 s to decode": 1}
        while not rung:
            signal.pause()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seconds", [0, None])
def test_there_may_be_no_bound(tmp_path: Path, seconds: float | None) -> None:
    assert module().sample_seconds == SECONDS
    training = loader(tmp_path, num_workers=1, sample_seconds=seconds)
    assert len(set(take(training, 6))) == 24 and training.samples.watch.seconds is None
    with pytest.raises(UserError, match=r"data.sample_seconds: -1 is below 0"):
        module(sample_seconds=-1)


@pytest.mark.parametrize(
    "what",
    [sleeps, raises_signal(signal.SIGSEGV), raises_signal(signal.SIGKILL), lambda: os._exit(3)],
    ids=["sleeps", "segv", "kill", "exit 3"],
)
def test_check_and_pack_name_it_and_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: Callable[[], Any],
) -> None:
    evil = samples(1, 5)[0]["jpg"]
    opened = codecs.open_image

    def opens(data: bytes) -> Any:
        if data == evil:
            what()
        return opened(data)

    monkeypatch.setattr("lgpl.data.decode.open_image", opens)
    write_shards(tmp_path / "shards", [8, 8])
    with pytest.raises(SystemExit):
        main(["data", "check", "--workers=2", "--sample-seconds=1", f"{tmp_path}/shards/*.tar"])
    cause = LATE if what is sleeps else ENDED
    said = capsys.readouterr()
    assert f"0000.tar: 00005: {cause}" in said.out + said.err
    assert "2 shards, 16 samples: 1 faults" in said.out
    for sample in samples(16):
        file = tmp_path / "in/a" / f"{sample['__key__']}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sample["jpg"])
    options = ["--out", f"{tmp_path}/out", "--val=0", "--workers=2", "--sample-seconds=1"]
    main(["data", "pack", f"{tmp_path}/in", *options])
    said = capsys.readouterr()
    assert f"skipped 1: {cause}, such as a/00005.jpg" in said.out
    assert "15 samples in 1 shard" in said.out and not list(tmp_path.glob("out/*partial*"))
