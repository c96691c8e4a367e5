"""The order: every epoch whole, any place reachable, nothing lost between numbers of lanes."""

from __future__ import annotations

from collections import Counter

import pytest

from lgpl.data.order import Cursor, Order

COUNTS = [7, 0, 13, 1, 30, 5]  # 56 samples, unlike each other
Sample = tuple[int, int, int]


def read(order: Order, lane: int, cursor: Cursor, number: int) -> tuple[list[Sample], Cursor]:
    span, after = order.take(lane, cursor, number)
    return list(zip(*(column.tolist() for column in span), strict=True)), after


def whole(order: Order, epoch: int) -> list[Sample]:
    """All samples that the lanes give of one epoch."""
    samples = []
    for lane in range(order.lanes):
        taken, _ = read(order, lane, Cursor(), 4 * order.total)
        samples += [sample for sample in taken if sample[0] == epoch]
    return samples


@pytest.mark.parametrize("lanes", [1, 3, 8, 20])
@pytest.mark.parametrize("shuffle", [0, 4, 1000])
def test_every_epoch_holds_every_sample_once(lanes: int, shuffle: int) -> None:
    order = Order(COUNTS, lanes, shuffle)
    for epoch in (0, 1, 2):
        expected = [(epoch, s, i) for s, count in enumerate(COUNTS) for i in range(count)]
        given = whole(order, epoch)
        assert sorted(given) == expected
        assert (given == expected) == (shuffle == 0)


def test_lanes_are_of_one_length_and_keep_to_their_shards() -> None:
    order = Order([100] * 50, lanes=8, shuffle=64)
    taken = [read(order, lane, Cursor(), 625)[0] for lane in range(8)]
    assert all(epoch == 0 for lane in taken for epoch, _, _ in lane)
    assert max(len({shard for _, shard, _ in lane}) for lane in taken) <= 8


def test_lanes_taken_in_turn_end_an_epoch_together() -> None:
    """Else one would begin the next epoch while another has samples of this one left."""
    order, cursors, seen = Order([219 * 8 + 7], 2, 50, turn=8), [Cursor(), Cursor()], []
    for batch in range(219):
        part, cursors[batch % 2] = read(order, batch % 2, cursors[batch % 2], 8)
        seen += part
    assert len(set(seen)) == 219 * 8 and {epoch for epoch, _, _ in seen} == {0}


def test_the_seed_decides() -> None:
    def orders(seed: int) -> list[Sample]:
        return read(Order(COUNTS, 1, 8, seed), 0, Cursor(), 112)[0]

    assert orders(1) == orders(1) != orders(2)
    first, second = orders(1)[:56], orders(1)[56:]
    assert [s[1:] for s in first] != [s[1:] for s in second]


@pytest.mark.parametrize("step", [1, 5, 56, 100])
def test_any_place_can_be_come_back_to(step: int) -> None:
    whole_way, _ = read(Order(COUNTS, 2, 6), 1, Cursor(), 200)
    cursor, taken = Cursor(), []
    while len(taken) < 200:
        part, cursor = read(Order(COUNTS, 2, 6), 1, cursor, step)  # nothing is remembered between
        taken += part
    assert taken[:200] == whole_way


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 3), (3, 8), (8, 1)])
@pytest.mark.parametrize("shuffle", [0, 5, 1000])
def test_nothing_is_lost_between_numbers_of_lanes(before: int, after: int, shuffle: int) -> None:
    """Twice: the second change meets what the first has left."""
    order, cursors = Order(COUNTS, before, shuffle), [Cursor()] * before
    seen: list[Sample] = []
    for lanes in (before, after, before):
        if lanes != order.lanes or seen:
            left = order.remaining(cursors)
            order = Order(COUNTS, lanes, shuffle, left=left)
            cursors = [Cursor(min(left))] * lanes
        for lane in range(lanes):  # lanes get ahead of each other where samples are skipped
            part, cursors[lane] = read(order, lane, cursors[lane], 3 + 2 * lane)
            seen += part
    for lane in range(order.lanes):
        part, _ = read(order, lane, cursors[lane], 2 * order.total)
        seen += part
    for epoch in (0, 1):
        once = Counter(sample[1:] for sample in seen if sample[0] == epoch)
        assert len(once) == 56 and set(once.values()) == {1}
