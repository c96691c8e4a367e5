"""Requests -> chunks over worker processes, and the count of what they had to skip."""

from __future__ import annotations

import logging
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from lgpl.data.streams import Chunk, ReadRequest, Samples
from lgpl.errors import UserError

log = logging.getLogger(__name__)

DEATHS = 5  # of workers without a chunk in between, after which it is no accident
JUDGED_FROM = 1000  # samples; the share of bad ones among fewer says little


class SkippedCounts:
    """Counts what was skipped of a split, by cause, and says when it is too much: when a larger
    share than `max_bad` (None: any) is bad, or none of the samples of `one_pass` is good."""

    def __init__(self, split: str, max_bad: float | None = None, one_pass: int = 0) -> None:
        self.split, self.max_bad, self.one_pass = split, max_bad, one_pass
        self.skipped: Counter[str] = Counter()
        self.good = self.bad = 0
        self._where: dict[str, str] = {}  # the latest sample of each cause

    def add(self, chunk: Chunk) -> None:
        """Count a chunk; a `UserError` where too many samples are bad."""
        self.good, self.bad = self.good + len(chunk.good), self.bad + chunk.bad
        for cause, count in chunk.skipped.items():
            self.count(cause, count, chunk.where[cause])
        if self.max_bad is None or not self.skipped:
            return
        cause, count = self.skipped.most_common(1)[0]
        if not self.good and self.skipped.total() >= self.one_pass:
            raise UserError(
                f"No usable sample in the {self.split} shards; most often ({count} times): "
                f"{cause}, such as {self._where[cause]}."
            )
        judged = self.good + self.bad
        if judged >= JUDGED_FROM and self.bad > self.max_bad * judged:
            raise UserError(
                f"{self.bad} of {judged} {self.split} samples are bad, more than data.max_bad, "
                f"{self.max_bad:g}, allows; most often ({count} times): {cause}."
            )

    def count(self, cause: str, count: int, where: str) -> None:
        self._where[cause] = where
        before = self.skipped[cause]
        self.skipped[cause] += count
        # 1, 2, 4, 8, ...: logged at once, but never the same thing on every step
        if before.bit_length() != self.skipped[cause].bit_length():
            log.warning("skipped %d so far: %s (%s)", self.skipped[cause], cause, where)


def answered(
    samples: Samples, workers: int, requests: Iterable[ReadRequest], skipped: SkippedCounts
) -> Iterator[tuple[ReadRequest, Chunk]]:
    """Chunks of `samples` for requests, in their order and counted, by so many worker processes (0:
    by this one); goes on when one of them is killed."""
    to_ask = iter(requests)
    unanswered: deque[ReadRequest] = deque()

    def asked() -> Iterator[ReadRequest]:
        yield from list(unanswered)  # where a worker took them with it
        for request in to_ask:
            unanswered.append(request)
            yield request

    deaths = 0
    while True:
        try:
            for chunk in _loaded(samples, workers, asked()):
                deaths = 0
                skipped.add(chunk)
                yield unanswered.popleft(), chunk
            return
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            deaths += 1
            skipped.count("worker killed", 1, "another reads its samples again, none is lost")
            if deaths == DEATHS:
                raise UserError(
                    "The data workers are killed again and again, most likely for want of "
                    "memory: lower data.num_workers or data.shuffle."
                ) from error


def _loaded(samples: Samples, workers: int, requests: Iterator[ReadRequest]) -> Iterator[Chunk]:
    loader = DataLoader(
        samples,
        batch_size=None,
        sampler=requests,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or every pass would draw from the model's
    )
    handler = signal.getsignal(signal.SIGCHLD)
    chunks = iter(loader)
    # torch's handler raises the death of a worker wherever this process is at the time, such as in
    # the middle of a step. Without it the loader raises it when a chunk is asked for.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    return chunks
