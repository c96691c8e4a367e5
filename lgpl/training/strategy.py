"""FSDP2 with its variants, whose checkpoint folders are whole or not there, and run nothing when
they are read."""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import DeviceMesh

from lgpl.atomic import exchange
from lgpl.checkpoints.files import load_tensors
from lgpl.checkpoints.shards import ENTRIES, is_sharded, read_into
from lgpl.errors import UserError


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, whose sharded checkpoint takes its name when it is whole. Written in place over
    the last one, a checkpoint that a dying node leaves behind would hold some ranks' new shards and
    others' old ones, and load without a word. What is read is data: Lightning has torch unpickle
    the index of the shards and the optimizers' values.

    Args:
        reshard: free the gathered weights after the forward pass and gather them again for the
            backward pass (ZeRO-3, arXiv 1910.02054); false keeps them in between, which takes
            memory and saves a third of the communication (ZeRO-2).
        replicas: groups of ranks, each of which holds the whole model in shards (HSDP); gradients
            are averaged over the groups. It divides `data_parallel_size`.
        reduce_dtype: in which gradients are reduced over the ranks.
        kwargs: Lightning's.
    """

    def __init__(
        self,
        *,
        reshard: bool = True,
        replicas: int = 1,
        reduce_dtype: Literal["float32", "bfloat16"] = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.reshard, self.replicas = reshard, replicas
        self.reduce_dtype: torch.dtype = getattr(torch, reduce_dtype)

    def check(self) -> None:
        """Raise a UserError where the replicas do not share out the ranks: the constructor does
        not, because jsonargparse would take another type for the strategy."""
        if self.replicas < 1:
            raise UserError(f"trainer.strategy.replicas must be >= 1, got {self.replicas}")
        if isinstance(ranks := self._data_parallel_size, int) and ranks % self.replicas:
            said = f"trainer.strategy.replicas: {self.replicas} does not divide {ranks}"
            raise UserError(f"{said}, the data_parallel_size.")

    @property
    def sharding(self) -> dict[str, Any]:
        """Arguments of a module's `fully_shard`: the mesh [shards] or [replicas, shards], and the
        choices of the strategy."""
        self.check()
        mesh = self.device_mesh["data_parallel"]
        if self.replicas > 1:  # the ranks of a group are neighbours, as on one node
            ranks = mesh.mesh.view(self.replicas, -1)
            mesh = DeviceMesh(mesh.device_type, ranks, mesh_dim_names=("replicas", "shards"))
        return {"mesh": mesh, "reshard": self.reshard, "reduce_dtype": self.reduce_dtype}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        partial = path.with_name(path.name + ".partial")  # one name for all ranks
        if self.is_global_zero:
            if partial.is_symlink():  # or a link that somebody put there would take the shards
                partial.unlink()
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier()
        if self.is_global_zero:
            exchange(partial, path)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not is_sharded(path):
            return super().load_checkpoint(path, weights_only)
        module, options = self.model, states.StateDictOptions(cpu_offload=True)
        assert module is not None and self.lightning_module is not None
        state: dict[str, Any] = {"state_dict": states.get_model_state_dict(module)}
        read_into(path, state)
        module.load_state_dict(state["state_dict"], strict=self.lightning_module.strict_loading)
        for index, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{index}"
            state = {name: states.get_optimizer_state_dict(module, optimizer)}
            read_into(path, state)
            states.set_optimizer_state_dict(module, optimizer, state[name], options=options)
        return load_tensors(path / ENTRIES)
