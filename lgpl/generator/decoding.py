"""Sampling: `prefill` the prefix, then `decode_one_token` after the other against a static KV
cache.

Guidance doubles the batch: conditional rows first, null rows behind them, one forward pass for
both. Every image draws from its own stream of random numbers, so it does not depend on its
neighbours. Kernels round differently with other numbers of rows: in float32 the codes were equal in
batches of 1 to 16, greedy and drawn; two codes closer than rounding can still change places, which
in bf16 is to be expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lgpl.generator.blocks import LayerCache
from lgpl.generator.conditions import Inputs, join, rows
from lgpl.generator.guidance import Guidance, alike, pick
from lgpl.generator.sampling import Sampling
from lgpl.generator.transformer import Transformer


def new_cache(
    model: Transformer, batch: int, dtype: torch.dtype, length: int | None = None
) -> list[LayerCache]:
    """Empty cache for `batch` sequences of so many positions; of a whole picture by default."""
    length = model.prefix_length + model.code_count if length is None else length
    shape = (batch, model.heads, length, model.dim // model.heads)
    device = model.rope.device
    return [
        LayerCache(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )
        for _ in model.layers
    ]


def generate(
    model: Transformer,
    inputs: Inputs,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    seeds: list[int] | None = None,
    prompt: Tensor | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
    decoder: CompiledDecoder | None = None,
) -> Tensor:
    """Codes of new images.

    Args:
        inputs: of the condition, of B samples.
        sampling: guidance, temperature and truncation, of all images or of each.
        seeds: one for each image; 0, 1, 2, ... by default.
        prompt: codes [B, n] that the images begin with.
        progress: called after every code with the number of codes drawn so far, and all codes
            [B, N], of which the others are still to come; what it raises ends the sampling.
        decoder: decodes by compiled code; None runs operation by operation.

    Returns:
        Codes [B, rows, columns], int64.
    """
    each = [sampling] * rows(inputs) if isinstance(sampling, Sampling) else sampling
    was_training = model.training
    model.eval()
    # Inference mode is worth a tenth of the time on a CPU; compiled code has no use for it.
    with torch.no_grad() if decoder else torch.inference_mode():
        codes = _generate(model, inputs, each, seeds, prompt, progress, decoder)
    model.train(was_training)
    return codes.clone().view(rows(inputs), *model.grid)  # a tensor for any use again


def _generate(
    model: Transformer,
    inputs: Inputs,
    sampling: Sequence[Sampling],
    seeds: list[int] | None,
    prompt: Tensor | None,
    progress: Callable[[int, Tensor], None] | None,
    decoder: CompiledDecoder | None,
) -> Tensor:
    """Codes [B, N] of `generate`."""
    batch, count, prefix = rows(inputs), model.code_count, model.prefix_length
    device = model.rope.device
    uniform = _uniform(seeds if seeds is not None else list(range(batch)), count).to(device)
    guidance = Guidance(sampling, count, device)
    guided = guidance.guided
    groups = alike(sampling)

    both = join([inputs, model.condition.null(inputs)]) if guided else inputs
    x, lengths = model.condition(both)
    known = 0 if prompt is None else prompt.shape[1]
    codes = torch.empty(batch, count, dtype=torch.int64, device=device)
    if prompt is not None:
        codes[:, :known] = prompt
        x = torch.cat((x, model.tok_embeddings(_double(prompt, guided))), dim=1)
    dtype = _computing(model, device.type)
    cache = (decoder.cache if decoder else new_cache)(model, len(x), dtype)
    decode = decoder or decode_one_token
    # On a CPU attention to the cache is taken in float32, see `Attention`.
    exact = torch.float32 if device.type == "cpu" else dtype
    mask = _scores(model, lengths, prefix + count, exact)

    seen = prefix + known
    logits = prefill(model, x, lengths, mask[:, :, :seen, :seen], cache)
    position = torch.arange(seen, device=device)
    for index in range(known, count):
        logits = guidance(logits, index)
        if len(groups) == 1:
            codes[:, index] = pick(logits, sampling[0], uniform[:, index])
        else:
            for one, images in groups:
                codes[images, index] = pick(logits[images], one, uniform[images, index])
        if progress is not None:
            progress(index + 1, codes)
        if index + 1 < count:
            position = position[-1:] + 1
            # Compiled code is for one shape; there the mask alone hides what is still to come.
            seen = prefix + count if decoder else seen + 1
            new = _double(codes[:, index], guided)
            logits = decode(model, new, position, mask[:, :, position, :seen], cache)
    return codes


def prefill(
    model: Transformer,
    x: Tensor,
    lengths: Tensor | None,
    mask: Tensor,
    cache: list[LayerCache],
) -> Tensor:
    """Logits [B, K] of the first code that is to be drawn.

    What several rows begin with, such as the null condition or one prompt of many pictures, is
    computed once.

    Args:
        x: embeddings [B, T, dim] of the condition and of codes that are given.
        lengths: of the text [B], or None.
        mask: [B or 1, 1, T, T], added to the scores.
        cache: empty; what comes behind sees x in it.
    """
    begins = x.flatten(1)
    if lengths is not None:  # other text of the same features is hidden; bf16 would round lengths
        begins = torch.cat((begins.float(), lengths[:, None].float()), dim=1)
    kinds, kind = begins.unique(dim=0, return_inverse=True)
    row = torch.arange(len(x), device=x.device)
    first = row.new_empty(len(kinds)).scatter_(0, kind, row)  # a row of each kind
    t = x.shape[1]
    shared = new_cache(model, len(kinds), cache[0].keys.dtype, t)
    mask = mask if lengths is None else mask[first]
    logits = model.step(x[first], torch.arange(t, device=x.device), mask, shared)
    for layer, layer_shared in zip(cache, shared, strict=True):
        layer.keys[:, :, :t] = layer_shared.keys[kind]
        layer.values[:, :, :t] = layer_shared.values[kind]
    return logits[kind]


def decode_one_token(
    model: Transformer,
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
    x = model.tok_embeddings(codes).unsqueeze(1)
    return model.step(x, position, mask, cache)


class CompiledDecoder:
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

    def cache(self, model: Transformer, batch: int, dtype: torch.dtype) -> list[LayerCache]:
        """For one more batch. What the last one left is hidden by the mask until it is written
        over."""
        self._guarded = True
        held = self._cache[0].keys if self._cache else None
        if held is None or len(held) != batch or held.dtype != dtype:
            self._cache = []  # freed before the next is taken
            self._cache = new_cache(model, batch, dtype)
            for layer in self._cache:
                torch._dynamo.mark_static_address(layer.keys)
                torch._dynamo.mark_static_address(layer.values)
        return self._cache

    def __call__(
        self,
        model: Transformer,
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


def _scores(model: Transformer, lengths: Tensor | None, total: int, dtype: torch.dtype) -> Tensor:
    """[B or 1, 1, total, total]: 0 where a query may see a key, else -inf. Made once: of truth
    values the kernel would make it in every step."""
    device = model.rope.device
    if lengths is None:
        visible = torch.ones(1, 1, total, total, dtype=torch.bool, device=device).tril()
    else:
        visible = model.mask(lengths, total)
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, -math.inf)


def _computing(model: Transformer, device: str) -> torch.dtype:
    """What the products are taken in."""
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return model.tok_embeddings.weight.dtype


def _double(x: Tensor, guided: bool) -> Tensor:
    return torch.cat((x, x)) if guided else x


def _uniform(seeds: list[int], count: int) -> Tensor:
    """Numbers in [0, 1), [B, count]: one generator per image, on the CPU, equal on every device."""
    return torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
