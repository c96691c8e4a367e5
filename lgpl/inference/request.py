"""What is to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lgpl.generator.conditions import Inputs
from lgpl.generator.sampling import Sampling


@dataclass(frozen=True, eq=False)
class Request:
    """One image.

    Attributes:
        number: its place in a set, by which files and metrics know it.
        prompt: what it shows, see `Condition.parse`.
        sampling: how its codes are drawn.
        seed: of its random numbers; it depends on nothing else but the above.
        given: codes [codes] in the flat order that are known, -1 at all others.
        inputs: the prompt, where it has been parsed already.
    """

    number: int
    prompt: str
    sampling: Sampling
    seed: int
    given: Tensor | None = None
    inputs: Inputs | None = None


def requests_for(
    prompts: Sequence[str], sampling: Sampling, seed: int, given: Tensor | None = None
) -> list[Request]:
    """A request for each prompt, numbered from 0; number i is drawn from the seed `seed` + i."""
    return [Request(i, p, sampling, seed + i, given) for i, p in enumerate(prompts)]
