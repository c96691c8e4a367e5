"""Shards -> batches: the endless training stream, the validation stream that gives every sample
exactly once on any number of ranks, and the prediction stream that goes shard by shard.

Each is an `IterableDataset` of whole batches, so that a batch can say where its reader stands.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from lgpl.data.decode import BadSample, Decoder, Sample, collate
from lgpl.data.shards import Cursor, Place, Raw, is_url, read_shard, share, shuffled
from lgpl.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, Any]
COPIED = ("txt", "cls", "json")  # members that a code shard takes over


def this_worker() -> Place:
    info = get_worker_info()
    return Place(info.id, info.num_workers) if info else Place()


def dice(*names: object) -> random.Random:
    """Random numbers that depend on the names alone, equal on every machine."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "little"))


@dataclass
class Stream(IterableDataset):
    """What all streams share.

    Attributes:
        shards: paths or URLs.
        decoder: bytes -> sample.
        batch_size: samples of a batch on this rank.
        rank: this rank and how many there are.
        text_length: positions of the text features in a batch.
    """

    shards: list[str]
    decoder: Decoder
    batch_size: int
    rank: Place = Place()
    text_length: int | None = None

    def batch(self, samples: list[Sample], faults: Counter[str]) -> Batch:
        """A collated batch; `skipped` holds what was skipped since the last one, by cause."""
        batch = collate(samples, self.text_length)
        batch["skipped"] = dict(faults)
        faults.clear()
        return batch

    def decode(self, raw: Raw, rng: random.Random, faults: Counter[str]) -> Sample | None:
        try:
            return self.decoder(raw, rng)
        except BadSample as error:
            faults[f"{raw['__shard__']}: {error}"] += 1
            return None


@dataclass
class TrainStream(Stream):
    """Endless: epoch after epoch, shards and samples shuffled by the seed, split over all readers.

    Attributes:
        shuffle: samples of the shuffle buffer; 0 keeps the order of the shards and in them.
        seed: decides every order and every augmentation.
        cursors: where the readers of this rank start.
        first: the reader that gives the first batch; the others follow in turn.
    """

    shuffle: int = 0
    seed: int = 0
    cursors: dict[int, Cursor] = field(default_factory=dict)
    first: int = 0

    def __iter__(self) -> Iterator[Batch]:
        worker = this_worker()
        reader = (worker.index + self.first) % worker.count
        place = Place(self.rank.index * worker.count + reader, self.rank.count * worker.count)
        start = self.cursors.get(reader, Cursor())
        faults: Counter[str] = Counter()
        causes: Counter[str] = Counter()
        samples: list[Sample] = []
        for epoch in itertools.count(start.epoch):
            skip = start.samples if epoch == start.epoch else 0
            good = skip
            for index, raw in enumerate(self._epoch(epoch, place, faults)):
                if index < skip:
                    continue
                sample = self.decode(raw, dice(self.seed, epoch, raw["__key__"]), faults)
                if sample is None:
                    continue
                good += 1
                samples.append(sample)
                if len(samples) == self.batch_size:
                    causes += faults
                    yield self.batch(samples, faults) | {
                        "reader": reader,
                        "cursor": Cursor(epoch, index + 1).state_dict(),
                    }
                    samples = []
            if not good:
                raise _nothing_usable(self.shards, causes + faults, place)

    def _epoch(self, epoch: int, place: Place, faults: Counter[str]) -> Iterator[Raw]:
        shards = list(self.shards)
        if self.shuffle:
            dice(self.seed, epoch).shuffle(shards)
        raws = (
            raw
            for shard, first, stride in share(shards, place)
            for raw in itertools.islice(read_shard(shard, faults), first, None, stride)
        )
        return shuffled(raws, self.shuffle, dice(self.seed, epoch, place.index))


def _nothing_usable(shards: list[str], faults: Counter[str], place: Place) -> UserError:
    if faults:
        cause, count = faults.most_common(1)[0]
        return UserError(
            f"No usable sample in the training shards; most often ({count} times): {cause}."
        )
    return UserError(
        f"{len(shards)} training shards hold too few samples for {place.count} readers (ranks x "
        "workers): lower num_workers or make more shards."
    )


@dataclass
class ValidationStream(Stream):
    """Every sample exactly once over all ranks; all ranks give the same number of batches.

    A rank takes a contiguous range of the samples. Where ranges are uneven, and for a sample that
    does not decode, a batch is filled with copies whose `valid` is false.

    Attributes:
        counts: samples of each shard.
    """

    counts: list[int] = field(default_factory=list)

    @property
    def per_rank(self) -> int:
        return -(-sum(self.counts) // self.rank.count)

    @property
    def batches(self) -> int:
        return -(-self.per_rank // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        worker = this_worker()
        faults: Counter[str] = Counter()
        first = self.rank.index * self.per_rank
        end = min(first + self.per_rank, sum(self.counts))
        template: Sample | None = None
        # A run of batches for each worker, so that no shard is opened once a batch.
        run = -(-self.batches // worker.count)
        batches = range(self.batches)[worker.index * run : (worker.index + 1) * run]
        low = first + batches.start * self.batch_size
        high = min(first + batches.stop * self.batch_size, end)
        raws = self._range(low, high, faults)
        for batch in batches:
            slots = min(self.batch_size, self.per_rank - batch * self.batch_size)
            samples = [
                sample
                for raw in itertools.islice(raws, slots)
                if (sample := self.decode(raw, random.Random(0), faults)) is not None
            ]
            valid = len(samples)
            template = samples[-1] if samples else template or self._any(faults)
            samples += [template] * (slots - valid)
            yield self.batch(samples, faults) | {"valid": torch.arange(slots) < valid}

    def _range(self, low: int, high: int, faults: Counter[str]) -> Iterator[Raw]:
        """Samples low to high of the whole list; opens only the shards that hold them."""
        ends = list(itertools.accumulate(self.counts))
        while low < high:
            index = bisect_right(ends, low)
            start = ends[index] - self.counts[index]
            stop = min(high, ends[index])
            yield from itertools.islice(
                read_shard(self.shards[index], faults), low - start, stop - start
            )
            low = stop

    def _any(self, faults: Counter[str]) -> Sample:
        """Some sample to fill the batch of a rank that has none."""
        for raw in self._range(0, sum(self.counts), Counter()):
            sample = self.decode(raw, random.Random(0), Counter())
            if sample is not None:
                return sample
        causes = "; ".join(faults) or "they are empty"
        raise UserError(f"No usable sample in the validation shards: {causes}.")


@dataclass
class PredictStream(Stream):
    """Shard by shard: a batch never spans two shards, and a shard's last batch says so.

    Adds to a batch `members` (the samples' own texts as bytes), `shard` and `end_of_shard`.
    """

    def __iter__(self) -> Iterator[Batch]:
        worker = this_worker()
        mine = self.shards[self.rank.index :: self.rank.count][worker.index :: worker.count]
        faults: Counter[str] = Counter()
        for shard in mine:
            samples: list[Sample] = []
            members: list[Raw] = []
            broken: Counter[str] = Counter()
            for raw in read_shard(shard, broken):
                sample = self.decode(raw, random.Random(0), faults)
                if sample is None:
                    continue
                if len(samples) == self.batch_size:
                    yield self._batch(shard, samples, members, False, faults)
                    samples, members = [], []
                samples.append(sample)
                members.append({name: raw[name] for name in COPIED if name in raw})
            faults += broken
            # What a network broke off may be whole the next time: its code shard is not finished.
            whole = not (broken and is_url(shard))
            if samples:
                yield self._batch(shard, samples, members, whole, faults)
        for cause, count in faults.items():
            log.warning("skipped %d: %s", count, cause)

    def _batch(
        self, shard: str, samples: list[Sample], members: list[Raw], end: bool, faults: Counter[str]
    ) -> Batch:
        batch = self.batch(samples, faults)
        return batch | {"shard": shard, "members": members, "end_of_shard": end}
