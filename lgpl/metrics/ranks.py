"""Metrics over several ranks."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from lgpl.data.streams import Rank


def current_rank() -> Rank:
    """The rank of this process and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return Rank(dist.get_rank(), dist.get_world_size())
    return Rank()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the ranks that torchrun has started, if it has; yields this rank's device."""
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
    dist.destroy_process_group()  # not after an error, when the others may be waiting


def gathered(value: Any) -> list[Any]:
    """The values of all ranks on the first one, an empty list on the others; all must call this."""
    rank = current_rank()
    if rank.count == 1:
        return [value]
    values = [None] * rank.count if rank.index == 0 else None
    dist.gather_object(value, values)
    return values or []
