"""lgpl's sampler as an engine, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lgpl.generator import GeneratorModule, Sampling
from lgpl.generator.conditions import Inputs, rows
from lgpl.inference import load_generator
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
    sample_codes = GeneratorModule.sample_codes

    def some(module: GeneratorModule, inputs: Inputs, *rest: Any, **more: Any) -> Tensor:
        tried.append(rows(inputs))
        if rows(inputs) > 2:
            raise torch.OutOfMemoryError("no room")
        return sample_codes(module, inputs, *rest, **more)

    monkeypatch.setattr(GeneratorModule, "sample_codes", some)
    assert draw(engine, [0, 1, 2, 3]) == whole and tried == [4, 2, 2]
    assert draw(engine, [0, 1, 2, 3]) == whole and tried == [4, 2, 2, 2, 2]


def test_one_image_without_room_fails_alone(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = draw(engine, [5])
    with monkeypatch.context() as patch:

        def none(*_: Any, **__: Any) -> Tensor:
            raise torch.OutOfMemoryError("no room")

        patch.setattr(GeneratorModule, "sample_codes", none)
        (((error, whole),),) = draw(engine, [5])
        assert "not even one image fits" in str(error) and whole
    assert draw(engine, [5]) == before and engine.alive


def test_rows_come_in_order_and_each_once(engine: SamplerEngine) -> None:
    (shown,) = draw(engine, [7], partial=64)
    rows = engine.module.model.layout.rows
    assert [whole for _, whole in shown] == [False] * (rows - 1) + [True]
    assert len({png for png, _ in shown}) == rows
