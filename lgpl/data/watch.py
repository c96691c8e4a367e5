"""Which sample each worker process is at, noted where the parent sees it: one that stalls or ends a
worker is left out from then on."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from torch import Tensor

from lgpl.data.members import BadSample

Place = tuple[int, int]  # number of a shard in its list, and of a sample in the shard

SECONDS = 60.0  # a sample; what takes longest of what is decoded at all takes some seconds
ENDED = "sample that ended a worker"
# Signals of a process that went wrong by itself. Others come from outside: the kernel's for want
# of memory, a person's.
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
SINCE, DECODED = 2, 3  # in a worker's slot, behind a `Place`; -1: no sample, no time
JOIN = 5.0  # seconds that a killed process takes at the most, unless the kernel holds it


class _OverdueError(BaseException):
    """Raised wherever this process decodes; no codec takes it for an error of its own."""


class Watch:
    """What is known of the samples of some shards: which of them are left out, and why."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds or None  # that a sample may take to decode; None: no bound
        self.skipped: dict[Place, str] = {}  # for good, with the cause
        self.killed: set[Place] = set()  # a worker was killed at these, perhaps by accident
        self._slot: np.ndarray | None = None  # of this process, where it is a worker

    @property
    def late(self) -> str:
        return f"sample that takes more than {self.seconds:g} s to decode"

    def join(self, slot: Tensor) -> None:
        """Make this process a worker that notes its samples there."""
        self._slot = slot.numpy()

    @contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """While a sample is read and decoded; a `BadSample` where it is left out."""
        if place in self.skipped:
            raise BadSample(self.skipped[place])
        slot = self._slot
        if slot is None:
            try:
                yield
            except _OverdueError:
                self.skipped[place] = self.late
                raise BadSample(self.late) from None
            return
        slot[:2] = place
        try:
            yield
        except Exception:  # what ends the process leaves the note behind
            slot[:3] = -1
            raise
        slot[:3] = -1
        slot[DECODED] += 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        """While a sample is decoded, which alone is bound: a network may take its time. Without
        workers a codec that is no Python is interrupted only when it returns, and nothing is
        where this is not the main thread, which alone takes signals."""
        if self._slot is not None:
            self._slot[SINCE] = time.monotonic()
            yield
        elif self.seconds is None or threading.current_thread() is not threading.main_thread():
            yield
        else:
            with _alarm(self.seconds):
                yield


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """`_OverdueError` after so long; another's alarm is put back as it was."""
    before = signal.getsignal(signal.SIGALRM)
    if before is None:  # a handler in C, which Python cannot put back
        yield
        return
    armed = True

    def ring(*_: object) -> None:
        if armed:
            raise _OverdueError

    begin = time.monotonic()
    signal.signal(signal.SIGALRM, ring)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        armed = False  # one that rings in here is too late
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            passed = time.monotonic() - begin
            signal.setitimer(signal.ITIMER_REAL, max(left - passed, 1e-6), every)


def empty_slot() -> Tensor:
    return torch.tensor([-1.0, -1.0, -1.0, 0.0], dtype=torch.float64)


def new_slots(workers: int) -> Tensor:
    """Shared memory for the notes of so many workers."""
    return empty_slot().repeat(workers, 1).share_memory_()


class Crew:
    """Worker processes and their notes, as their parent sees them."""

    def __init__(self, watch: Watch, processes: list[BaseProcess], slots: Tensor) -> None:
        self.watch, self.processes, self.slots = watch, processes, slots.numpy()
        self._late: dict[int, tuple[float, ...]] = {}  # by worker: its note when it was killed

    @property
    def decoded(self) -> int:
        """Samples that the workers are through with."""
        return int(self.slots[:, DECODED].sum())

    def wait_for_death(self, seconds: float) -> bool:
        """Whether one of the workers is dead, or will be so soon."""
        ending = wait([process.sentinel for process in self.processes], seconds)
        for process in self.processes:
            if process.sentinel in ending:
                process.join(JOIN)  # its exit status comes a little later
        return bool(ending)

    def kill_overdue(self) -> None:
        """End the workers that take too long for a sample."""
        bound = math.inf if self.watch.seconds is None else self.watch.seconds
        for number, process in enumerate(self.processes):
            note = tuple(self.slots[number, :3])
            if note[SINCE] >= 0 and time.monotonic() - note[SINCE] > bound:
                self._late[number] = note
                process.kill()
                process.join(JOIN)

    def at(self, number: int) -> Place | None:
        """The sample that a worker is at."""
        shard, place = (int(value) for value in self.slots[number, :2])
        return None if place < 0 else (shard, place)

    def judge(self, number: int) -> bool:
        """Whether the sample that a dead worker was at is left out from now on. One that was killed
        from outside is not the sample's fault, unless it happens again at the same one."""
        place, code = self.at(number), self.processes[number].exitcode
        late = self._late.pop(number, None)
        if place is None or (code is None and late is None):
            return False
        if late == tuple(self.slots[number, :3]):
            cause = self.watch.late
        # torch's workers also exit with 0 when their parent terminates them.
        elif (code or 0) > 0 or -(code or 0) in CRASHES or place in self.watch.killed:
            cause = ENDED
        else:
            self.watch.killed.add(place)
            return False
        self.watch.skipped[place] = cause
        return True
