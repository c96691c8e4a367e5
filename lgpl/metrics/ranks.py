"""Several processes that make one metric together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from lgpl.data.streams import Place


def current_rank() -> Place:
    """This rank among all."""
    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), dist.get_world_size())
    return Place()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the ranks that torchrun has started, if it has; gives this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    yield device
    dist.destroy_process_group()  # and not after a mistake, when the others may be waiting


def gathered(value: Any) -> list[Any]:
    """What every rank has, in their order, for the first; nothing for the others."""
    rank = current_rank()
    if rank.count == 1:
        return [value]
    values = [None] * rank.count if rank.index == 0 else None
    dist.gather_object(value, values)
    return values or []
