"""Chunks -> batches: the endless training loader that can be stopped anywhere, and the loaders of
one pass over validation or prediction samples."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn import functional as F

from lgpl.data.order import Cursor, Mixture, Progress
from lgpl.data.store import is_url
from lgpl.data.streams import Batch, Chunk, Place, Request, Samples, pinned
from lgpl.data.workers import Tally, Workers

log = logging.getLogger(__name__)

SMALL_GROUP = 8  # requests for codes that a worker takes at once


class Behind(NamedTuple):
    """What is behind a rank after a batch.

    Attributes:
        lanes: of each lane, so many samples after a place.
        lane: whose turn it was.
        rest: samples that are left of the turn.
    """

    lanes: dict[int, tuple[Progress, int]]
    lane: int
    rest: int


def lane_by_lane(
    mixture: Mixture,
    lanes: range,
    places: Sequence[Progress],
    first: int,
    rest: int,
    turn: int,
    remote: bool,
) -> Iterator[Request]:
    """Requests without end for one rank's lanes in turn.

    Args:
        mixture: the order of the samples.
        lanes: of this rank.
        places: where each of all lanes begins.
        first: the lane whose turn it is.
        rest: samples that are left of its turn.
        turn: samples of a turn.
        remote: name the shards that come next, to be fetched in time.
    """
    places, number = list(places), rest
    announced: dict[int, int] = {}  # by lane: samples drawn when it is worth to look ahead again
    reach = turn + max(max(order.shuffle, *order.counts) for order in mixture.orders)
    for lane in itertools.islice(itertools.cycle(lanes), lanes.index(first), None):
        if number:
            start = places[lane]
            span, places[lane] = mixture.take(lane, start, number)
            ahead: tuple[int, ...] = ()
            if remote and places[lane].drawn >= announced.get(lane, 0):
                following, _ = mixture.take(lane, places[lane], reach)
                ahead = tuple(dict.fromkeys(following.shards.tolist()))
                announced[lane] = places[lane].drawn + reach // 2
            yield Request(span, lane, start, ahead)
        number = turn


def assembled(
    chunks: Iterable[tuple[Request, Chunk]], tally: Tally, batch_size: int
) -> Iterator[tuple[Batch, Behind]]:
    """Batches of exactly `batch_size` good samples, each with what is behind the rank after it."""
    parts: list[tuple[Batch, slice]] = []
    missing = batch_size
    behind: dict[int, tuple[Progress, int]] = {}
    for request, chunk in chunks:
        tally.add(chunk)
        assert request.start is not None
        first, size = 0, len(request.span.shards)
        while first < len(chunk.good):
            assert chunk.batch is not None
            last = min(first + missing, len(chunk.good))
            parts.append((chunk.batch, slice(first, last)))
            missing -= last - first
            if not missing:
                used = chunk.good[last - 1] + 1
                now = behind | {request.lane: (request.start, used)}
                yield _joined(parts), Behind(now, request.lane, size - used)
                parts, missing = [], batch_size
            first = last
        behind[request.lane] = (request.start, size)


class TrainLoader:
    """Batches without end, from this rank's lanes in turn; a checkpoint can go on after any.

    The sequence of samples depends on the lanes alone: the number of workers, and what they have
    made in advance, make no difference.

    Args:
        samples: what decodes.
        mixture: the order of the samples.
        rank: which rank this is.
        workers: processes that decode.
        batch_size: samples of a batch.
        batches: batches of one pass, for Lightning an epoch; the next goes on where it ended. None
            is one pass without end.
        fingerprint: of the data that the order is about.
        max_bad: share of bad samples that is borne.
    """

    def __init__(
        self,
        samples: Samples,
        mixture: Mixture,
        rank: Place,
        workers: int,
        batch_size: int,
        batches: int | None,
        fingerprint: str,
        max_bad: float,
    ) -> None:
        self.samples, self.mixture, self.rank, self.workers = samples, mixture, rank, workers
        self.batch_size, self.batches, self.fingerprint = batch_size, batches, fingerprint
        one_pass = sum(order.total for order in mixture.orders) // rank.count
        self.tally = Tally("training", max_bad, one_pass)
        # Samples of a lane's turn: with one lane for each worker a turn is a batch.
        self.turn = max(1, batch_size * rank.count * max(1, workers) // mixture.lanes)
        mixture.set_lanes(mixture.lanes, self.turn)
        self._places = [mixture.start()] * mixture.lanes
        self._next, self._rest = rank.index, self.turn  # whose turn it is, and what is left of it
        self._behind: Behind | None = None  # since those places
        self._running: Iterator[tuple[Batch, Behind]] | None = None

    @property
    def skipped(self) -> Counter[str]:
        """Samples that were skipped so far, by cause."""
        return self.tally.skipped

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("an endless stream has no length")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        if self._running is None:
            requests = lane_by_lane(
                self.mixture, self._lanes, self._places, self._next, self._rest, self.turn,
                any(map(is_url, self.samples.shards)),
            )  # fmt: skip
            group = 1 if "image" in self.samples.decoder.fields else SMALL_GROUP
            chunks = Workers(self.samples, self.workers, requests, self.tally.worker_killed, group)
            # Nothing in there refers to this loader: in a cycle the workers would end too late.
            self._running = assembled(chunks, self.tally, self.batch_size)
        for batch, behind in itertools.islice(self._running, self.batches):
            # A loader of known length is asked for a batch when the last one was trained on; an
            # endless one is asked for one batch ahead.
            if self.batches is not None:
                self._behind = behind
            yield batch
            if self.batches is None:
                self._behind = behind

    @property
    def _lanes(self) -> range:
        return range(self.rank.index, self.mixture.lanes, self.rank.count)

    def state_dict(self) -> dict[str, Any]:
        """The places in all ranks' lanes, for the checkpoint; all ranks must call it together."""
        places, turn = list(self._places), (self._next, self._rest)
        if self._behind is not None:
            for lane, (start, number) in self._behind.lanes.items():
                places[lane] = self.mixture.take(lane, start, number)[1]
            turn = self._behind.lane, self._behind.rest
        mine = {lane: places[lane] for lane in self._lanes}, turn
        ranks = [mine]
        if dist.is_available() and dist.is_initialized():
            ranks = [mine] * dist.get_world_size()
            dist.all_gather_object(ranks, mine)
        all_places = {lane: place for lanes, _ in ranks for lane, place in lanes.items()}
        return {
            "data": self.fingerprint,
            "lanes": self.mixture.lanes,
            "turn": self.turn,
            "places": {lane: _plain(place) for lane, place in all_places.items()},
            "turns": [list(turn) for _, turn in ranks],
            "left": [
                {
                    epoch: torch.from_numpy(runs)
                    for epoch, runs in order.left.items()
                    if any(place.cursors[index].epoch <= epoch for place in all_places.values())
                }
                for index, order in enumerate(self.mixture.orders)
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stood.

        The same samples follow in the same order, whatever the number of workers, where the lanes
        of the checkpoint can be shared out evenly among the ranks; else what is left of the epoch
        is cut into new lanes, and no sample of it is lost or seen twice. Other data or another
        order of them begin anew.
        """
        if not state:
            return
        places = [_progress(state["places"][lane]) for lane in sorted(state["places"])]
        if state["data"] != self.fingerprint:
            log.warning(
                "The training data start at the beginning: the checkpoint was made with other "
                "shards, counts, weights, data.shuffle or data.seed."
            )
            return
        for order, left in zip(self.mixture.orders, state["left"], strict=True):
            order.left = {epoch: runs.numpy() for epoch, runs in left.items()}
        lanes, turn = self.mixture.lanes, self.turn
        self.mixture.set_lanes(state["lanes"], state["turn"])
        if state["lanes"] % self.rank.count == 0:
            self.turn, self._places = state["turn"], places
            self._next, self._rest = self.rank.index, self.turn
            if len(state["turns"]) == self.rank.count:
                self._next, self._rest = state["turns"][self.rank.index]
        else:
            log.warning(
                "The checkpoint's %d lanes of data cannot be shared out evenly among %d ranks: "
                "what is left of the epoch is cut into %d, and its samples come in another order.",
                *(state["lanes"], self.rank.count, lanes),
            )
            self._places = self.mixture.recut(places, lanes, turn)
        self._behind, self._running = None, None


def _plain(place: Progress) -> list[Any]:
    return [place.drawn, [list(cursor) for cursor in place.cursors]]


def _progress(plain: list[Any]) -> Progress:
    return Progress(plain[0], tuple(Cursor(*cursor) for cursor in plain[1]))


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
    return pinned(joined) if torch.cuda.is_available() else joined


class PassLoader:
    """One pass: batches made of the answers to a list of requests.

    Args:
        samples: what decodes.
        requests: makes the requests of a pass.
        workers: processes that decode.
        batches: number of batches, where it is known.
        split: name of the samples, for messages.
    """

    def __init__(
        self,
        samples: Samples,
        requests: Callable[[], Iterable[Request]],
        workers: int,
        batches: int | None,
        split: str,
    ) -> None:
        self.samples, self.requests, self.workers = samples, requests, workers
        self.batches, self.split = batches, split
        self.tally = Tally(split)

    @property
    def skipped(self) -> Counter[str]:
        """Samples that were skipped so far, by cause."""
        return self.tally.skipped

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("the number of batches is not known beforehand")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        self.tally = Tally(self.split)
        chunks = Workers(self.samples, self.workers, self.requests(), self.tally.worker_killed)
        for _, chunk in chunks:
            self.tally.add(chunk)
            assert chunk.batch is not None
            yield chunk.batch


class ShardwiseLoader(PassLoader):
    """One pass shard by shard: no batch spans two, and a shard's last one says so.

    Adds to a batch `members` (the samples' own texts as bytes), `shard` and `end_of_shard`. A shard
    without a good sample gives no batch.
    """

    def __iter__(self) -> Iterator[Batch]:
        self.tally = Tally(self.split)
        chunks = Workers(self.samples, self.workers, self.requests(), self.tally.worker_killed)
        held: Batch | None = None  # until it is known whether it is the last of its shard
        for request, chunk in chunks:
            self.tally.add(chunk)
            shard = self.samples.shards[int(request.span.shards[0])]
            if held is not None and (chunk.batch is not None or held["shard"] != shard):
                yield held | {"end_of_shard": held["shard"] != shard}
                held = None
            if chunk.batch is not None:
                held = chunk.batch | {"shard": shard, "members": chunk.members}
        if held is not None:
            yield held | {"end_of_shard": True}
