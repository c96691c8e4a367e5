"""How codes are drawn from logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lgpl.errors import UserError
from lgpl.generator import Sampling
from lgpl.generator.guidance import pick


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(4000, 4)
    uniform = (torch.arange(4000) + 0.5) / 4000
    drawn = pick(logits, Sampling(), uniform).bincount(minlength=4)
    assert drawn.tolist() == [2000, 1000, 500, 500]
    drawn = pick(logits, Sampling(top_k=2), uniform).bincount(minlength=4).tolist()
    assert drawn[2:] == [0, 0] and drawn[0] == pytest.approx(2667, abs=1)
    drawn = pick(logits, Sampling(top_p=0.6), uniform).bincount(minlength=4).tolist()
    assert drawn[2:] == [0, 0] and drawn[1] > 0
    coldest = pick(logits, Sampling(temperature=1e-40), uniform)  # whose logits would be infinite
    assert (coldest == 0).all()
    cold = pick(logits, Sampling(temperature=0.5), uniform).bincount(minlength=4)
    assert cold[0] > 2700


@pytest.mark.parametrize(
    "bad",
    [
        {"guidance": -1},
        {"guidance": math.inf},
        {"guidance_schedule": "steep"},
        {"guidance_steps": -1},
        {"temperature": math.nan},
        {"guidance_power": math.inf},
        {"guidance_power": 0},
        {"guidance_start": -1},
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
    ],
)
def test_mistakes_are_named(bad: dict[str, Any]) -> None:
    (name, value) = next(iter(bad.items()))
    with pytest.raises(UserError, match=rf"^{name} must be .*, got {value}$"):
        Sampling(**bad)


def test_schedules_of_guidance() -> None:
    """The constant one guides every code alike, the others begin at 1 and end at the scale."""
    assert Sampling(guidance=3.0).scales(4) == [3.0] * 4
    assert Sampling(guidance=3.0, guidance_schedule="linear").scales(5) == [1, 1.5, 2, 2.5, 3]
    cosine = Sampling(guidance=3.0, guidance_schedule="cosine").scales(5)
    power = Sampling(guidance=3.0, guidance_schedule="power-cosine").scales(5)
    assert cosine[0] == power[0] == 1 and cosine[-1] == power[-1] == pytest.approx(3)
    assert cosine[2] == pytest.approx(2) and power[2] < cosine[2] and sorted(power) == power
    interval = Sampling(guidance=3.0, guidance_start=1, guidance_steps=3)
    assert interval.scales(5) == [1, 3, 3, 1, 1]
