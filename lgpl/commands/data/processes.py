"""Work on shards in several processes, which goes on past a sample that stalls or ends one."""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch import Tensor

from lgpl.data.watch import SECONDS, Crew, Watch, empty_slot, new_slots
from lgpl.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

DEATHS = 5  # of processes that were killed at an item, no sample of which is to blame
SECONDS_HELP = "that a sample may take to decode, 0: no bound; what takes longer is skipped"
LOOK = 1.0  # seconds between two looks at the processes

_watch = Watch()  # of a worker process
_item = 0  # number of the one that it works on


@contextmanager
def sample(place: int) -> Iterator[None]:
    """While work reads and decodes a sample, by its place in the item; a `BadSample` where that
    stalled or ended a process before."""
    with _watch.at((_item, place)), _watch.timed():
        yield


class _Worker:
    """A process and the pipe to it, which takes numbers of items and gives results."""

    def __init__(self, task: tuple[Callable[[Any], Any], Sequence[Any]], slot: Tensor) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        # The items go along when a process starts and only their numbers are sent later: sending
        # what is larger than a pipe to a process that is killed would wait for ever.
        args = theirs, slot, *task
        self.process: BaseProcess = multiprocessing.Process(target=_work, args=args, daemon=True)
        self.process.start()
        theirs.close()  # or the end of the process would not be seen at this one
        self.item: int | None = None

    def give(self, item: int, skipped: dict[tuple[int, int], str]) -> None:
        self.item = item
        mine = {place: cause for place, cause in skipped.items() if place[0] == item}
        with suppress(OSError):  # of a dead one, which is found when its answer is read
            self.pipe.send((item, mine))


def in_processes(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    seconds: float | None = SECONDS,
) -> Iterator[Result]:
    """Results in the order of the items; where a `sample` takes more than so many seconds or ends
    its process, the item is worked on again without it. Raises a UserError where a process was
    killed for another reason."""
    watch, slots = Watch(seconds), new_slots(workers)
    to_do, done = deque(range(len(items))), dict[int, tuple[bool, Any]]()
    killed = Counter[int]()  # by item
    crew = [_Worker((work, items), slot) for slot in slots]
    seen = Crew(watch, [worker.process for worker in crew], slots)
    try:
        for wanted in range(len(items)):
            while wanted not in done:
                for worker in crew:
                    if worker.item is None and to_do:
                        worker.give(to_do.popleft(), watch.skipped)
                busy = {worker.pipe: n for n, worker in enumerate(crew) if worker.item is not None}
                for pipe in wait(list(busy), LOOK):
                    n = busy[pipe]  # type: ignore[index]
                    item = crew[n].item
                    assert item is not None
                    try:
                        done[item], crew[n].item = crew[n].pipe.recv(), None
                        continue
                    except (EOFError, OSError):
                        crew[n].process.join()
                    in_flight = seen.at(n)
                    if seen.judge(n):
                        killed[item] = 0
                    else:
                        killed[item] += 1
                        if in_flight is None or killed[item] == DEATHS:
                            cause = "most likely for want of memory: lower --workers."
                            raise UserError(f"A worker process was killed, {cause}")
                    slots[n] = empty_slot()
                    crew[n] = _Worker((work, items), slots[n])
                    seen.processes[n] = crew[n].process
                    to_do.appendleft(item)
                seen.kill_overdue()
            succeeded, result = done.pop(wanted)
            if not succeeded:
                raise result
            yield result
    finally:
        for worker in crew:
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection, slot: Tensor, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    global _item
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports an interrupt
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _watch.join(slot)
    while True:
        _item, _watch.skipped = pipe.recv()
        try:
            answer = True, work(items[_item])
        except Exception as error:
            answer = False, error
        pipe.send(answer)


def _end_with_the_parent() -> None:
    """A killed parent ends no workers: they would wait for their next item for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
