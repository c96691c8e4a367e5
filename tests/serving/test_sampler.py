"""lgpl's sampler as an engine, in this process."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lgpl.generator import GeneratorModule, Sampling
from lgpl.inference import load_generator
from lgpl.serving import sampler
from lgpl.serving.engine import ImageJob
from lgpl.serving.sampler import SamplerEngine
from tests.serving.servers import export

Shown = tuple[Any, bool]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SamplerEngine]:
    made = SamplerEngine(load_generator(str(export(tmp_path)), None, "cpu"), batch_size=4)
    yield made
    made.close()


def draw(engine: SamplerEngine, seeds: list[int], partial: int = 0) -> list[list[Shown]]:
    """What is shown of each seed's image, all submitted at once."""
    shown: list[list[Shown]] = [[] for _ in seeds]
    done = threading.Semaphore(0)

    def see(i: int, png: bytes | Exception, whole: bool) -> None:
        shown[i].append((png, whole))
        if whole:
            done.release()

    engine.queue.put(
        [
            ImageJob(
                engine.prepare("3"), Sampling(1.0 + seed), seed, partial,
                lambda png, whole, i=i: see(i, png, whole),  # type: ignore[misc]
            )
            for i, seed in enumerate(seeds)
        ]
    )  # fmt: skip
    for _ in seeds:
        assert done.acquire(timeout=60)
    return shown


def test_a_full_memory_halves_the_batch(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images stay the same, and the batch that did not fit is not tried again."""
    whole, tried = draw(engine, [0, 1, 2, 3]), []

    class Small(sampler.Group):
        def __init__(self, module: GeneratorModule, jobs: list[ImageJob]) -> None:
            tried.append(len(jobs))
            if len(jobs) > 2:
                raise torch.OutOfMemoryError("no room")
            super().__init__(module, jobs)

    monkeypatch.setattr(sampler, "Group", Small)
    assert draw(engine, [0, 1, 2, 3]) == whole and tried == [4, 2, 2]
    assert draw(engine, [0, 1, 2, 3]) == whole and max(tried[3:]) == 2


def test_one_image_without_room_fails_alone(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = draw(engine, [5])
    with monkeypatch.context() as patch:

        def none(*_: Any, **__: Any) -> Tensor:
            raise torch.OutOfMemoryError("no room")

        patch.setattr(sampler, "Group", none)
        (((error, whole),),) = draw(engine, [5])
        assert "not even one image fits" in str(error) and whole
    assert draw(engine, [5]) == before and engine.alive


def test_images_join_between_two_steps(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the one that it is alone, whatever is drawn beside it and wherever that stands."""
    alone = {seed: draw(engine, [seed])[0] for seed in range(4)}
    groups: list[list[int]] = []
    together = sampler.decode_together
    shown: dict[int, list[Shown]] = {seed: [] for seed in alone}
    done = threading.Semaphore(0)

    def see(seed: int, png: bytes | Exception, whole: bool) -> None:
        shown[seed].append((png, whole))
        if whole:
            done.release()

    def put(seed: int) -> None:
        prompt, sampling = engine.prepare("3"), Sampling(1.0 + seed)
        engine.queue.put([ImageJob(prompt, sampling, seed, 0, functools.partial(see, seed))])

    def watched(model: Any, drawings: Any) -> None:
        groups.append([len(drawing.logits) for drawing in drawings])
        if len(groups) in (3, 5, 9):  # in the middle of the others
            put({3: 1, 5: 2, 9: 3}[len(groups)])
        together(model, drawings)

    monkeypatch.setattr(sampler, "decode_together", watched)
    put(0)
    for _ in alone:
        assert done.acquire(timeout=60)
    assert shown == alone
    assert max(map(len, groups)) == 4  # each group at its own place
    assert [1, 2, 2, 2] in groups  # the first is drawn without guidance: one row, not two


def test_where_much_waits_images_join_by_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an image that began alone would be followed by another alone, for ever."""
    engine = SamplerEngine(load_generator(str(export(tmp_path)), None, "cpu"), batch_size=8)
    sizes, done, steps = list[int](), threading.Semaphore(0), itertools.count()
    together = sampler.decode_together

    def put(number: int) -> None:
        prompt = engine.prepare("3")
        jobs = [ImageJob(prompt, Sampling(), i, 0, see) for i in range(number)]
        engine.queue.put(jobs)

    def see(*_: Any) -> None:
        done.release()

    def watched(model: Any, drawings: Any) -> None:
        if next(steps) == 0:  # the first image is begun
            put(11)
        together(model, drawings)

    class Counted(sampler.Group):
        def __init__(self, module: GeneratorModule, jobs: list[ImageJob]) -> None:
            sizes.append(len(jobs))
            super().__init__(module, jobs)

    monkeypatch.setattr(sampler, "Group", Counted)
    monkeypatch.setattr(sampler, "decode_together", watched)
    put(1)
    for _ in range(12):
        assert done.acquire(timeout=60)
    engine.close()
    assert sizes == [1, 7, 4]


def test_a_failing_step_fails_what_is_drawn_alone(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = draw(engine, [5, 6])
    with monkeypatch.context() as patch:

        def fails(*_: Any) -> None:
            raise RuntimeError("no step")

        patch.setattr(sampler, "decode_together", fails)
        for ((error, whole),) in draw(engine, [5, 6]):
            assert str(error) == "no step" and whole
    assert draw(engine, [5, 6]) == before and engine.alive


def test_rows_come_in_order_and_each_once(engine: SamplerEngine) -> None:
    (shown,) = draw(engine, [7], partial=64)
    rows = engine.module.model.layout.rows
    assert [whole for _, whole in shown] == [False] * (rows - 1) + [True]
    assert len({png for png, _ in shown}) == rows
