"""Groups of codes in any order against a static KV cache (LPD, arXiv 2507.01957, section 3.2).

A step reads the codes of the group before and asks for those of its own, in one forward pass. What
its queries leave in the cache is overwritten in the next step by the codes that were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator.blocks import Cache
from lgpl.generator.conditions import join
from lgpl.generator.decoders.base import Decoder, Step, Task
from lgpl.generator.decoders.groups import group_sizes, locality_order
from lgpl.generator.decoders.raster import Raster, StaticCache, cache_dtype
from lgpl.generator.guidance import Picker


@runtime_checkable
class ParallelModel(Protocol):
    """A model that predicts the codes it is asked for; see `ParallelTransformer` for its methods.
    No submodule stands here, as with `CachedModel`."""

    prefix_length: int

    def begin(self, prefix: Tensor) -> Tensor: ...
    def embed(self, codes: Tensor, index: Tensor) -> Tensor: ...
    def ask(self, index: Tensor) -> Tensor: ...
    def new_cache(self, batch: int, dtype: torch.dtype, length: int | None = None) -> Cache: ...
    def answer(
        self, x: Tensor, count: int, position: Tensor, mask: Tensor, cache: Cache
    ) -> Tensor: ...


class Plan(NamedTuple):
    """In which order, and how many together, the codes of images are read and drawn."""

    order: Tensor  # index of the code at each slot behind the prefix, in the flat order [B, S]
    widths: list[int]  # slots of each group; the first is of given codes, and may have none
    real: Tensor  # [B, S], false at slots that only fill up an image with fewer codes in a group


class Parallel(Decoder):
    """Draws groups of codes, near to known ones and far from each other; see `locality_order`.

    Given codes may stand anywhere, and are read with the prefix. Images of a batch may differ in
    their numbers of steps and of given codes.

    Args:
        steps: of an image whose sampling names none; fewer where fewer codes are to be drawn.
        proximity, repulsion: see `locality_order`.
    """

    needs = ParallelModel
    _compiled: CompiledAnswer | None = None

    def __init__(self, steps: int = 20, proximity: float = 1.0, repulsion: float = 1.5) -> None:
        if steps < 1:
            raise UserError(f"decoder.steps must be >= 1, got {steps}.")
        self.default, self.proximity, self.repulsion = steps, proximity, repulsion

    def compiled(self, **options: Any) -> Parallel:
        other = Parallel(self.default, self.proximity, self.repulsion)
        other._compiled, other.is_compiled = CompiledAnswer(**options), True
        return other

    def memory(self, model: Any, images: int, dtype: torch.dtype) -> int:
        return Raster().memory(model, images, dtype)

    def most_steps(self, model: Any) -> int:
        return int(model.layout.codes)

    def steps(self, model: Any, task: Task) -> Iterator[Step]:
        layout = model.layout
        choices = torch.stack([torch.rand(layout.codes, generator=s) for s in task.streams])
        known = torch.zeros_like(choices, dtype=torch.bool)
        if task.given is not None:
            known = task.given >= 0
        sizes = []
        for sampling, left in zip(task.sampling, (~known).sum(1).tolist(), strict=True):
            steps = min(left, sampling.steps or self.default)
            sizes.append(group_sizes(layout, left, steps) if left else [])
        return self.draw(model, task, self.plan(layout, known, sizes, choices))

    def plan(
        self, layout: CodeLayout, known: Tensor, sizes: Sequence[Sequence[int]], choices: Tensor
    ) -> Plan:
        """The plan for images of which the codes `known` [B, N] are given; see `locality_order`."""
        given = int(known.sum(1).max())
        index = known.int().argsort(dim=1, descending=True, stable=True)[:, :given]
        index, widths = torch.where(known.gather(1, index), index, -1), [given]
        if any(sizes):
            order, groups = locality_order(
                layout, known, sizes, choices, self.proximity, self.repulsion
            )
            index, widths = torch.cat((index, order), dim=1), [given, *groups]
        real = index >= 0
        # What fills up an image is its own first code again.
        first = index.gather(1, real.int().argmax(1, keepdim=True))
        return Plan(torch.where(real, index, first), widths, real)

    def draw(self, model: Any, task: Task, plan: Plan) -> Iterator[Step]:
        """Steps by a plan."""
        device, length, (given, *widths) = model.device, model.prefix_length, plan.widths
        # A code's position in the schedule of guidance is the share of codes known before it.
        picker, inputs = Picker(task, span=model.layout.codes), task.inputs
        if picker.guided:
            inputs = join([inputs, model.condition.null(inputs)])
        prefix, lengths = model.condition(inputs)
        is_even, total = bool(plan.real.all()), length + sum(plan.widths)
        compiled = self._compiled if is_even else None
        index, real = plan.order.to(device), plan.real.to(device)
        turn, first = (real.cumsum(1) - 1).clamp(min=0), real.int().argmax(1, keepdim=True)
        hidden = unseen(picker.doubled(real), lengths, length)
        dtype = next(model.parameters()).dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        dtype = cache_dtype(device.type, dtype)
        if compiled:
            cache = compiled.cache(model, len(prefix), dtype)
        else:
            cache = model.new_cache(len(prefix), dtype, total)
        codes, x, ends = torch.zeros_like(index), model.begin(prefix), [length] * length
        if given:
            assert task.given is not None
            known = task.given.gather(1, plan.order[:, :given]).to(device)
            codes[:, :given] = known.clamp(min=0)
            x = torch.cat((x, picker.doubled(model.embed(codes[:, :given], index[:, :given]))), 1)
            ends += [length + given] * given
        start, shown = given, 0
        for width in widths:
            stop = start + width
            asked, seen = index[:, start:stop], length + stop
            x = torch.cat((x, picker.doubled(model.ask(asked))), dim=1)
            ends += [seen] * width
            position = torch.arange(seen - x.shape[1], seen, device=device)
            # Only the first step, which reads the prefix, has another form in every task.
            step = compiled if compiled and start > given else answer
            looked_at = total if step is compiled else seen
            mask = visible(ends, looked_at, hidden, device).to(dtype)
            logits = step(model, x, width, position, mask, cache)
            codes[:, start:stop] = picker.together(logits, asked, turn[:, start:stop])
            if not is_even:
                filled = torch.where(real, codes, codes.gather(1, first))
                codes[:, shown:stop] = filled[:, shown:stop]
            yield Step(index[:, shown:stop], codes[:, shown:stop])
            x, ends = picker.doubled(model.embed(codes[:, start:stop], asked)), [seen] * width
            start = shown = stop
        if not widths:
            yield Step(index, codes)


def unseen(real: Tensor, lengths: Tensor | None, prefix: int) -> Tensor | None:
    """Positions that nothing may look at [B, prefix + S]: padding of prefixes of these lengths, and
    slots that only fill up; None where there are neither."""
    if lengths is None and real.all():
        return None
    padding = real.new_zeros(len(real), prefix)
    if lengths is not None:  # of an empty caption one position stays, as in training
        position = torch.arange(prefix, device=real.device)
        padding = position < prefix - lengths.clamp(min=1)[:, None]
    return torch.cat((padding, ~real), dim=1)


def visible(ends: list[int], total: int, hidden: Tensor | None, device: torch.device) -> Tensor:
    """What is added to scores [B or 1, 1, T, total] where T queries see as many positions as each
    of `ends` says, without the hidden ones [B, total]."""
    end = torch.tensor(ends, device=device)[:, None]
    seen = torch.arange(total, device=device) < end
    if hidden is not None:
        seen = seen & ~hidden[:, None, :total]
    return torch.where(seen, 0.0, -math.inf).view(-1, 1, len(ends), total)


def answer(
    model: ParallelModel, x: Tensor, count: int, position: Tensor, mask: Tensor, cache: Cache
) -> Tensor:
    """Logits [B, count, K] of the last `count` of the new positions, which are queries."""
    return model.answer(x, count, position, mask, cache)


class CompiledAnswer(StaticCache):
    """`answer` by torch.compile: once for single codes, and once for groups of all other sizes. On
    a GPU each size has its CUDA graph, which the steps of the next batch find again."""

    def __init__(self, **options: Any) -> None:
        options = options or {"mode": "reduce-overhead"}
        self._answer = torch.compile(answer, fullgraph=True, dynamic=True, **options)

    def __call__(
        self,
        model: ParallelModel,
        x: Tensor,
        count: int,
        position: Tensor,
        mask: Tensor,
        cache: Cache,
    ) -> Tensor:
        """Logits, which the next call overwrites."""
        with torch.compiler.set_stance("default"):  # whatever holds for the first step
            torch.compiler.cudagraph_mark_step_begin()
            logits: Tensor = self._answer(model, x, count, position, mask, cache)
        return logits
