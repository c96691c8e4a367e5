"""How codes are drawn from logits: guidance, temperature, truncation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lgpl.errors import UserError

GREEDY = 1e-5  # a temperature below is taken for 0, as by vLLM: logits over it may be infinite


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Attributes:
        guidance: scale s of classifier-free guidance, logits = u + s (c - u); 1 turns it off.
        guidance_steps: number of codes that are guided; the rest follow the condition alone.
            None guides all.
        temperature: divides the logits; below 1e-5 the most likely code is taken.
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
            ("guidance", self.guidance, "from 0 on", 0 <= self.guidance < math.inf),
            ("temperature", self.temperature, "from 0 on", 0 <= self.temperature < math.inf),
            ("top_k", self.top_k, "at least 0", self.top_k >= 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            (
                *("guidance_power", self.guidance_power, "above 0 and finite"),
                0 < self.guidance_power < math.inf,
            ),
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


def guide(logits: Tensor, scale: float | Tensor) -> Tensor:
    """Guided logits [B, K] of [2B, K], conditional rows first."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


class Guidance:
    """Guided logits of images that may have a scale each.

    Args:
        sampling: of each image.
        count: codes of an image.
    """

    def __init__(self, sampling: Sequence[Sampling], count: int, device: torch.device) -> None:
        is_guided = [one.guidance != 1.0 for one in sampling]
        self.guided = any(is_guided)  # then there are null rows behind the conditional ones
        # Of an image without guidance the logits are the conditional ones to the bit.
        mixed = self.guided and not all(is_guided)
        self.is_guided = torch.tensor(is_guided, device=device)[:, None] if mixed else None
        scales = torch.tensor([one.scales(count) for one in sampling], device=device)
        self.scales = scales.T.unsqueeze(-1)  # [N, B, 1], float32

    def __call__(self, logits: Tensor, index: int) -> Tensor:
        """[B, K] of [2B, K], or of [B, K] where no image is guided, for the code at that place."""
        if not self.guided:
            return logits
        logits = logits.float()
        mixed = guide(logits, self.scales[index])
        if self.is_guided is None:
            return mixed
        return torch.where(self.is_guided, mixed, logits[: len(mixed)])


def alike(sampling: Sequence[Sampling]) -> list[tuple[Sampling, list[int]]]:
    """Images that `pick` treats alike, whatever their guidance: the first one's, and all."""
    groups: dict[tuple[float, int, float], list[int]] = {}
    for i, one in enumerate(sampling):
        groups.setdefault((one.temperature, one.top_k, one.top_p), []).append(i)
    return [(sampling[images[0]], images) for images in groups.values()]


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """One code per row.

    Args:
        logits: [B, K].
        uniform: one number in [0, 1) per row [B]; the code is drawn by inverting the distribution.
    """
    if sampling.temperature < GREEDY:
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
