"""What a sharded strategy makes of four ranks, which are pretended; tests/test_fsdp.py trains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lgpl.generator.sharding import shard, whole_weights
from lgpl.training import ShardedStrategy
from tests.models import transformer


@pytest.fixture
def four_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("replicas", [1, 2])
def test_weights_are_sharded_in_each_replica_and_gathered_as_asked(
    four_ranks: None, replicas: int, reshard: bool
) -> None:
    strategy = ShardedStrategy(replicas=replicas, reshard=reshard, reduce_dtype="bfloat16")
    strategy._device_mesh = init_device_mesh(
        "cpu", (4, 1), mesh_dim_names=("data_parallel", "tensor_parallel")
    )
    mesh = strategy.sharding["mesh"]
    assert mesh.mesh.tolist() == ([0, 1, 2, 3] if replicas == 1 else [[0, 1], [2, 3]])
    model = transformer((2, 2, 16), 8, (2, 2), num_classes=4)
    shard(model, mixed=False, **strategy.sharding)
    weight = next(model.blocks()[0].parameters())
    assert weight.placements == ((Shard(0),) if replicas == 1 else (Replicate(), Shard(0)))
    assert weight.to_local().numel() == weight.numel() * replicas // 4

    def gathered() -> bool:
        return type(next(model.blocks()[0].parameters())) is torch.nn.Parameter

    inputs = {"class": torch.tensor([1])}
    for _ in range(2):  # also after weights were whole for sampling
        model.loss(torch.zeros(1, 4, dtype=torch.int64), inputs, 0)
        assert gathered() == (not reshard)
        with whole_weights(model):
            assert gathered()
        assert not gathered()
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            policy = unit._get_fsdp_state()._mp_policy
            assert policy.reduce_dtype is torch.bfloat16 and policy.param_dtype is None
