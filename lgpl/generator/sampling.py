"""How codes are to be drawn; without torch, for who only reads options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lgpl.errors import UserError


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
