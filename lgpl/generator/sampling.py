"""How codes are to be drawn; without torch, for who only reads options."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from lgpl.errors import UserError

SIGNS = {"ge": ">=", "gt": ">", "le": "<="}


def _number(default: float | None, **bounds: float) -> Any:
    """A field with bounds, named as pydantic and `operator` name them."""
    return field(default=default, metadata=bounds)


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Attributes:
        guidance: scale s of classifier-free guidance, logits = u + s (c - u); 1 turns it off.
        guidance_steps: codes after which the rest follow the condition alone; None guides all.
        temperature: divides the logits; below 1e-5 the most likely code is taken.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the smallest set of codes with this probability; 1 keeps all.
        guidance_schedule: how the scale rises from 1 at the first code to s at the last: not at all
            (`constant`), `linear`, `cosine` (arXiv 2404.13040), or `power-cosine`, a cosine of the
            position to the power of `guidance_power` (arXiv 2303.14389, appendix).
        guidance_power: exponent of `power-cosine`; above 1 keeps the scale low for longer.
        guidance_start: number of codes before guidance sets in.
        steps: forward passes in which a parallel generator draws an image; None is its own number.
            One that draws code after code takes none.
    """

    guidance: float = _number(1.0, ge=0)
    guidance_steps: int | None = _number(None, ge=0)
    temperature: float = _number(1.0, ge=0)
    top_k: int = _number(0, ge=0)
    top_p: float = _number(1.0, gt=0, le=1)
    guidance_schedule: Literal["constant", "linear", "cosine", "power-cosine"] = "constant"
    guidance_power: float = _number(2.0, gt=0)
    guidance_start: int = _number(0, ge=0)
    steps: int | None = _number(None, ge=1)

    def __post_init__(self) -> None:
        for its in fields(self):
            value = getattr(self, its.name)
            for name, bound in its.metadata.items() if value is not None else ():
                if not getattr(operator, name)(value, bound):
                    raise UserError(f"{its.name} must be {SIGNS[name]} {bound}, got {value}")
                if value == math.inf:
                    raise UserError(f"{its.name} must be finite, got {value}")
        if (schedule := self.guidance_schedule) not in RISES:
            raise UserError(f"guidance_schedule must be one of {', '.join(RISES)}, got {schedule}")

    def __str__(self) -> str:
        """In words, what is not the default: `guidance 1.5, top-k 100`; nothing for defaults."""
        chosen = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return ", ".join(f"{f.name.replace('_', '-')} {getattr(self, f.name)}" for f in chosen)

    def within(self, codes: int) -> Sampling:
        """The same for so many codes that are to be drawn, of which each step draws one or more."""
        return self if self.steps is None else replace(self, steps=min(self.steps, codes))

    def scales(self, count: int, span: int | None = None) -> list[float]:
        """The scale of guidance for each of `count` codes. A code's position in the schedule is its
        number, from 0 on, over `span`: by default the last code's."""
        span = span or max(1, count - 1)
        power = self.guidance_power if self.guidance_schedule == "power-cosine" else 1.0
        rise = RISES[self.guidance_schedule]
        stop = count if self.guidance_steps is None else self.guidance_steps
        scales = [1.0] * count
        for index in range(self.guidance_start, min(stop, count)):
            scales[index] += (self.guidance - 1.0) * rise((index / span) ** power)
        return scales


def _half_cosine(position: float) -> float:
    return (1 - math.cos(math.pi * position)) / 2


# What share of the scale's rise is reached at a position from 0, the first code, to 1, the last.
RISES: dict[str, Callable[[float], float]] = {
    "constant": lambda position: 1.0,
    "linear": lambda position: position,
    "cosine": _half_cosine,
    "power-cosine": _half_cosine,
}
