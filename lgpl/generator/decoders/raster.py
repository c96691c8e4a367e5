"""Code after code against a static KV cache: `prefill` the prefix, then `decode_one_token`.

Guidance doubles the batch: conditional rows first, null rows behind them, one forward pass for
both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lgpl.generator.blocks import LayerCache
from lgpl.generator.conditions import Condition, join
from lgpl.generator.decoders.base import Decoder, Step, Task
from lgpl.generator.guidance import Picker

if TYPE_CHECKING:
    pass


@runtime_checkable
class CachedModel(Protocol):
    """A model that predicts from a prefix and a KV cache; see `Transformer` for its methods."""

    condition: Condition
    prefix_length: int

    def embed(self, codes: Tensor, index: Tensor) -> Tensor: ...
    def mask(self, lengths: Tensor, total: int) -> Tensor: ...
    def new_cache(
        self, batch: int, dtype: torch.dtype, length: int | None = None
    ) -> list[LayerCache]: ...
    def step(
        self, x: Tensor, position: Tensor, mask: Tensor, cache: list[LayerCache]
    ) -> Tensor: ...


class Raster(Decoder):
    """Draws in raster order; given codes are kept, and those that all images begin with are read
    together with the prefix."""

    needs = CachedModel

    def __init__(self) -> None:
        self._compiled: CompiledStep | None = None

    def compiled(self, **options: Any) -> Raster:
        other = Raster()
        other._compiled, other.is_compiled = CompiledStep(**options), True
        return other

    def memory(self, model: Any, images: int, dtype: torch.dtype) -> int:
        layers = model.new_cache(2 * images, dtype)
        return sum(t.untyped_storage().nbytes() for c in layers for t in (c.keys, c.values))

    def steps(self, model: Any, task: Task) -> Iterator[Step]:
        prefix, count = model.prefix_length, model.layout.codes
        device, picker = model.device, Picker(task)
        guided = picker.guided
        given = None if task.given is None else task.given.to(device)
        known = 0 if task.given is None else int((task.given >= 0).all(0).int().cumprod(0).sum())

        # What several images begin with is computed once: the rows of the first of each kind.
        first = list(dict.fromkeys(task.same))
        kind = [first.index(image) for image in task.same]
        inputs = {name: value[first] for name, value in task.inputs.items()}
        if guided:
            inputs = join([inputs, model.condition.null(inputs)])
            kind += [len(first) + k for k in kind]
        x, lengths = model.condition(inputs)
        if known:
            assert given is not None
            begun = given[first, :known]
            places = torch.arange(known, device=device)
            x = torch.cat((x, model.embed(_double(begun, guided), places)), dim=1)
            yield Step(slice(0, known), given[:, :known])
        dtype = _computing(model, device.type)
        if self._compiled:
            cache = self._compiled.cache(model, len(kind), dtype)
        else:
            cache = model.new_cache(len(kind), dtype)
        # On a CPU attention to the cache is taken in float32, see `Attention`.
        exact = torch.float32 if device.type == "cpu" else dtype
        mask = _scores(model, lengths, prefix + count, exact)
        logits = prefill(model, x, kind, mask, cache)
        mask = mask if lengths is None else mask[kind]
        decode = self._compiled or decode_one_token

        seen = prefix + known
        position = torch.arange(seen, device=device)
        for index in range(known, count):
            codes = picker(logits, index)
            if given is not None:
                codes = torch.where(given[:, index] < 0, codes, given[:, index])
            yield Step(slice(index, index + 1), codes.unsqueeze(1))
            if index + 1 < count:
                position = position[-1:] + 1
                # Compiled code is for one shape; there the mask alone hides what is still to come.
                seen = prefix + count if self._compiled else seen + 1
                new = _double(codes, guided)
                logits = decode(model, new, position, mask[:, :, position, :seen], cache)


def prefill(
    model: CachedModel, x: Tensor, kind: list[int], mask: Tensor, cache: list[LayerCache]
) -> Tensor:
    """Logits [B, K] of the first code that is to be drawn.

    Args:
        x: embeddings [P, T, dim] of the conditions and codes that rows begin with.
        kind: which of them, for each of B rows.
        mask: [P or 1, 1, n, n], added to the scores.
        cache: empty, of B rows; what comes behind sees x in it.
    """
    t = x.shape[1]
    shared = model.new_cache(len(x), cache[0].keys.dtype, t)
    logits = model.step(x, torch.arange(t, device=x.device), mask[:, :, :t, :t], shared)
    for layer, layer_shared in zip(cache, shared, strict=True):
        layer.keys[:, :, :t] = layer_shared.keys[kind]
        layer.values[:, :, :t] = layer_shared.values[kind]
    return logits[kind]


def decode_one_token(
    model: CachedModel,
    codes: Tensor,
    position: Tensor,
    mask: Tensor,
    cache: list[LayerCache],
) -> Tensor:
    """Logits [B, K] of the next code.

    Args:
        codes: [B], whose place in the sequence is `position` [1].
        mask: [B or 1, 1, 1, n], added to the scores of the n positions that the kernel looks at.
        cache: of the positions before.
    """
    x = model.embed(codes.unsqueeze(1), position - model.prefix_length)
    return model.step(x, position, mask, cache)


class CompiledStep:
    """`decode_one_token` by torch.compile, for many batches of one size.

    Every step has the same shapes and waits for nothing on the host, so on a GPU it is one CUDA
    graph. The cache stays where it is from batch to batch, as graphs need it. Compiling takes a
    minute or so, and again for every other size. To be called in one thread.

    Args:
        options: of torch.compile; `mode="reduce-overhead"` by default.
    """

    def __init__(self, **options: Any) -> None:
        options = options or {"mode": "reduce-overhead"}
        self._decode = torch.compile(decode_one_token, fullgraph=True, dynamic=False, **options)
        self._cache: list[LayerCache] = []
        self._guarded = True

    def cache(self, model: CachedModel, batch: int, dtype: torch.dtype) -> list[LayerCache]:
        """For one more batch. What the last one left is hidden by the mask until it is written
        over."""
        self._guarded = True
        held = self._cache[0].keys if self._cache else None
        if held is None or len(held) != batch or held.dtype != dtype:
            self._cache = []  # freed before the next is taken
            self._cache = model.new_cache(batch, dtype)
            for layer in self._cache:
                torch._dynamo.mark_static_address(layer.keys)
                torch._dynamo.mark_static_address(layer.values)
        return self._cache

    def __call__(
        self,
        model: CachedModel,
        codes: Tensor,
        position: Tensor,
        mask: Tensor,
        cache: list[LayerCache],
    ) -> Tensor:
        """Logits [B, K], which the next call overwrites."""
        # Whatever holds for the prefill. Steps of one batch differ in nothing that the guards of
        # compiled code look at, which for B takes 0.4 ms of the host's time.
        with torch.compiler.set_stance("default", skip_guard_eval_unsafe=not self._guarded):
            torch.compiler.cudagraph_mark_step_begin()
            logits: Tensor = self._decode(model, codes, position, mask, cache)
        self._guarded = False
        return logits


def _scores(model: Any, lengths: Tensor | None, total: int, dtype: torch.dtype) -> Tensor:
    """[P or 1, 1, total, total]: 0 where a query may see a key, else -inf. Made once: of truth
    values the kernel would make it in every step."""
    if lengths is None:
        visible = torch.ones(1, 1, total, total, dtype=torch.bool, device=model.device).tril()
    else:
        visible = model.mask(lengths, total)
    scores = torch.zeros(visible.shape, dtype=dtype, device=model.device)
    return scores.masked_fill_(~visible, -math.inf)


def _computing(model: Any, device: str) -> torch.dtype:
    """What the products are taken in."""
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtype: torch.dtype = next(model.parameters()).dtype
    return dtype


def _double(x: Tensor, guided: bool) -> Tensor:
    return torch.cat((x, x)) if guided else x
