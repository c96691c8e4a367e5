"""Requests -> chunks: what the workers do, and what is asked of them.

A request names samples by their place; a chunk is what became of them. The workers keep no state of
their own, so that any of them can answer any request, and a dead one costs nothing but time.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lgpl.data.decode import Sample, SampleDecoder, Shapes, check_shapes, collate
from lgpl.data.filters import Filter
from lgpl.data.members import BadSample, Raw, Unwanted
from lgpl.data.order import Cursor, Order, Progress, Span, seed_of
from lgpl.data.shards import OpenShards, Shard
from lgpl.data.store import Store
from lgpl.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, Any]
SMALL = 2**20  # bytes of a tensor
COPIED = ("txt", "cls", "json")  # members that a code shard takes over, beside other captions


@dataclass(frozen=True)
class Place:
    """One of the ranks that share a shard list."""

    index: int = 0
    count: int = 1


class Request(NamedTuple):
    """Samples to decode together.

    Attributes:
        span: which ones.
        lane: the lane they come from, in training.
        start: the place in the lane before them, in training.
        ahead: shards whose turn comes next, to be fetched in the meantime.
        slots: samples of the batch where it has a fixed size; copies fill what is missing.
    """

    span: Span
    lane: int = 0
    start: Progress | None = None
    ahead: tuple[int, ...] = ()
    slots: int | None = None


@dataclass
class Chunk:
    """What became of a request.

    Attributes:
        batch: the good samples, collated; None where there are none.
        good: their places in the request.
        skipped: causes of the others, with how many of each.
        where: a sample for each cause.
        unwanted: how many of them are sound and left out by the filter.
        members: the good samples' texts as bytes, where they are copied.
    """

    batch: Batch | None
    good: list[int]
    skipped: Counter[str] = field(default_factory=Counter)
    where: dict[str, str] = field(default_factory=dict)
    unwanted: int = 0
    members: list[Raw] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return self.skipped.total() - self.unwanted

    def __getstate__(self) -> dict[str, Any]:
        """Between processes, small tensors go as bytes: shared memory costs more to set up."""
        batch = self.batch and {
            name: v.numpy() if isinstance(v, Tensor) and v.nbytes < SMALL else v
            for name, v in self.batch.items()
        }
        return self.__dict__ | {"batch": batch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.batch = self.batch and {
            name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
            for name, v in self.batch.items()
        }

    def pin_memory(self) -> Chunk:
        """Called by torch's loader, for fast copies to a GPU."""
        self.batch = self.batch and pinned(self.batch)
        return self


def pinned(batch: Batch) -> Batch:
    return {name: v.pin_memory() if isinstance(v, Tensor) else v for name, v in batch.items()}


class Dice:
    """A `random.Random` by names, seeded when it is first used: for most samples of codes never,
    and it would cost a quarter of all they cost."""

    def __init__(self, *names: object) -> None:
        self._names = names

    def __getattr__(self, method: str) -> Any:
        if "_random" not in self.__dict__:
            self._random = random.Random(seed_of(*self._names))
        return getattr(self._random, method)


@dataclass
class Samples(Dataset):
    """Answers requests for the samples of a shard list; what a worker process runs.

    Attributes:
        shards: paths or URLs.
        decoder: bytes -> sample.
        store: what fetches URLs.
        seed: of every augmentation.
        text_length: positions of the text features in a batch.
        keep_open: samples whose shards stay open between two requests.
        copies: also give the samples' own texts.
    """

    shards: list[str]
    decoder: SampleDecoder
    store: Store
    seed: int = 0
    text_length: int | None = None
    keep_open: int = 0
    copies: bool = False

    @cached_property
    def _open(self) -> OpenShards:
        return OpenShards(self.store, self.keep_open)

    @cached_property
    def _members(self) -> frozenset[str]:
        copied = {*COPIED, *self.decoder.captions} if self.copies else ()
        return self.decoder.members.union(copied)

    def __getitem__(self, request: Request) -> Chunk:
        """Decode what a request names."""
        for shard in request.ahead:
            self.store.prefetch(self.shards[shard])
        chunk = Chunk(None, [])
        samples = []
        for i, (epoch, shard, place) in enumerate(zip(*map(list, request.span), strict=True)):
            sample = self._sample(epoch, self._open[self.shards[shard]], place, chunk)
            if sample is not None:
                samples.append(sample)
                chunk.good.append(i)
        if request.slots is not None:
            missing = request.slots - len(samples)
            samples += [samples[-1] if samples else self.first_good()] * missing
        if samples:
            chunk.batch = collate(samples, self.text_length)
            if request.slots is not None:
                chunk.batch["valid"] = torch.arange(request.slots) < len(chunk.good)
        return chunk

    def first_good(self) -> Sample:
        """Some sample that decodes, to fill what has none.

        Raises:
            UserError: there is none.
        """
        chunk = Chunk(None, [])
        for path in self.shards:
            shard = self._open[path]
            for place in range(len(shard)):
                sample = self._sample(0, shard, place, chunk)
                if sample is not None:
                    return sample
            if shard.damage:
                chunk.skipped[f"{path}: {shard.damage}"] += 1
        causes = "; ".join(chunk.skipped) or "they are empty"
        raise UserError(f"No usable sample in the validation shards: {causes}.")

    @cached_property
    def _shapes(self) -> Shapes:
        """Those that the model leaves open, as the first sound sample of the list has them, and so
        the same on all ranks and in any order; empty where there is none."""
        decoder = dataclasses.replace(
            self.decoder, fields=self.decoder.open_shapes, augment=False, filter=Filter()
        )
        for path in self.shards:
            with closing(Shard(path, self.store)) as shard:
                for place in itertools.count():
                    try:
                        raw = shard.read(place, decoder.members)
                        return decoder.shapes(decoder(raw, random.Random(0)))
                    except BadSample:
                        continue
                    except IndexError:
                        break
        return {}

    def _sample(self, epoch: int, shard: Shard, place: int, chunk: Chunk) -> Sample | None:
        where = f"sample {place} of {shard.path}"
        try:
            raw = shard.read(place, self._members)
            where = f"{raw['__key__']} in {shard.path}"
            dice = Dice(self.seed, epoch, raw["__key__"])
            sample = self.decoder(raw, cast(random.Random, dice))
            if self.decoder.open_shapes:
                shapes = self.decoder.shapes(sample)
                if shapes != self._shapes:
                    check_shapes(shapes, self._shapes)
            if self.copies:
                texts = {*COPIED, *self.decoder.captions}
                chunk.members.append({name: raw[name] for name in texts if name in raw})
            return sample
        except IndexError:
            cause = "sample of a damaged or vanished shard"
            where += f" ({shard.damage or 'the shard is shorter than its index says'})"
        except BadSample as error:
            cause = str(error)
        except Unwanted as error:
            cause = str(error)
            chunk.unwanted += 1
        chunk.skipped[cause] += 1
        chunk.where[cause] = where
        return None


def every_sample_once(counts: Sequence[int], rank: Place, batch_size: int) -> list[Request]:
    """Requests of one rank for every sample exactly once over all ranks.

    All ranks get batches of the same number and sizes. A rank takes a contiguous range of the
    samples; where ranges are uneven, the last batch has a slot without a sample.
    """
    order = Order(counts, rank.count)
    per_rank = -(-order.total // rank.count)
    mine = order.length(0, rank.index)
    requests = []
    for first in range(0, per_rank, batch_size):
        slots = min(batch_size, per_rank - first)
        number = min(slots, mine - first)
        span, _ = order.take(rank.index, Cursor(0, first), number)
        requests.append(Request(span, slots=slots))
    return requests


def shard_by_shard(samples: Samples, batch_size: int) -> Iterator[Request]:
    """Requests for all samples of all shards; none spans two shards."""
    for index, path in enumerate(samples.shards):
        for following in samples.shards[index + 1 : index + 2]:
            samples.store.prefetch(following)
        shard = Shard(path, samples.store)
        number, damage = len(shard), shard.damage
        shard.close()
        if damage:
            log.warning("%s: %s after %d samples", path, damage, number)
        for first in range(0, number, batch_size):
            places = np.arange(first, min(first + batch_size, number))
            yield Request(Span(np.zeros_like(places), np.full_like(places, index), places))
