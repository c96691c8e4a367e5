"""Work on shards in several processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lgpl.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Results in the order of the items.

    Raises:
        UserError: there are to be no processes, or one was killed.
    """
    if workers < 1:
        raise UserError(f"--workers: {workers} is below 1.")
    # An interrupt is the parent's to handle; what is begun is finished.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=quiet) as pool:
        try:
            yield from pool.map(work, items)
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process was killed, most likely for want of memory: lower --workers."
            ) from error
