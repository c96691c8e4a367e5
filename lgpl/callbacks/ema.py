"""Exponential moving average of the weights, used wherever the model is evaluated."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lgpl.checkpoints.shards import read_into

CURRENT = "current_model_state"  # Lightning's name for the raw weights beside an average


class EMA(Callback):
    """Keeps w' <- decay w' + (1 - decay) w after every optimizer step; the first w' is w.

    The decay of step t is (1 + t) / (10 + t) until that passes `decay`, so that the average of a
    short run is not mostly its first weights.

    Validation runs on the average, and the checkpoint's `state_dict` is the average, so that
    `validate`, `predict`, `sample` and a second stage take it by themselves; the raw weights stand
    in `current_model_state` for resuming. What is not trained (buffers, frozen weights) is not
    averaged. Every rank of a sharded model (FSDP2) averages its own shard; Lightning's own
    callback copies the module, which fails for a sharded one.

    Args:
        decay: of the average, at the most; the paper uses 0.9999.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay = decay
        self._average: dict[str, Tensor] = {}  # by the parameter's name, and sharded like it
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._average = {n: average.to(pl_module.device) for n, average in self._average.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        weights = _trained(pl_module)
        if not self._average:
            self._average = {name: weight.clone() for name, weight in weights.items()}
            return
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        averages = [_local(average) for average in self._average.values()]
        torch._foreach_lerp_(averages, [_local(weights[n]) for n in self._average], 1 - decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange weights and average; the end of the epoch puts them back."""
        weights = _trained(pl_module)
        for name, average in self._average.items():
            here, there = _local(weights[name]), _local(average)
            held = here.clone()
            here.copy_(there)
            there.copy_(held)

    on_validation_epoch_end = on_validation_epoch_start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module that training leaves behind is the average; no checkpoint comes after."""
        weights = _trained(pl_module)
        for name, average in self._average.items():
            _local(weights[name]).copy_(_local(average))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._average:
            return
        raw = checkpoint["state_dict"]
        if any(isinstance(tensor, DTensor) for tensor in raw.values()):
            # A sharded checkpoint takes tensors only in the state dict.
            sharded = {f"{CURRENT}.{name}": tensor for name, tensor in raw.items()}
            checkpoint |= {"state_dict": raw | self._average | sharded, CURRENT: {}}
            return
        average = {  # of a sharded model all ranks put it together, and the first holds the weights
            name: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
            for name, tensor in self._average.items()
        }
        if raw:
            checkpoint |= {"state_dict": raw | average, CURRENT: raw}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The module holds the average by now: keep it, and go on with the raw weights."""
        if CURRENT not in checkpoint or trainer.state.fn != "fit":
            return
        self._average = {name: weight.clone() for name, weight in _trained(pl_module).items()}
        if checkpoint[CURRENT]:
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(pl_module, checkpoint[CURRENT], options=options)
        else:
            raw = {f"{CURRENT}.{name}": t for name, t in pl_module.state_dict().items()}
            read_into(Path(str(trainer.ckpt_path)), {"state_dict": raw})  # in place


def _trained(module: LightningModule) -> dict[str, Tensor]:
    """The trainable weights, detached."""
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()  # a forward pass without a backward leaves weights gathered
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
