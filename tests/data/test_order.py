"""The order: every epoch whole, any place reachable, nothing lost between numbers of partitions."""

from __future__ import annotations

from collections import Counter

import pytest

from lgpl.data.order import Order, Position

COUNTS = [7, 0, 13, 1, 30, 5]  # 56 samples, unlike each other
Sample = tuple[int, int, int]


def read(
    order: Order, partition: int, position: Position, number: int
) -> tuple[list[Sample], Position]:
    span, after = order.take(partition, position, number)
    return list(zip(*(column.tolist() for column in span), strict=True)), after


def whole(order: Order, epoch: int) -> list[Sample]:
    """All samples that the partitions give of one epoch."""
    samples = []
    for partition in range(order.partitions):
        taken, _ = read(order, partition, Position(), 4 * order.total)
        samples += [sample for sample in taken if sample[0] == epoch]
    return samples


@pytest.mark.parametrize("partitions", [1, 3, 8, 20])
@pytest.mark.parametrize("shuffle", [0, 4, 1000])
def test_every_epoch_holds_every_sample_once(partitions: int, shuffle: int) -> None:
    order = Order(COUNTS, partitions, shuffle)
    for epoch in (0, 1, 2):
        expected = [(epoch, s, i) for s, count in enumerate(COUNTS) for i in range(count)]
        given = whole(order, epoch)
        assert sorted(given) == expected
        assert (given == expected) == (shuffle == 0)


def test_lanes_are_of_one_length_and_keep_to_their_shards() -> None:
    order = Order([100] * 50, partitions=8, shuffle=64)
    taken = [read(order, partition, Position(), 625)[0] for partition in range(8)]
    assert all(epoch == 0 for partition in taken for epoch, _, _ in partition)
    assert max(len({shard for _, shard, _ in partition}) for partition in taken) <= 8


def test_lanes_taken_in_turn_end_an_epoch_together() -> None:
    """Else one would begin the next epoch while another has samples of this one left."""
    order, positions, seen = Order([219 * 8 + 7], 2, 50, turn=8), [Position(), Position()], []
    for batch in range(219):
        part, positions[batch % 2] = read(order, batch % 2, positions[batch % 2], 8)
        seen += part
    assert len(set(seen)) == 219 * 8 and {epoch for epoch, _, _ in seen} == {0}


def test_the_seed_decides() -> None:
    def orders(seed: int) -> list[Sample]:
        return read(Order(COUNTS, 1, 8, seed), 0, Position(), 112)[0]

    assert orders(1) == orders(1) != orders(2)
    first, second = orders(1)[:56], orders(1)[56:]
    assert [s[1:] for s in first] != [s[1:] for s in second]


@pytest.mark.parametrize("step", [1, 5, 56, 100])
def test_any_place_can_be_come_back_to(step: int) -> None:
    whole_way, _ = read(Order(COUNTS, 2, 6), 1, Position(), 200)
    position, taken = Position(), []
    while len(taken) < 200:
        part, position = read(
            Order(COUNTS, 2, 6), 1, position, step
        )  # nothing is remembered between
        taken += part
    assert taken[:200] == whole_way


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 3), (3, 8), (8, 1)])
@pytest.mark.parametrize("shuffle", [0, 5, 1000])
def test_nothing_is_lost_between_numbers_of_partitions(
    before: int, after: int, shuffle: int
) -> None:
    """Twice: the second change meets what the first has left."""
    order, positions = Order(COUNTS, before, shuffle), [Position()] * before
    seen: list[Sample] = []
    for partitions in (before, after, before):
        if partitions != order.partitions or seen:
            left = order.remaining(positions)
            order = Order(COUNTS, partitions, shuffle, left=left)
            positions = [Position(min(left))] * partitions
        for partition in range(
            partitions
        ):  # partitions get ahead of each other where samples are skipped
            part, positions[partition] = read(
                order, partition, positions[partition], 3 + 2 * partition
            )
            seen += part
    for partition in range(order.partitions):
        part, _ = read(order, partition, positions[partition], 2 * order.total)
        seen += part
    for epoch in (0, 1):
        once = Counter(sample[1:] for sample in seen if sample[0] == epoch)
        assert len(once) == 56 and set(once.values()) == {1}
