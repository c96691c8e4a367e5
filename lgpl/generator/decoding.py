"""Sampling: `prefill` the prefix, then `decode_one_token` after the other against a static KV
cache.

Guidance doubles the batch: conditional rows first, null rows behind them, one forward pass for
both. Every image draws from its own stream of random numbers, so it does not depend on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lgpl.errors import UserError
from lgpl.generator.transformer import LayerCache, Transformer


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
    """

    guidance: float = 1.0
    guidance_steps: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, value, right, is_right in (
            ("guidance", self.guidance, "at least 0", self.guidance >= 0),
            ("temperature", self.temperature, "at least 0", self.temperature >= 0),
            ("top_k", self.top_k, "at least 0", self.top_k >= 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
        ):
            if not is_right:
                raise UserError(f"{name}: {value} is not {right}.")


def new_cache(model: Transformer, batch: int, dtype: torch.dtype) -> list[LayerCache]:
    """Empty cache for `batch` sequences of full length."""
    shape = (batch, model.heads, model.prefix_length + model.code_count, model.dim // model.heads)
    device = model.rope.device
    return [
        LayerCache(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )
        for _ in model.layers
    ]


def guide(logits: Tensor, scale: float) -> Tensor:
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
    kept, codes = logits.topk(k, dim=-1)  # descending
    p = kept.softmax(-1)
    if sampling.top_p < 1:
        before = p.cumsum(-1) - p
        p = p.masked_fill(before >= sampling.top_p, 0.0)
    cumulative = p.cumsum(-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return codes.gather(-1, place.clamp(max=k - 1)).squeeze(-1)


@torch.no_grad()
def generate(
    model: Transformer,
    condition: Tensor,
    lengths: Tensor | None = None,
    sampling: Sampling = Sampling(),
    seeds: list[int] | None = None,
    prompt: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Codes of new images.

    Args:
        condition: class labels [B], or text features [B, text_length, F], left-padded.
        lengths: number of real text positions [B]; None where nothing is padded.
        sampling: guidance, temperature and truncation.
        seeds: one for each image; 0, 1, 2, ... by default.
        prompt: codes [B, n] that the images begin with.
        progress: called after every code with the number of codes drawn so far.

    Returns:
        Codes [B, rows, columns], int64.
    """
    was_training = model.training
    model.eval()
    batch, count, prefix = len(condition), model.code_count, model.prefix_length
    uniform = _uniform(seeds if seeds is not None else list(range(batch)), count).to(
        condition.device
    )
    guided = sampling.guidance != 1.0

    rows = torch.cat((condition, model.condition.null(condition))) if guided else condition
    row_lengths = torch.cat((lengths, lengths)) if guided and lengths is not None else lengths
    dtype = (
        torch.get_autocast_dtype(condition.device.type)
        if torch.is_autocast_enabled(condition.device.type)
        else model.output.weight.dtype
    )
    cache = new_cache(model, len(rows), dtype)
    total = prefix + count
    if row_lengths is None:
        mask = torch.ones(total, total, dtype=torch.bool, device=rows.device).tril()[None, None]
    else:
        mask = model.mask(row_lengths, total)

    codes = torch.empty(batch, count, dtype=torch.int64, device=rows.device)
    known = 0 if prompt is None else prompt.shape[1]
    x = model.condition(rows)
    if prompt is not None:
        codes[:, :known] = prompt
        x = torch.cat((x, model.tok_embeddings(_double(prompt, guided))), dim=1)
    position = torch.arange(prefix + known, device=rows.device)
    logits = model.step(x, position, mask[:, :, : prefix + known], cache)  # prefill
    for index in range(known, count):
        within = sampling.guidance_steps is None or index < sampling.guidance_steps
        if guided:
            logits = guide(logits, sampling.guidance if within else 1.0)
        codes[:, index] = pick(logits, sampling, uniform[:, index])
        if progress is not None:
            progress(index + 1)
        if index + 1 < count:
            position = position[-1:] + 1
            logits = decode_one_token(
                model, _double(codes[:, index], guided), position, mask, cache
            )
    model.train(was_training)
    return codes.view(batch, *model.grid)


def decode_one_token(
    model: Transformer, codes: Tensor, position: Tensor, mask: Tensor, cache: list[LayerCache]
) -> Tensor:
    """Logits [B, K] of the next code, after codes [B] at `position` [1]."""
    x = model.tok_embeddings(codes).unsqueeze(1)
    return model.step(x, position, mask[:, :, position], cache)


def _double(x: Tensor, guided: bool) -> Tensor:
    return torch.cat((x, x)) if guided else x


def _uniform(seeds: list[int], count: int) -> Tensor:
    """Numbers in [0, 1), [B, count]: one generator per image, on the CPU, equal on every device."""
    return torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
