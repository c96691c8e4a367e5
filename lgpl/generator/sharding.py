"""FSDP2: parameters, gradients and optimizer sharded over the ranks (arXiv 2304.11277)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lgpl.generator.model import Model


def shard(model: Model, mesh: DeviceMesh, mixed: bool) -> None:
    """Shard in place over ranks that have the same weights: every block its own unit, the rest one
    more. `mixed` gathers and computes in bf16; weights and reduced gradients stay float32."""
    policy = MixedPrecisionPolicy()
    if mixed:  # the rotary table is passed as it is
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for unit in (*model.blocks(), model):
        fully_shard(unit, mesh=mesh, mp_policy=policy)


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
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()
