"""Chunks -> batches: the endless training loader that can be stopped anywhere, and the loaders of
one pass over validation or prediction samples."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn import functional as F

from lgpl.data import streams
from lgpl.data.order import Mixture, PartitionState, Position
from lgpl.data.store import is_url
from lgpl.data.streams import Batch, Chunk, Rank, ReadRequest, Samples

log = logging.getLogger(__name__)


class SamplerState(NamedTuple):
    """Where a rank's sampler stands after a batch."""

    partitions: dict[int, tuple[PartitionState, int]]  # of each, so many samples after a place
    partition: int  # whose turn it is
    rest: int  # samples that are left of the turn


def partitions_in_turn(
    mixture: Mixture, begin: SamplerState, remote: bool
) -> Iterator[ReadRequest]:
    """Requests without end for one rank's partitions in turn; where shards are remote, those that
    come next are named, to be fetched in time."""
    places = {partition: place for partition, (place, _) in begin.partitions.items()}
    partitions, number, turn = list(places), begin.rest, mixture.turn
    look_ahead: dict[int, int] = {}  # by partition: samples drawn when it is worthwhile again
    reach = turn + max(max(order.shuffle, *order.counts) for order in mixture.orders)
    first = partitions.index(begin.partition)
    for partition in itertools.islice(itertools.cycle(partitions), first, None):
        if number:
            start = places[partition]
            span, places[partition] = mixture.take(partition, start, number)
            ahead: tuple[int, ...] = ()
            if remote and places[partition].drawn >= look_ahead.get(partition, 0):
                following, _ = mixture.take(partition, places[partition], reach)
                ahead = tuple(dict.fromkeys(following.shards.tolist()))
                look_ahead[partition] = places[partition].drawn + reach // 2
            yield ReadRequest(span, partition, start, ahead)
        number = turn


def assembled(
    chunks: Iterable[tuple[ReadRequest, Chunk]], begin: SamplerState, batch_size: int
) -> Iterator[tuple[Batch, SamplerState]]:
    """Batches of exactly `batch_size` good samples, each with the sampler state after it."""
    parts: list[tuple[Batch, slice]] = []
    missing, state = batch_size, dict(begin.partitions)
    for request, chunk in chunks:
        assert request.start is not None
        first, size = 0, len(request.span.shards)
        while first < len(chunk.good):
            assert chunk.batch is not None
            last = min(first + missing, len(chunk.good))
            parts.append((chunk.batch, slice(first, last)))
            missing -= last - first
            if not missing:
                used = chunk.good[last - 1] + 1
                now = state | {request.partition: (request.start, used)}
                yield _joined(parts), SamplerState(now, request.partition, size - used)
                parts, missing = [], batch_size
            first = last
        state[request.partition] = (request.start, size)


def _joined(parts: list[tuple[Batch, slice]]) -> Batch:
    """Pieces of chunks as one batch; a whole chunk as it is."""
    if len(parts) == 1 and parts[0][1] == slice(0, len(parts[0][0]["key"])):
        return parts[0][0]
    pieces = [{name: values[cut] for name, values in batch.items()} for batch, cut in parts]
    longest = max(piece["text"].shape[1] for piece in pieces) if "text" in pieces[0] else 0
    joined: Batch = {}
    for name, first in pieces[0].items():
        values = [piece[name] for piece in pieces]
        if name == "text":  # padded on the left to the longest of its chunk
            values = [F.pad(text, (0, 0, longest - text.shape[1], 0)) for text in values]
        joined[name] = torch.cat(values) if torch.is_tensor(first) else [*itertools.chain(*values)]
    return streams.pinned(joined) if torch.cuda.is_available() else joined


@dataclass(eq=False)
class TrainLoader:
    """Batches without end, from this rank's partitions in turn; a checkpoint can go on after any.
    Samples depend on the partitions alone, not on the workers or what these have made ahead."""

    samples: Samples
    mixture: Mixture
    rank: Rank
    workers: int
    batch_size: int
    batches: int  # of one pass, Lightning's epoch
    fingerprint: str  # of the data that the mixture is about
    max_bad: float  # share of bad samples that is borne

    def __post_init__(self) -> None:
        one_pass = sum(order.total for order in self.mixture.orders) // self.rank.count
        self.skipped_counts = streams.SkippedCounts(
            "training", self.max_bad, one_pass, self.samples.decoder.fields
        )
        self.skipped = self.skipped_counts.skipped  # samples so far, by cause
        start = PartitionState(0, (Position(),) * len(self.mixture.orders))
        self._begin([start] * self.mixture.partitions, self.rank.index, self.mixture.turn)

    def _begin(self, places: Sequence[PartitionState], partition: int, rest: int) -> None:
        """Stand at these places of all partitions, in the turn of one with a rest of it left."""
        own = range(self.rank.index, len(places), self.rank.count)
        self._state = SamplerState({p: (places[p], 0) for p in own}, partition, rest)
        self._running: Iterator[tuple[Batch, SamplerState]] | None = None

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        if self._running is None:
            remote = any(map(is_url, self.samples.shards))
            requests = partitions_in_turn(self.mixture, self._state, remote)
            # Nothing in there refers to this loader: in a cycle the workers would end too late.
            chunks = streams.answered(self.samples, self.workers, requests, self.skipped_counts)
            self._running = assembled(chunks, self._state, self.batch_size)
        for batch, state in itertools.islice(self._running, self.batches):
            self._state = state  # Lightning asks for a batch when the last one was trained on
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The sampler state of all ranks, for the checkpoint; all ranks must call this."""
        partitions, partition, rest = self._state
        places = {p: self.mixture.take(p, place, n)[1] for p, (place, n) in partitions.items()}
        mine = places, [partition, rest], dict(self.samples.watch.skipped)
        ranks = [mine]
        if dist.is_available() and dist.is_initialized():
            ranks = [mine] * dist.get_world_size()
            dist.all_gather_object(ranks, mine)
        all_places = {p: place for partitions, *_ in ranks for p, place in partitions.items()}
        by_order = zip(*(place.positions for place in all_places.values()), strict=True)
        return {
            "data": self.fingerprint,
            "partitions": self.mixture.partitions,
            "turn": self.mixture.turn,
            "places": {
                partition: [place.drawn, [list(position) for position in place.positions]]
                for partition, place in all_places.items()
            },
            "turns": [turn for _, turn, _ in ranks],
            # Samples that stalled or ended a worker: whoever goes on does not try them again.
            "skipped": [[*place, why] for *_, found in ranks for place, why in found.items()],
            "left": [
                {e: torch.from_numpy(runs) for e, runs in order.left.items() if e >= first.epoch}
                for order, first in zip(self.mixture.orders, map(min, by_order), strict=True)
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stood: with the same samples in the same order, whatever the
        number of workers, where the partitions of the checkpoint divide evenly among the ranks;
        else what is left of the epoch is cut into new partitions, and no sample of it is lost or
        seen twice. Other data or another order of them begin anew."""
        if not state:
            return
        if state["data"] != self.fingerprint:
            log.warning(
                "The training data start at the beginning: the checkpoint was made with other "
                "shards, counts, weights, data.shuffle or data.seed."
            )
            return
        places = [
            PartitionState(drawn, tuple(Position(*position) for position in positions))
            for _, (drawn, positions) in sorted(state["places"].items())
        ]
        for order, left in zip(self.mixture.orders, state["left"], strict=True):
            order.left = {epoch: runs.numpy() for epoch, runs in left.items()}
        self.samples.watch.skipped |= {(s, n): why for s, n, why in state.get("skipped", [])}
        partitions, turn = self.mixture.partitions, self.mixture.turn
        self.mixture.set_partitions(state["partitions"], state["turn"])
        if state["partitions"] % self.rank.count:
            log.warning(
                "The checkpoint's %d partitions of data do not divide evenly among %d ranks: "
                "what is left of the epoch is cut into %d, and its samples come in another order.",
                *(state["partitions"], self.rank.count, partitions),
            )
            places = self.mixture.recut(places, partitions, turn)
        elif len(state["turns"]) == self.rank.count:
            return self._begin(places, *state["turns"][self.rank.index])
        self._begin(places, self.rank.index, self.mixture.turn)


@dataclass(eq=False)
class PassLoader:
    """One pass: batches made of the answers to a list of requests."""

    samples: Samples
    requests: Callable[[], Iterable[ReadRequest]]  # makes those of a pass
    workers: int
    batches: int | None  # how many, where it is known
    split: str  # name of the samples, for messages
    skipped: Counter[str] = field(default_factory=Counter)  # samples so far, by cause

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("the number of batches is not known beforehand")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        for _, chunk in self._answered():
            assert chunk.batch is not None
            yield chunk.batch

    def _answered(self) -> Iterator[tuple[ReadRequest, Chunk]]:
        counts = streams.SkippedCounts(self.split)
        self.skipped = counts.skipped
        return streams.answered(self.samples, self.workers, self.requests(), counts)


class ShardwiseLoader(PassLoader):
    """One pass shard by shard: adds to a batch `members` (the samples' own texts as bytes), `shard`
    and `end_of_shard`. No batch spans two shards, and one without a good sample gives none."""

    def __iter__(self) -> Iterator[Batch]:
        shards = self.samples.shards
        batches = (
            chunk.batch | {"shard": shards[request.span.shards[0]], "members": chunk.members}
            for request, chunk in self._answered()
            if chunk.batch is not None
        )
        end: Batch = {"shard": None}
        for batch, following in itertools.pairwise(itertools.chain(batches, [end])):
            yield batch | {"end_of_shard": batch["shard"] != following["shard"]}
