"""Which sample comes when: pure arithmetic on counts and a seed, so that any place in the training
stream can be named, stored in a checkpoint and come back to without reading what lies before it.

    shards, shuffled for each epoch       ─►  one long row of samples
    the row, cut into equal pieces        ─►  a partition each; a reader has one or more partitions
    a partition, shuffled block by block  ─►  the order in which its samples are read

A partition reads its own shards only; all of an epoch are of one length, but for a sample.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

DRAWS = 1024  # of data sets, made at a time


class Position(NamedTuple):
    """Where a partition stands: `done` of its samples of `epoch` have been given."""

    epoch: int = 0
    done: int = 0


class Span(NamedTuple):
    """Samples in a partition's order, [N] int64: their epochs, shards, places in the shards."""

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
    """The order of one data set's samples in all epochs."""

    counts: Sequence[int]  # samples of each shard
    partitions: int  # pieces an epoch is cut into
    shuffle: int = 0  # samples of a block that is shuffled together; 0 keeps the order
    seed: int = 0
    # Samples that a partition gives before the next one's turn; the cuts are between turns, so that
    # all partitions come to the end of an epoch in the same round.
    turn: int = 1
    # What is left of an epoch that other partitions have begun: runs [K, 2] of the epoch's row,
    # each from its first sample to before its last.
    left: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counts = np.asarray(self.counts, np.int64)
        self.total = int(self._counts.sum())
        self._block_size = self.shuffle or 4096
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._blocks: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def take(self, partition: int, position: Position, number: int) -> tuple[Span, Position]:
        """The next samples of a partition, and the position after; an epoch may end between. There
        must be at least as many samples as partitions."""
        epoch, done = position
        none = np.zeros(0, np.int64)
        parts = [(none, none, none)]
        while number:
            block = self._block(epoch, partition, done)
            part = block[done % self._block_size :][:number]
            if len(part):
                parts.append((np.full(len(part), epoch), *self._locate(epoch, part)))
            done, number = done + len(part), number - len(part)
            if done >= self.length(epoch, partition):
                epoch, done = epoch + 1, 0
        epochs, shards, places = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Span(epochs, shards, places), Position(epoch, done)

    def remaining(self, positions: Sequence[Position]) -> dict[int, np.ndarray]:
        """What the partitions have not read yet of the epochs they stand in, as runs for `left`."""
        epochs = [position.epoch for position in positions]
        left = {epoch: runs for epoch, runs in self.left.items() if epoch > max(epochs)}
        for epoch in range(min(epochs), max(epochs) + 1):
            rest = [np.zeros((0, 2), np.int64)]
            for partition, position in enumerate(positions):
                if position.epoch <= epoch:
                    done = position.done if position.epoch == epoch else 0
                    rest += self._rest(epoch, partition, done)
            left[epoch] = _merged(np.concatenate(rest))
        return left

    def length(self, epoch: int, partition: int) -> int:
        """Samples of a partition in an epoch."""
        start, end = self._bounds(epoch, partition)
        return end - start

    def _runs(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The runs of the epoch's row that its partitions share: where they begin and end in the
        row, and the samples up to the end of each."""
        firsts, lasts = self.left.get(epoch, np.array([[0, self.total]], np.int64)).T
        return firsts, lasts, np.cumsum(lasts - firsts)

    def _bounds(self, epoch: int, partition: int) -> tuple[int, int]:
        firsts, lasts, _ = self._runs(epoch)
        total = int((lasts - firsts).sum())
        turn = self.turn if total >= self.turn * self.partitions else 1
        start, end = (
            -(-(total // turn) * n // self.partitions) * turn for n in (partition, partition + 1)
        )
        return start, end if partition + 1 < self.partitions else total

    def _block(self, epoch: int, partition: int, done: int) -> np.ndarray:
        """Places in the row of the samples in the block that `done` lies in, in reading order."""
        number = done // self._block_size
        known = self._blocks.get(partition)
        if known and known[0] == (epoch, number):
            return known[1]
        start, end = self._bounds(epoch, partition)
        low = start + number * self._block_size
        places = np.arange(low, min(low + self._block_size, end))
        if self.shuffle:
            generator(self.seed, epoch, partition, self.partitions, number).shuffle(places)
        _, lasts, ends = self._runs(epoch)
        run = np.searchsorted(ends, places, side="right")
        places = lasts[run] - (ends[run] - places)
        self._blocks[partition] = (epoch, number), places
        return places

    def _rest(self, epoch: int, partition: int, done: int) -> list[np.ndarray]:
        """Runs of what comes after `done` in a partition."""
        start, end = self._bounds(epoch, partition)
        single = self._block(epoch, partition, done)[done % self._block_size :]
        low = start + (done // self._block_size + 1) * self._block_size
        firsts, lasts, ends = self._runs(epoch)
        # The part of each run that lies in the partition behind this block.
        first = firsts + np.clip(low - (ends - (lasts - firsts)), 0, None)
        last = lasts - np.clip(ends - end, 0, None)
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


class PartitionState(NamedTuple):
    """A place in a partition of a mixture: samples drawn so far, and the place in each data set."""

    drawn: int
    positions: tuple[Position, ...]


@dataclass
class Mixture:
    """Several data sets as one: every sample of a partition comes from one drawn by weight. Each
    data set has epochs of its own, and none repeats a sample before it has given all."""

    orders: Sequence[Order]  # of each data set, all with the same partitions
    weights: Sequence[float]  # how often each is drawn, in any unit
    seed: int = 0  # of the draws

    @property
    def partitions(self) -> int:
        return self.orders[0].partitions

    @property
    def turn(self) -> int:
        return self.orders[0].turn

    def recut(
        self, places: Sequence[PartitionState], partitions: int, turn: int
    ) -> list[PartitionState]:
        """Cut what is left of the epochs into other partitions; gives their first states."""
        first = []
        for index, order in enumerate(self.orders):
            order.left = order.remaining([place.positions[index] for place in places])
            first.append(Position(min(order.left)))
        self.set_partitions(partitions, turn)
        return [PartitionState(0, tuple(first))] * partitions

    def set_partitions(self, partitions: int, turn: int) -> None:
        self.orders = [replace(o, partitions=partitions, turn=turn) for o in self.orders]

    def take(self, partition: int, at: PartitionState, number: int) -> tuple[Span, PartitionState]:
        """The next samples of a partition; shards are numbered through all data sets."""
        drawn, positions = at.drawn, list(at.positions)
        choice = self._draws(partition, drawn, number)
        columns = np.zeros((3, number), np.int64)
        first_shard = 0
        for index, order in enumerate(self.orders):
            mine = choice == index
            if mine.any():
                span, positions[index] = order.take(partition, positions[index], int(mine.sum()))
                columns[:, mine] = span
                columns[1, mine] += first_shard
            first_shard += len(order.counts)
        return Span(*columns), PartitionState(drawn + number, tuple(positions))

    def _draws(self, partition: int, drawn: int, number: int) -> np.ndarray:
        if len(self.orders) == 1 or not number:
            return np.zeros(number, np.int64)
        shares = np.asarray(self.weights, float) / sum(self.weights)
        first, last = drawn // DRAWS, (drawn + number - 1) // DRAWS
        draws = [
            generator(self.seed, "draws", partition, block).choice(len(shares), DRAWS, p=shares)
            for block in range(first, last + 1)
        ]
        return np.concatenate(draws)[drawn - first * DRAWS :][:number]
