"""Requests, which name samples by their place, and chunks, what became of them. The workers keep no
state of their own: any of them can answer any request, and a dead one costs nothing but time."""

from __future__ import annotations

import functools
import itertools
import logging
import random
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lgpl.data.decode import Sample, SampleDecoder, Shapes, check_shapes, collate
from lgpl.data.filters import Filter
from lgpl.data.members import BadSample, Raw, Unwanted, caption_member, fields_without
from lgpl.data.order import Order, PartitionState, Position, Span, seed_of
from lgpl.data.shards import OpenShards, Shard
from lgpl.data.store import Store
from lgpl.data.watch import Crew, Watch, new_slots
from lgpl.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, Any]
DEATHS = 5  # of workers without a chunk in between, after which it is no accident
ENDED_IN_A_ROW = 20  # samples that ended a worker with none decoded in between: all of them would
WAIT = 1.0  # seconds between two looks at the workers
JUDGED_FROM = 1000  # samples; the share of bad ones among fewer says little


@dataclass(frozen=True)
class Rank:
    """One of the ranks that share a shard list."""

    index: int = 0
    count: int = 1


class ReadRequest(NamedTuple):
    """Samples to decode together."""

    span: Span
    partition: int = 0  # that they come from, in training
    start: PartitionState | None = None  # the place in the partition before them, in training
    ahead: tuple[int, ...] = ()  # shards whose turn comes next, to be fetched in the meantime
    slots: int | None = None  # of a batch of fixed size; copies fill those without a sample


@dataclass
class Chunk:
    """What became of a request."""

    batch: Batch | None = None  # the good samples, collated; None where there are none
    good: list[int] = field(default_factory=list)  # their places in the request
    skipped: list[tuple[str, str]] = field(default_factory=list)  # the others: cause, and where
    unwanted: int = 0  # of the skipped ones: sound, but left out by the filter
    members: list[Raw] = field(default_factory=list)  # texts of the good, where they are copied

    def pin_memory(self) -> Chunk:
        """Called by torch's loader, for fast copies to a GPU."""
        self.batch = self.batch and pinned(self.batch)
        return self


def pinned(batch: Batch) -> Batch:
    return {name: v.pin_memory() if isinstance(v, Tensor) else v for name, v in batch.items()}


@dataclass
class Samples(Dataset):
    """Answers requests for the samples of a shard list; what a worker process runs."""

    shards: list[str]  # paths or URLs
    decoder: SampleDecoder
    store: Store
    seed: int = 0  # of every augmentation
    text_length: int | None = None  # positions of the text features in a batch
    keep_open: int = 0  # samples whose shards stay open between two requests
    copies: bool = False  # also give the samples' own texts
    seconds: float | None = None  # that a sample may take to decode; None: no bound

    def __post_init__(self) -> None:
        self.watch = Watch(self.seconds)
        self._open = OpenShards(self.store, self.keep_open)
        texts = {"txt", "cls", "json", *map(caption_member, self.decoder.captions)}
        self._copied = texts if self.copies else set()

    def __getitem__(self, request: ReadRequest) -> Chunk:
        for shard in request.ahead:
            self.store.prefetch(self.shards[shard])
        chunk, samples = Chunk(), []
        wanted = zip(*(column.tolist() for column in request.span), strict=True)
        for i, (epoch, shard, place) in enumerate(wanted):
            sample = self._sample(epoch, shard, place, chunk)
            if sample is not None:
                samples.append(sample)
                chunk.good.append(i)
        if request.slots is not None:
            missing = request.slots - len(samples)
            samples += [samples[-1] if samples else self._first_usable()] * missing
        if samples:
            chunk.batch = collate(samples, self.text_length)
            if request.slots is not None:
                chunk.batch["valid"] = torch.arange(request.slots) < len(chunk.good)
        return chunk

    def _first_usable(self) -> Sample:
        """Some sample that decodes, to fill what has none."""
        causes: dict[str, None] = {}
        for sample in self._sound(self.decoder, causes):
            if self.decoder.shapes(sample) == self._shapes:
                return sample
        why = "; ".join(causes) or "they are empty"
        hint = "".join(fields_without(cause, self.decoder.fields) for cause in causes)
        raise UserError(f"No usable sample in the validation shards: {why}.{hint}")

    @cached_property
    def _shapes(self) -> Shapes:
        """Those that the model leaves open, as the first sound sample of the list has them, and so
        the same on all ranks and in any order; empty where there is none."""
        fields = self.decoder.open_shapes
        decoder = replace(self.decoder, fields=fields, augment=False, filter=Filter())
        return next(map(decoder.shapes, self._sound(decoder, {})), {})

    def _sound(self, decoder: SampleDecoder, causes: dict[str, None]) -> Iterator[Sample]:
        """What can be decoded of the list; why other samples cannot is added to `causes`."""
        for number, path in enumerate(self.shards):
            with closing(Shard(path, self.store)) as shard:
                for place in itertools.takewhile(shard.reach, itertools.count()):
                    try:
                        with self.watch.at((number, place)):
                            raw = shard.read(place, decoder.members)
                            with self.watch.timed():
                                sample = decoder(raw, random.Random(0))
                    except (BadSample, Unwanted) as error:
                        causes[str(error)] = None
                    else:
                        yield sample
                if shard.damage:
                    causes[f"{path}: {shard.damage}"] = None

    def _sample(self, epoch: int, number: int, place: int, chunk: Chunk) -> Sample | None:
        shard = self._open[self.shards[number]]
        where = f"sample {place} of {shard.path}"
        try:
            if shard.reach(place):
                where = f"{shard.keys[place]} in {shard.path}"
            with self.watch.at((number, place)):
                raw = shard.read(place, self.decoder.members | self._copied)
                rng = random.Random(seed_of(self.seed, epoch, raw["__key__"]))
                with self.watch.timed():
                    sample = self.decoder(raw, rng)
            if self.decoder.open_shapes:
                check_shapes(self.decoder.shapes(sample), self._shapes)
            if self.copies:
                chunk.members.append({name: raw[name] for name in self._copied & raw.keys()})
            return sample
        except IndexError:
            cause = "sample of a damaged or vanished shard"
            where += f" ({shard.damage or 'the shard is shorter than its index says'})"
        except (BadSample, Unwanted) as error:
            cause = str(error)
            chunk.unwanted += isinstance(error, Unwanted)
        chunk.skipped.append((cause, where))
        return None


def every_sample_once(counts: Sequence[int], rank: Rank, batch_size: int) -> list[ReadRequest]:
    """Requests of one rank, which takes a contiguous range of the samples, for each exactly once.
    All ranks get batches of the same number and sizes; where ranges are uneven, the last batch has
    a slot without a sample."""
    order = Order(counts, rank.count)
    per_rank = -(-order.total // rank.count)
    mine = order.length(0, rank.index)
    requests = []
    for first in range(0, per_rank, batch_size):
        slots = min(batch_size, per_rank - first)
        span, _ = order.take(rank.index, Position(0, first), min(slots, mine - first))
        requests.append(ReadRequest(span, slots=slots))
    return requests


def shard_by_shard(samples: Samples, batch_size: int) -> Iterator[ReadRequest]:
    """Requests for all samples of all shards; none spans two shards."""
    for index, path in enumerate(samples.shards):
        for following in samples.shards[index + 1 : index + 2]:
            samples.store.prefetch(following)
        with closing(Shard(path, samples.store)) as shard:
            number, damage = len(shard), shard.damage
        if damage:
            log.warning("%s: %s after %d samples", path, damage, number)
        for first in range(0, number, batch_size):
            places = np.arange(first, min(first + batch_size, number))
            yield ReadRequest(Span(np.zeros_like(places), np.full_like(places, index), places))


class SkippedCounts:
    """Counts what was skipped of a split, by cause, and says when it is too much: when a larger
    share than `max_bad` (None: any) is bad, or none of the samples of `one_pass` is good."""

    def __init__(
        self,
        split: str,
        max_bad: float | None = None,
        one_pass: int = 0,
        fields: Sequence[str] = (),  # what is read of a sample, for messages
    ) -> None:
        self.fields = fields
        self.split, self.max_bad, self.one_pass = split, max_bad, one_pass
        self.skipped: Counter[str] = Counter()
        self.good = self.bad = 0
        self._where: dict[str, str] = {}  # the latest sample of each cause

    def add(self, chunk: Chunk) -> None:
        """Count a chunk; a `UserError` where too many samples are bad."""
        self.good += len(chunk.good)
        self.bad += len(chunk.skipped) - chunk.unwanted
        for cause, where in chunk.skipped:
            self.count(cause, where)
        if self.max_bad is None or not self.skipped:
            return
        cause, count = self.skipped.most_common(1)[0]
        most = f"most often ({count} times): {cause}"
        hint = fields_without(cause, self.fields)
        if not self.good and self.skipped.total() >= self.one_pass:
            such = f"such as {self._where[cause]}"
            raise UserError(f"No usable sample in the {self.split} shards; {most}, {such}.{hint}")
        judged = self.good + self.bad
        if judged >= JUDGED_FROM and self.bad > self.max_bad * judged:
            share = f"{self.bad} of {judged} {self.split} samples are bad"
            raise UserError(
                f"{share}, more than data.max_bad, {self.max_bad:g}, allows; {most}.{hint}"
            )

    def count(self, cause: str, where: str) -> None:
        self._where[cause] = where
        self.skipped[cause] += 1
        # 1, 2, 4, 8, ...: logged at once, but never the same thing on every step
        if self.skipped[cause].bit_count() == 1:
            log.warning("skipped %d so far: %s (%s)", self.skipped[cause], cause, where)


def answered(
    samples: Samples, workers: int, requests: Iterable[ReadRequest], skipped: SkippedCounts
) -> Iterator[tuple[ReadRequest, Chunk]]:
    """Chunks of `samples` for requests, in their order and counted, by so many worker processes (0:
    by this one); goes on when one of them is killed, and without the samples that end one."""
    to_ask = iter(requests)
    unanswered: deque[ReadRequest] = deque()
    watch = samples.watch

    def asked() -> Iterator[ReadRequest]:
        yield from list(unanswered)  # where a worker took them with it
        for request in to_ask:
            unanswered.append(request)
            yield request

    deaths = in_a_row = 0
    while True:
        chunks, crew = _loaded(samples, workers, asked())
        try:
            for chunk in _waited_for(chunks, crew):
                deaths = in_a_row = 0
                skipped.add(chunk)
                request = unanswered.popleft()
                if watch.killed:  # those that came through after all were not to blame
                    good = request.span.shards[chunk.good], request.span.places[chunk.good]
                    watch.killed.difference_update(zip(*(g.tolist() for g in good), strict=True))
                yield request, chunk
            return
        except (RuntimeError, OSError, EOFError) as error:
            # What a dead worker has sent but this process has not opened yet is an OSError.
            gone = "exited unexpectedly" in str(error)
            if not gone and (isinstance(error, RuntimeError) or not crew.wait_for_death(WAIT)):
                raise
            left_out = sum([crew.judge(number) for number in range(workers)])
            if left_out:  # and counted with the chunk that it belongs to
                deaths, in_a_row = 0, left_out + (0 if crew.decoded else in_a_row)
            else:
                deaths += 1
                skipped.count("worker killed", "another reads its samples again, none is lost")
            if in_a_row >= ENDED_IN_A_ROW:
                latest = list(watch.skipped.values())[-1]
                cause = f"at {in_a_row} samples one after the other: {latest}"
                raise UserError(f"The data workers end again and again, {cause}.") from error
            if deaths == DEATHS:
                cause = "most likely for want of memory: lower data.num_workers or data.shuffle."
                raise UserError(f"The data workers are killed again and again, {cause}") from error


def _waited_for(chunks: Iterator[Chunk], crew: Crew) -> Iterator[Chunk]:
    """Chunks as they come; meanwhile workers that take too long for a sample are ended."""
    while True:
        try:
            chunk = next(chunks)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            crew.kill_overdue()
        else:
            yield chunk


def _join(slots: Tensor, number: int) -> None:
    """What a worker begins with."""
    samples: Any = get_worker_info().dataset  # type: ignore[union-attr]
    samples.watch.join(slots[number])


def _loaded(
    samples: Samples, workers: int, requests: Iterator[ReadRequest]
) -> tuple[Iterator[Chunk], Crew]:
    slots = new_slots(workers)
    wait = min(WAIT, (samples.seconds or WAIT) / 2)
    loader = DataLoader(
        samples,
        batch_size=None,
        sampler=requests,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        timeout=wait if workers else 0,
        worker_init_fn=functools.partial(_join, slots),
        generator=torch.Generator(),  # or every pass would draw from the model's
    )
    handler = signal.getsignal(signal.SIGCHLD)
    chunks = iter(loader)
    # torch's handler raises the death of a worker wherever this process is at the time, such as in
    # the middle of a step. Without it the loader raises it when a chunk is asked for.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    return chunks, Crew(samples.watch, getattr(chunks, "_workers", []), slots)
