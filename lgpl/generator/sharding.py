"""FSDP2: parameters, gradients and optimizer sharded over the ranks (arXiv 2304.11277)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lgpl.generator.model import Model

RESHARDS = "_reshards"  # whether a unit frees its weights after a forward pass; FSDP does not tell


def shard(
    model: Model,
    mesh: DeviceMesh,
    mixed: bool,
    reshard: bool = True,
    reduce_dtype: torch.dtype = torch.float32,
) -> None:
    """Shard in place over ranks that have the same weights: every block its own unit, the rest one
    more. `mixed` gathers and computes in bf16; weights stay float32. See `ShardedStrategy`."""
    compute = torch.bfloat16 if mixed else None
    # The rotary table is passed as it is.
    policy = MixedPrecisionPolicy(compute, reduce_dtype, cast_forward_inputs=False)
    for unit in (*model.blocks(), model):
        again = reshard and unit is not model
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=again)
        setattr(unit, RESHARDS, again)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Whole weights on every rank, for work outside of `forward`; nothing where none is sharded.
    All ranks must enter this, after a forward pass."""
    units = [unit for unit in model.modules() if isinstance(unit, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(getattr(unit, RESHARDS), recurse=False)
            unit.reshard()
