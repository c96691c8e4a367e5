"""The one loop that draws: shares of ranks, and memory that is full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lgpl.generator import GeneratorModule, Sampling
from lgpl.generator.conditions import Inputs, rows
from lgpl.inference import Drawer, ImageList, draw_in_turn, draw_into, load_generator, requests_for
from lgpl.inference.drawing import NO_IMAGE
from tests.inference.test_model import models  # noqa: F401


@pytest.fixture
def module(models: Any) -> GeneratorModule:  # noqa: F811
    return load_generator(str(models / "classes"), None, "cpu")


REQUESTS = requests_for([str(i % 10) for i in range(7)], Sampling(guidance=2.0), 3)


def codes_of(module: GeneratorModule, batch_size: int) -> Tensor:
    drawn = list(Drawer(module, batch_size).batches(REQUESTS))
    assert [r.number for batch, _ in drawn for r in batch] == list(range(7))
    return torch.cat([codes for _, codes in drawn])


def test_batches_change_no_code(module: GeneratorModule) -> None:
    assert torch.equal(codes_of(module, 7), codes_of(module, 2))


def test_full_memory_halves_this_batch_and_all_after_it(
    module: GeneratorModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sizes = codes_of(module, 7), []
    sample_codes = GeneratorModule.sample_codes

    def small(own: GeneratorModule, inputs: Inputs, *rest: Any) -> Tensor:
        if rows(inputs) > 2:
            raise torch.OutOfMemoryError("no room")
        sizes.append(rows(inputs))
        return sample_codes(own, inputs, *rest)

    monkeypatch.setattr(GeneratorModule, "sample_codes", small)
    assert torch.equal(codes_of(module, 5), whole) and sizes == [2, 2, 2, 1]


def test_shares_of_ranks_are_the_whole(module: GeneratorModule) -> None:
    whole = ImageList()
    assert draw_into(module, REQUESTS, whole, 3) == 7
    parts = []
    for rank in (0, 1):
        part = ImageList()
        draw_into(module, REQUESTS, part, 3, rank, 2)
        parts.append(part.images())
    assert torch.equal(parts[0], whole.images()[::2])
    assert torch.equal(parts[1], whole.images()[1::2])


def test_batches_in_turn_are_the_same_for_any_number_of_ranks(module: GeneratorModule) -> None:
    def drawn(rank: int, world: int) -> dict[int, Tensor]:
        return {
            number: image
            for numbers, images in draw_in_turn(module, REQUESTS, 3, rank, world)
            if images is not None
            for number, image in zip(numbers, images, strict=True)
        }

    whole, shares = drawn(0, 1), drawn(0, 2) | drawn(1, 2)
    assert whole.keys() == shares.keys() == set(range(7))
    assert all(torch.equal(whole[i], shares[i]) for i in whole)
    for rank, dealt in enumerate([[[0, 1, 2], [6]], [[3, 4, 5], [NO_IMAGE]]]):
        assert [numbers for numbers, _ in draw_in_turn(module, REQUESTS, 3, rank, 2)] == dealt
    skipped = draw_in_turn(module, REQUESTS, 3, skip=lambda numbers: numbers[-1] < 5)
    assert [images is None for _, images in skipped] == [True, False, False]
