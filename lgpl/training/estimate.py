"""What a training step needs, found out on fake tensors, which have shapes and no memory.

The step is the module's own forward, backward and optimizer. So the numbers follow whatever the
config says. Only what a sharded strategy gathers, and DDP's buckets, are added by rule.
"""

import copy
import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lgpl.codes import ImageSize
from lgpl.training import TrainingModule

SAMPLES = 16  # images of the KV cache's line, guided: `lgpl sample` draws so many together
HALF = {"bf16": torch.bfloat16, "16": torch.float16}


def attention_flops(q: list[int], k: list[int], *_: Any, **__: Any) -> int:
    return 2 * 2 * math.prod(q) * k[2]  # products of [T, D] and [D, S]: scores, and their values


def attention_backward_flops(_: list[int], q: list[int], k: list[int], *__: Any, **___: Any) -> int:
    return 5 * 2 * math.prod(q) * k[2]  # the scores again, and four products for the gradients


# The CPU's kernels, on which the rehearsal runs; torch counts the GPU's only.
ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


@dataclass(frozen=True)
class StepEstimate:
    """One training step of one device that holds the whole model; sizes in bytes."""

    weights: int  # number of trainable parameters
    parameters: int
    gradients: int
    optimizer: int
    activations: int  # beside them at the highest point of forward and backward
    cache: int  # of the decoder for `SAMPLES` guided images; 0 for a tokenizer
    gathered: int  # by FSDP beside its shards at the highest point; 0 without it
    tokens: int  # codes of the device's batch
    flops: int  # of forward and backward, attention counted in full


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations make while they live, without a module's gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0  # peak: the most there ever were at a time
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._sizes: dict[int, int] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            self._known.add(tensor.untyped_storage())
            if tensor.requires_grad:
                tensor.register_post_accumulate_grad_hook(self._leave_out_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._remove, storage._cdata)
        return out

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def _leave_out_gradient(self, parameter: Any) -> None:
        self._remove(parameter.grad.untyped_storage()._cdata)


def estimate_step(
    module: TrainingModule,
    batch_size: int,
    size: ImageSize,
    precision: str,
    sharded: bool = False,
    reshard: bool = True,
) -> StepEstimate:
    """Take one training step on fake tensors.

    Args:
        module: a tokenizer on the meta device, or a generator that is not built yet.
        batch_size: samples of one device.
        size: of a tokenizer's images.
        precision: the Trainer's: 32-true, bf16-mixed, bf16-true, ...
        sharded: by FSDP, whose mixed precision casts the weights when it gathers them.
        reshard: whether it frees them after the forward pass.
    """
    half = HALF.get(precision.split("-")[0])
    mixed = half is not None and precision.endswith("mixed")
    with torch.device("meta"):
        module.configure_model()
    if half is not None and not mixed:
        module.to(half)
    cast = sharded and mixed
    computing = copy.deepcopy(module).to(half) if cast else module
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device="cpu")
        parameters = _bytes(module.parameters())
        gathered = _gathered(module, 0.5 if cast else 1.0, reshard) if sharded else 0
        gradients, optimizer = _update(module)
        if computing is not module:
            computing.to_empty(device="cpu")
        module = computing.train()
        live = LiveBytes(module)
        flops = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
        for counter in (live, flops):  # one by one: torch's keeps tensors alive by its hooks
            with counter, torch.autocast("cpu", half, enabled=mixed):
                module.one_step(module.zeros(batch_size, size))
        tokens = batch_size * module.code_layout(size).codes
        cache = module.drawing_memory(SAMPLES, half or torch.float32)
    weights = sum(p.numel() for p in module.parameters() if p.requires_grad)
    sizes = (parameters, gradients, optimizer, live.peak, cache, gathered)
    return StepEstimate(weights, *sizes, tokens, flops.get_total_flops())


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))


def _gathered(module: TrainingModule, cast: float, reshard: bool) -> int:
    """Bytes that FSDP puts together; a gathered weight has `cast` times the size of a kept one.
    What is in no block stays gathered, beside it the block at work and the next, or all blocks that
    are not resharded; then the gradient of one of them, and as it goes into the reduction."""
    blocks = [_bytes(block.parameters()) for block in module.blocks()]
    root, block = _bytes(module.parameters()) - sum(blocks), max(blocks, default=0)
    kept = 2 * block if reshard else sum(blocks)
    return int((root + kept) * cast + max(root, block) * (1 + cast))


def _update(module: TrainingModule) -> tuple[int, int]:
    """Bytes of all gradients, and of the optimizers' state after an update."""
    configured: Any = module.configure_optimizers()
    optimizers = [configured["optimizer"]] if isinstance(configured, dict) else configured
    for p in module.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    gradients = _bytes(p.grad for p in module.parameters())
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return gradients, _bytes(value for state in states for value in state.values())
