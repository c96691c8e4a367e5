"""Requests -> chunks over worker processes, and the count of what they had to skip."""

from __future__ import annotations

import logging
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader

from lgpl.data.streams import Chunk, ReadRequest, Samples
from lgpl.errors import UserError

log = logging.getLogger(__name__)

DEATHS = 5  # of workers without a chunk in between, after which it is no accident
JUDGED_FROM = 1000  # samples; the share of bad ones among fewer says little


class Workers:
    """Answers requests in their order by worker processes, and goes on when one is killed.

    Args:
        samples: what answers.
        count: worker processes; 0 answers in this one.
        requests: what to answer.
        killed: called when a worker was killed.
    """

    def __init__(
        self,
        samples: Samples,
        count: int,
        requests: Iterable[ReadRequest],
        killed: Callable[[], None],
    ) -> None:
        self.samples, self.count, self.killed = samples, count, killed
        self._requests = iter(requests)
        self._open: deque[ReadRequest] = deque()  # asked and not answered

    def __iter__(self) -> Iterator[tuple[ReadRequest, Chunk]]:
        deaths = 0
        while True:
            try:
                for chunk in self._loader():
                    deaths = 0
                    yield self._open.popleft(), chunk
                return
            except RuntimeError as error:
                if "exited unexpectedly" not in str(error):
                    raise
                deaths += 1
                self.killed()
                if deaths == DEATHS:
                    raise UserError(
                        "The data workers are killed again and again, most likely for want of "
                        "memory: lower data.num_workers or data.shuffle."
                    ) from error

    def _loader(self) -> Iterator[Chunk]:
        loader = DataLoader(
            self.samples,
            batch_size=None,
            sampler=self._asked(),  # type: ignore[arg-type]
            num_workers=self.count,
            prefetch_factor=4 if self.count else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or every pass would draw from the model's
        )
        with _deaths_raised_by_the_loader():
            return iter(loader)

    def _asked(self) -> Iterator[ReadRequest]:
        yield from list(self._open)  # where a worker took them with it
        for request in self._requests:
            self._open.append(request)
            yield request


@contextmanager
def _deaths_raised_by_the_loader() -> Iterator[None]:
    """torch raises the death of a worker wherever this process is at the time, such as in the
    middle of a step. Without that handler the loader raises it when a chunk is asked for."""
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


class SkippedCounts:
    """Counts what was skipped, by cause, and says when it is too much.

    Args:
        split: name of the samples, for messages.
        max_bad: share of bad samples that is borne; None bears any.
        one_pass: samples after which there must have been a good one.
    """

    def __init__(self, split: str, max_bad: float | None = None, one_pass: int = 0) -> None:
        self.split, self.max_bad, self.one_pass = split, max_bad, one_pass
        self.skipped: Counter[str] = Counter()
        self.good = self.bad = 0
        self._where: dict[str, str] = {}  # the latest sample of each cause

    def add(self, chunk: Chunk) -> None:
        """Count a chunk.

        Raises:
            UserError: too many samples are bad.
        """
        self.good, self.bad = self.good + len(chunk.good), self.bad + chunk.bad
        for cause, count in chunk.skipped.items():
            self.count(cause, count, chunk.where[cause])
        read = self.good + self.skipped.total()
        if self.max_bad is None or not self.skipped:
            return
        cause, count = self.skipped.most_common(1)[0]
        if not self.good and read >= self.one_pass:
            raise UserError(
                f"No usable sample in the {self.split} shards; most often ({count} times): "
                f"{cause}, such as {self._where[cause]}."
            )
        if self.good + self.bad >= JUDGED_FROM and self.bad > self.max_bad * (self.good + self.bad):
            raise UserError(
                f"{self.bad} of {self.good + self.bad} {self.split} samples are bad, more than "
                f"data.max_bad, {self.max_bad:g}, allows; most often ({count} times): {cause}."
            )

    def count(self, cause: str, count: int, where: str) -> None:
        self._where[cause] = where
        before = self.skipped[cause]
        self.skipped[cause] += count
        # 1, 2, 4, 8, ...: logged at once, but never the same thing on every step
        if before.bit_length() != self.skipped[cause].bit_length():
            log.warning("skipped %d so far: %s (%s)", self.skipped[cause], cause, where)

    def worker_killed(self) -> None:
        self.count("worker killed", 1, "its samples are read again by another, none is lost")
