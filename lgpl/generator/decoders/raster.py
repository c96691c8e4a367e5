"""Code after code against a static KV cache: `prefill` the prefix, then `decode_one_token`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lgpl.generator.blocks import Cache, LayerCache
from lgpl.generator.conditions import join
from lgpl.generator.decoders.base import Decoder, Step, Task
from lgpl.generator.guidance import Picker


@runtime_checkable
class CachedModel(Protocol):
    """A model that predicts from a prefix and a KV cache; see `Transformer` for its methods. No
    submodule stands here: from Python 3.12 on, isinstance would not see it."""

    prefix_length: int

    def embed(self, codes: Tensor, index: Tensor) -> Tensor: ...
    def mask(self, lengths: Tensor, total: int) -> Tensor: ...
    def new_cache(self, batch: int, dtype: torch.dtype, length: int | None = None) -> Cache: ...
    def step(self, x: Tensor, position: Tensor, mask: Tensor, cache: Cache) -> Tensor: ...


def cache_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """Of keys and values where the model computes in a dtype: on a CPU float32, because its kernels
    of attention take several times as long in bf16, and in every step all would be converted."""
    return torch.float32 if device == "cpu" else dtype


class Raster(Decoder):
    """Draws in raster order; given codes that all images begin with are read with the prefix."""

    needs = CachedModel
    in_order = True
    _compiled: CompiledStep | None = None

    def compiled(self, **options: Any) -> Raster:
        other = Raster()
        other._compiled, other.is_compiled = CompiledStep(**options), True
        return other

    def memory(self, model: Any, images: int, dtype: torch.dtype) -> int:
        layers = model.new_cache(2 * images, dtype)
        return sum(tensor.untyped_storage().nbytes() for layer in layers for tensor in layer)

    def steps(self, model: Any, task: Task) -> Iterator[Step]:
        drawing = Drawing(model, task, self._compiled)
        decode = self._compiled or decode_one_token
        if drawing.known is not None:
            yield drawing.known
        while True:
            yield drawing.pick()
            if drawing.is_done:
                return
            drawing.logits = decode(model, *drawing.next(), drawing.cache)


class Drawing:
    """Images at the same place of their sequences: their KV cache, and the logits of the next code.

    Building it reads conditions and given codes. What several images begin with is computed once:
    the rows of the first of each kind.
    """

    def __init__(self, model: Any, task: Task, compiled: CompiledStep | None = None) -> None:
        prefix, self._count, given = model.prefix_length, model.layout.codes, task.given
        device, self.picker = model.device, Picker(task)
        first = list(dict.fromkeys(task.same))
        kind = [first.index(image) for image in task.same]
        inputs = {name: value[first] for name, value in task.inputs.items()}
        if self.picker.guided:
            inputs = join([inputs, model.condition.null(inputs)])
            kind += [len(first) + k for k in kind]
        x, lengths = model.condition(inputs)
        self.index = 0 if given is None else int((given >= 0).all(0).int().cumprod(0).sum())
        self.known: Step | None = None
        if given is not None and self.index:
            begun = given[:, : self.index].to(device)
            places = torch.arange(self.index, device=device)
            x = torch.cat((x, model.embed(self.picker.doubled(begun[first]), places)), dim=1)
            self.known = Step(slice(0, self.index), begun)
        dtype = next(model.parameters()).dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        new_cache = partial(compiled.cache, model) if compiled else model.new_cache
        dtype = cache_dtype(device.type, dtype)
        self.cache: Cache = new_cache(len(kind), dtype)
        total = prefix + self._count
        visible = torch.ones(1, 1, total, total, dtype=torch.bool, device=device).tril()
        if lengths is not None:
            visible = model.mask(lengths, total)
        # Scores are made once: of truth values the kernel would make them in every step.
        mask = torch.where(visible, 0.0, -math.inf).to(dtype)
        self.logits = prefill(model, x, kind, mask, self.cache)
        self.mask = mask if lengths is None else mask[kind]
        self.length = prefix + self.index  # of the sequences so far
        self._position = torch.arange(self.length, device=device)[-1:]
        self.rows: Rows | None = None  # in which others are drawn with it
        # Compiled code is for one shape; there the mask alone hides what is still to come.
        self._seen = total if compiled else 0

    @property
    def is_done(self) -> bool:
        return self.index == self._count

    def pick(self) -> Step:
        """Draw the next code of each image."""
        self.codes = self.picker(self.logits, self.index)
        self.index += 1
        return Step(slice(self.index - 1, self.index), self.codes.unsqueeze(1))

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The codes of all rows that were drawn last, their position [1], and what they see, for
        `decode_one_token`."""
        self._position, self.length = self._position + 1, self.length + 1
        mask = self.mask[:, :, self._position, : self._seen or self.length]
        return self.picker.doubled(self.codes), self._position, mask


class Rows:
    """One KV cache of drawings at different places, which have its rows one after the other, so
    that a step reads weights and cache as one batch."""

    def __init__(self, model: Any, drawings: Sequence[Drawing]) -> None:
        self._sizes = [len(drawing.logits) for drawing in drawings]
        dtype = drawings[0].cache[0].keys.dtype
        self._cache: Cache = model.new_cache(sum(self._sizes), dtype)
        begin = 0
        for drawing, size in zip(drawings, self._sizes, strict=True):
            part = slice(begin, begin + size)
            cache = [LayerCache(keys[part], values[part]) for keys, values in self._cache]
            for old, new in zip(drawing.cache, cache, strict=True):
                for held, place in zip(old, new, strict=True):  # keys, then values
                    place[:, :, : drawing.length] = held[:, :, : drawing.length]
            drawing.cache, drawing.rows, begin = cache, self, begin + size
        total = model.prefix_length + model.layout.codes
        hidden = torch.full((sum(self._sizes), 1, 1, total), -math.inf, dtype=dtype)
        self._mask = hidden.to(model.device)

    def belongs_to(self, drawings: Sequence[Drawing]) -> bool:
        """Whether it was made for these, and nothing joined or left since."""
        return len(drawings) == len(self._sizes) and all(d.rows is self for d in drawings)

    def decode(self, model: Any, drawings: Sequence[Drawing]) -> None:
        """`decode_one_token` for the drawings that it was made for."""
        nexts = [drawing.next() for drawing in drawings]
        for own, (_, _, mask) in zip(self._mask.split(self._sizes), nexts, strict=True):
            own[..., : mask.shape[-1]] = mask
        seen = max(mask.shape[-1] for _, _, mask in nexts)
        codes = torch.cat([codes for codes, _, _ in nexts])
        at = torch.cat([place.expand(len(codes)) for codes, place, _ in nexts])[:, None]
        logits = decode_one_token(model, codes, at, self._mask[..., :seen], self._cache)
        for drawing, own in zip(drawings, logits.split(self._sizes), strict=True):
            drawing.logits = own


def decode_together(model: Any, drawings: Sequence[Drawing]) -> None:
    """`decode_one_token` for drawings at different places; where memory is full, one by one."""
    rows = drawings[0].rows
    if len(drawings) > 1 and not (rows and rows.belongs_to(drawings)):
        try:
            rows = Rows(model, drawings)
        except torch.OutOfMemoryError:
            rows = None
    if len(drawings) > 1 and rows:
        rows.decode(model, drawings)
        return
    for drawing in drawings:
        drawing.logits = decode_one_token(model, *drawing.next(), drawing.cache)


def prefill(model: CachedModel, x: Tensor, kind: list[int], mask: Tensor, cache: Cache) -> Tensor:
    """Logits [B, K] of the first code that is to be drawn, and x written into an empty cache. Of
    conditions and codes, embedded as x [P, T, dim], row i of B begins with number `kind[i]`; the
    mask [P or 1, 1, n, n] is added to the scores."""
    t = x.shape[1]
    shared = model.new_cache(len(x), cache[0].keys.dtype, t)
    logits = model.step(x, torch.arange(t, device=x.device), mask[:, :, :t, :t], shared)
    for layer, layer_shared in zip(cache, shared, strict=True):
        for whole, part in zip(layer, layer_shared, strict=True):  # keys, then values
            whole[:, :, :t] = part[kind]
    return logits[kind]


def decode_one_token(
    model: CachedModel, codes: Tensor, position: Tensor, mask: Tensor, cache: Cache
) -> Tensor:
    """Logits [B, K] behind codes [B], whose place in the sequence is `position` [1], or [B, 1] of
    each; the mask [B or 1, 1, 1, n] is added to the scores of the n positions that the kernel looks
    at."""
    x = model.embed(codes.unsqueeze(1), position - model.prefix_length)
    return model.step(x, position, mask, cache)


class StaticCache:
    """A cache that stays where it is from batch to batch, as CUDA graphs need it."""

    _held: Cache = []

    def cache(self, model: Any, batch: int, dtype: torch.dtype) -> Cache:
        """For one more batch; the mask hides what the last one left until it is written over."""
        held = self._held[0].keys if self._held else None
        if held is None or len(held) != batch or held.dtype != dtype:
            self._held = []  # freed before the next is taken
            self._held = model.new_cache(batch, dtype)
            for tensor in itertools.chain(*self._held):
                torch._dynamo.mark_static_address(tensor)
        return self._held


class CompiledStep(StaticCache):
    """`decode_one_token` by torch.compile, for many batches of one size, in one thread. Every step
    has the same shapes and waits for nothing on the host, so on a GPU it is one CUDA graph.
    Compiling takes a minute or so, and again for every other size."""

    def __init__(self, **options: Any) -> None:
        options = options or {"mode": "reduce-overhead"}
        self._decode = torch.compile(decode_one_token, fullgraph=True, dynamic=False, **options)
        self._guarded = True

    def cache(self, model: Any, batch: int, dtype: torch.dtype) -> Cache:
        self._guarded = True
        return super().cache(model, batch, dtype)

    def __call__(
        self, model: CachedModel, codes: Tensor, position: Tensor, mask: Tensor, cache: Cache
    ) -> Tensor:
        """Logits [B, K], which the next call overwrites."""
        # Whatever holds for the prefill. Steps of one batch differ in nothing that the guards of
        # compiled code look at, which for B takes 0.4 ms of the host's time.
        with torch.compiler.set_stance("default", skip_guard_eval_unsafe=not self._guarded):
            torch.compiler.cudagraph_mark_step_begin()
            logits: Tensor = self._decode(model, codes, position, mask, cache)
        self._guarded = False
        return logits
