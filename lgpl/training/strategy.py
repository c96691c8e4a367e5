"""FSDP2 whose checkpoint folders are whole or not there, and run nothing when they are read."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import state_dict as states

from lgpl.atomic import exchange
from lgpl.checkpoints.files import load_tensors
from lgpl.checkpoints.shards import ENTRIES, is_sharded, read_into


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, whose sharded checkpoint takes its name when it is whole. Written in place over
    the last one, a checkpoint that a dying node leaves behind would hold some ranks' new shards and
    others' old ones, and load without a word. What is read is data: Lightning has torch unpickle
    the index of the shards and the optimizers' values."""

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
