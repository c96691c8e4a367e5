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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lgpl.errors import UserError
from lgpl.generator.blocks import LayerCache
from lgpl.generator.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Attributes:
        guidance: scale s of classifier-free guidance, logits = u + s (c - u); 1 turns it off.
        guidance_steps: number of codes that are guided; the rest follow the condition alone.
            None guides all.
        temperature: divides the logits; 0 takes the most likely code.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the smallest set of codes with this probability; 1 keeps all.
        guidance_schedule: how the scale rises from 1 at the first code to s at the last: not at all
            (`constant`), `linear`, `cosine` (arXiv 2404.13040), or `power-cosine`, a cosine of the
            place to the power of `guidance_power` (arXiv 2303.14389, appendix).
        guidance_power: above 1 keeps the scale low for longer.
        guidance_start: number of codes before guidance sets in.
    """

    guidance: float = 1.0
    guidance_steps: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_schedule: Literal["constant", "linear", "cosine", "power-cosine"] = "constant"
    guidance_power: float = 2.0
    guidance_start: int = 0

    def __post_init__(self) -> None:
        for name, value, right, is_right in (
            ("guidance", self.guidance, "at least 0", self.guidance >= 0),
            ("temperature", self.temperature, "at least 0", self.temperature >= 0),
            ("top_k", self.top_k, "at least 0", self.top_k >= 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            ("guidance_power", self.guidance_power, "above 0", self.guidance_power > 0),
            ("guidance_start", self.guidance_start, "at least 0", self.guidance_start >= 0),
            (
                *("guidance_schedule", self.guidance_schedule, f"one of {', '.join(RISES)}"),
                self.guidance_schedule in RISES,
            ),
        ):
            if not is_right:
                raise UserError(f"{name}: {value} is not {right}.")

    def scales(self, count: int) -> list[float]:
        """The scale of guidance for each of `count` codes."""
        power = self.guidance_power if self.guidance_schedule == "power-cosine" else 1.0
        rise = RISES[self.guidance_schedule]
        stop = count if self.guidance_steps is None else self.guidance_steps
        return [
            1.0 + (self.guidance - 1.0) * rise((index / max(1, count - 1)) ** power)
            if self.guidance_start <= index < stop
            else 1.0
            for index in range(count)
        ]


def _half_cosine(place: float) -> float:
    return (1 - math.cos(math.pi * place)) / 2


# What share of the scale's rise is reached at a place from 0, the first code, to 1, the last.
RISES: dict[str, Callable[[float], float]] = {
    "constant": lambda place: 1.0,
    "linear": lambda place: place,
    "cosine": _half_cosine,
    "power-cosine": _half_cosine,
}


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


def guide(logits: Tensor, scale: float | Tensor) -> Tensor:
    """Guided logits [B, K] of [2B, K], conditional rows first."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """One code per row.

    Args:
        logits: [B, K].
        uniform: one number in [0, 1) per row [B]; the code is drawn by inverting the distribution.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    k = sampling.top_k if 0 < sampling.top_k < logits.shape[-1] else logits.shape[-1]
    if k == logits.shape[-1] and sampling.top_p == 1:  # nothing is left out, nothing to sort
        return _invert(logits.softmax(-1), uniform)
    kept, codes = logits.topk(k, dim=-1)  # descending
    p = kept.softmax(-1)
    if sampling.top_p < 1:
        before = p.cumsum(-1) - p
        p = p.masked_fill(before >= sampling.top_p, 0.0)
    return codes.gather(-1, _invert(p, uniform)[:, None]).squeeze(-1)


def _invert(p: Tensor, uniform: Tensor) -> Tensor:
    """Index in each row of p [B, k] at which the cumulative sum passes that share of the whole."""
    cumulative = p.cumsum(-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)
    return place.clamp(max=p.shape[-1] - 1)


def generate(
    model: Transformer,
    condition: Tensor,
    lengths: Tensor | None = None,
    sampling: Sampling = Sampling(),
    seeds: list[int] | None = None,
    prompt: Tensor | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
    decoder: CompiledDecoder | None = None,
) -> Tensor:
    """Codes of new images.

    Args:
        condition: class labels [B], or text features [B, text_length, F], left-padded.
        lengths: number of real text positions [B]; None where nothing is padded.
        sampling: guidance, temperature and truncation.
        seeds: one for each image; 0, 1, 2, ... by default.
        prompt: codes [B, n] that the images begin with.
        progress: called after every code with the number of codes drawn so far, and all codes
            [B, N], of which the others are still to come; what it raises ends the sampling.
        decoder: decodes by compiled code; None runs operation by operation.

    Returns:
        Codes [B, rows, columns], int64.
    """
    was_training = model.training
    model.eval()
    # Inference mode is worth a tenth of the time on a CPU; compiled code has no use for it.
    with torch.no_grad() if decoder else torch.inference_mode():
        codes = _generate(model, condition, lengths, sampling, seeds, prompt, progress, decoder)
    model.train(was_training)
    return codes.clone().view(len(condition), *model.grid)  # a tensor for any use again


def _generate(
    model: Transformer,
    condition: Tensor,
    lengths: Tensor | None,
    sampling: Sampling,
    seeds: list[int] | None,
    prompt: Tensor | None,
    progress: Callable[[int, Tensor], None] | None,
    decoder: CompiledDecoder | None,
) -> Tensor:
    """Codes [B, N] of `generate`."""
    batch, count, prefix = len(condition), model.code_count, model.prefix_length
    uniform = _uniform(seeds if seeds is not None else list(range(batch)), count).to(
        condition.device
    )
    guided, scales = sampling.guidance != 1.0, sampling.scales(count)

    rows = torch.cat((condition, model.condition.null(condition))) if guided else condition
    row_lengths = torch.cat((lengths, lengths)) if guided and lengths is not None else lengths
    x = model.condition(rows)
    known = 0 if prompt is None else prompt.shape[1]
    codes = torch.empty(batch, count, dtype=torch.int64, device=rows.device)
    if prompt is not None:
        codes[:, :known] = prompt
        x = torch.cat((x, model.tok_embeddings(_double(prompt, guided))), dim=1)
    dtype = _computing(model, rows.device.type)
    cache = (decoder.cache if decoder else new_cache)(model, len(rows), dtype)
    decode = decoder or decode_one_token
    # On a CPU attention to the cache is taken in float32, see `Attention`.
    mask = _scores(model, row_lengths, prefix + count, torch.float32 if rows.is_cpu else dtype)

    seen = prefix + known
    logits = prefill(model, x, row_lengths, mask[:, :, :seen, :seen], cache)
    position = torch.arange(seen, device=rows.device)
    for index in range(known, count):
        if guided:
            logits = guide(logits, scales[index])
        codes[:, index] = pick(logits, sampling, uniform[:, index])
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
    if lengths is not None:  # other text of the same features is hidden
        begins = torch.cat((begins, lengths[:, None].to(x.dtype)), dim=1)
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
        # compiled code look at, which for B takes 0.4 ms: more than a GPU's whole step.
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
