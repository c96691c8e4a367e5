"""Which sample comes when: pure arithmetic on counts and a seed, so that any place in the training
stream can be named, stored in a checkpoint and come back to without reading what lies before it.

    shards, shuffled for each epoch     ─►  one long row of samples
    the row, cut into equal pieces      ─►  a lane each; a reader has one or more lanes
    a lane, shuffled block by block     ─►  the order in which its samples are read

A lane reads its own shards only, and all lanes of an epoch have the same length, but for a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

DRAWS = 1024  # of data sets, made at a time


class Cursor(NamedTuple):
    """A place in a lane: `done` of its samples of `epoch` are behind it."""

    epoch: int = 0
    done: int = 0


class Span(NamedTuple):
    """Samples in the order of a lane, [N] int64: their epochs, shards, places in the shards."""

    epochs: np.ndarray
    shards: np.ndarray
    places: np.ndarray


def seed_of(*names: object) -> int:
    """A seed that depends on the names alone, equal on every machine."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


def generator(*names: object) -> np.random.RandomState:
    """Random numbers by names; of numpy's generators this one never changes its streams."""
    return np.random.RandomState(seed_of(*names))


@dataclass
class Order:
    """The order of one data set's samples in all epochs.

    Attributes:
        counts: samples of each shard.
        lanes: pieces an epoch is cut into.
        turn: samples that a lane gives before the next one's turn; the cuts are between turns, so
            that all lanes come to the end of an epoch in the same round.
        shuffle: samples of a block that is shuffled together; 0 keeps the order of shards and
            samples.
        seed: decides the order.
        left: what is left of an epoch that other lanes have begun: runs [K, 2] of the epoch's row,
            each from its first sample to before its last.
    """

    counts: Sequence[int]
    lanes: int
    shuffle: int = 0
    seed: int = 0
    turn: int = 1
    left: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counts = np.asarray(self.counts, np.int64)
        self.total = int(self._counts.sum())
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._blocks: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def set_lanes(self, lanes: int, turn: int) -> None:
        self.lanes, self.turn = lanes, turn
        self._blocks.clear()

    def take(self, lane: int, cursor: Cursor, number: int) -> tuple[Span, Cursor]:
        """The next samples of a lane, over the end of its epoch where need be, and the place after.

        Only a lane of an order with at least as many samples as lanes may be asked.
        """
        epoch, done = cursor
        none = np.zeros(0, np.int64)
        parts = [(none, none, none)]
        while number:
            block = self._block(epoch, lane, done)
            part = block[done % self._block_size :][:number]
            if len(part):
                parts.append((np.full(len(part), epoch), *self._locate(epoch, part)))
            done, number = done + len(part), number - len(part)
            if done >= self.length(epoch, lane):
                epoch, done = epoch + 1, 0
        epochs, shards, places = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Span(epochs, shards, places), Cursor(epoch, done)

    def remaining(self, cursors: Sequence[Cursor]) -> dict[int, np.ndarray]:
        """What the lanes have not read yet of the epochs they stand in, as runs for `left`."""
        left = {e: runs for e, runs in self.left.items() if e > max(c.epoch for c in cursors)}
        for epoch in range(min(c.epoch for c in cursors), max(c.epoch for c in cursors) + 1):
            rest = [np.zeros((0, 2), np.int64)]
            for lane, cursor in enumerate(cursors):
                if cursor.epoch <= epoch:
                    rest += self._rest(epoch, lane, cursor.done if cursor.epoch == epoch else 0)
            left[epoch] = _merged(np.concatenate(rest))
        return left

    @property
    def _block_size(self) -> int:
        return self.shuffle or 4096

    def _work(self, epoch: int) -> np.ndarray:
        """The runs of the epoch's row that its lanes share."""
        return self.left.get(epoch, np.array([[0, self.total]], np.int64))

    def _bounds(self, epoch: int, lane: int) -> tuple[int, int]:
        work = self._work(epoch)
        total = int((work[:, 1] - work[:, 0]).sum())
        turn = self.turn if total >= self.turn * self.lanes else 1
        start, end = (-(-(total // turn) * n // self.lanes) * turn for n in (lane, lane + 1))
        return start, end if lane + 1 < self.lanes else total

    def length(self, epoch: int, lane: int) -> int:
        """Samples of a lane in an epoch."""
        start, end = self._bounds(epoch, lane)
        return end - start

    def _block(self, epoch: int, lane: int, done: int) -> np.ndarray:
        """Places in the row of the samples in the block that `done` lies in, in reading order."""
        number = done // self._block_size
        known = self._blocks.get(lane)
        if known and known[0] == (epoch, number):
            return known[1]
        start, end = self._bounds(epoch, lane)
        low = start + number * self._block_size
        places = np.arange(low, min(low + self._block_size, end))
        if self.shuffle:
            generator(self.seed, epoch, lane, self.lanes, number).shuffle(places)
        work = self._work(epoch)
        ends = np.cumsum(work[:, 1] - work[:, 0])
        run = np.searchsorted(ends, places, side="right")
        places = work[run, 1] - (ends[run] - places)
        self._blocks[lane] = (epoch, number), places
        return places

    def _rest(self, epoch: int, lane: int, done: int) -> list[np.ndarray]:
        """Runs of what comes after `done` in a lane."""
        start, end = self._bounds(epoch, lane)
        single = self._block(epoch, lane, done)[done % self._block_size :]
        low = start + (done // self._block_size + 1) * self._block_size
        work = self._work(epoch)
        ends = np.cumsum(work[:, 1] - work[:, 0])
        begins = ends - (work[:, 1] - work[:, 0])
        # The part of each run that lies in the lane behind this block.
        first = work[:, 0] + np.clip(low - begins, 0, None)
        last = work[:, 1] - np.clip(ends - end, 0, None)
        behind = np.stack([first, last], axis=1)[first < last]
        return [np.stack([single, single + 1], axis=1), behind]

    def _locate(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shards, and places in them, of places in the epoch's row."""
        if epoch not in self._rows:
            shards = np.arange(len(self.counts))
            if self.shuffle:
                generator(self.seed, epoch).shuffle(shards)
            ends = np.cumsum(self._counts[shards])
            self._rows = {e: row for e, row in self._rows.items() if e == epoch - 1}
            self._rows[epoch] = shards, ends
        shards, ends = self._rows[epoch]
        index = np.searchsorted(ends, places, side="right")
        begins = ends[index] - self._counts[shards[index]]
        return shards[index], places - begins


def _merged(runs: np.ndarray) -> np.ndarray:
    """The same places in as few runs as possible, in order."""
    runs = runs[runs[:, 0].argsort()]
    if not len(runs):
        return runs
    starts = np.append(True, runs[1:, 0] != runs[:-1, 1])
    last = np.append(starts[1:], True)
    return np.stack([runs[starts, 0], runs[last, 1]], axis=1)


class Progress(NamedTuple):
    """A place in a lane of a mixture: samples drawn so far, and the place in each data set."""

    drawn: int
    cursors: tuple[Cursor, ...]


@dataclass
class Mixture:
    """Several data sets as one: every sample of a lane comes from one drawn by weight.

    Each data set has epochs of its own, and none repeats a sample before it has given all.

    Attributes:
        orders: one for each data set, all with the same lanes.
        weights: how often each is drawn, in any unit.
        seed: decides the draws.
    """

    orders: Sequence[Order]
    weights: Sequence[float]
    seed: int = 0

    @property
    def lanes(self) -> int:
        return self.orders[0].lanes

    def start(self) -> Progress:
        """The beginning of a lane."""
        return Progress(0, (Cursor(),) * len(self.orders))

    def recut(self, places: Sequence[Progress], lanes: int, turn: int) -> list[Progress]:
        """Cut what the lanes have not read yet of their epochs into other lanes; gives the places
        at which those begin."""
        first = []
        for index, order in enumerate(self.orders):
            left = order.remaining([place.cursors[index] for place in places])
            first.append(Cursor(min(left)))
            order.left = left
        self.set_lanes(lanes, turn)
        return [Progress(0, tuple(first))] * lanes

    def set_lanes(self, lanes: int, turn: int) -> None:
        for order in self.orders:
            order.set_lanes(lanes, turn)

    def take(self, lane: int, progress: Progress, number: int) -> tuple[Span, Progress]:
        """The next samples of a lane; shards are numbered through all data sets."""
        drawn, cursors = progress.drawn, list(progress.cursors)
        choice = self._draws(lane, drawn, number)
        columns = np.zeros((3, number), np.int64)
        first_shard = 0
        for index, order in enumerate(self.orders):
            mine = choice == index
            if mine.any():
                span, cursors[index] = order.take(lane, cursors[index], int(mine.sum()))
                columns[:, mine] = span
                columns[1, mine] += first_shard
            first_shard += len(order.counts)
        return Span(*columns), Progress(drawn + number, tuple(cursors))

    def _draws(self, lane: int, drawn: int, number: int) -> np.ndarray:
        if len(self.orders) == 1:
            return np.zeros(number, np.int64)
        shares = np.asarray(self.weights, float) / sum(self.weights)
        first, last = drawn // DRAWS, (drawn + number - 1) // DRAWS
        draws = [
            generator(self.seed, "draws", lane, block).choice(len(shares), DRAWS, p=shares)
            for block in range(first, last + 1)
        ]
        return np.concatenate(draws)[drawn - first * DRAWS :][:number]
