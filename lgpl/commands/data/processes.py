"""Work on shards in several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from lgpl.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_task: tuple[Callable[[Any], Any], Sequence[Any]]  # of a worker process


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Results in the order of the items; raises a UserError where a process was killed."""
    # The items go along when a process starts and only their numbers are sent later: sending what
    # is larger than a pipe to a process that is killed would wait for ever.
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(work, items)) as pool:
        try:
            yield from pool.map(_answer, range(len(items)))
        except BrokenProcessPool as error:
            cause = "most likely for want of memory: lower --workers."
            raise UserError(f"A worker process was killed, {cause}") from error


def _begin(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    global _task
    _task = work, items
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports an interrupt
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A killed parent ends no workers: they would wait for their next item for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(number: int) -> Any:
    work, items = _task
    return work(items[number])
