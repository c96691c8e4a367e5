"""Which codes of an image are drawn together: how many in each step, and at which places.

LPD (arXiv 2507.01957, section 3.3): groups grow as the known codes do, each as near as can be to
what is known and as far as can be from one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lgpl.codes import CodeLayout

# The lists of the paper's released configs, by the grid.
PUBLISHED: dict[tuple[int, int], tuple[str, ...]] = {
    (16, 16): (
        "1 1 1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 3 3 3 3 3 3 3 4 4 4 4 4 4 4 4 4 5 5 5 5 5 5 5 5 5 5 "
        "5 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6",
        "1 1 2 2 3 3 4 5 5 6 6 7 7 8 8 9 9 10 10 10 11 11 11 11 12 12 12 12 12 12 12 12",
        "1 2 3 4 5 6 7 8 9 10 11 11 12 13 14 14 14 15 15 16 16 16 17 17",
        "1 2 4 5 7 8 10 11 12 14 15 16 17 18 18 19 19 20 20 20",
        "1 4 6 8 11 13 15 17 19 20 22 23 24 24 24 25",
        "1 7 11 15 19 22 25 28 30 32 33 33",
        "1 15 24 32 40 45 49 50",
    ),
    (32, 32): (
        "1 1 2 2 3 3 4 5 5 6 6 7 8 8 9 9 10 10 11 12 12 13 13 14 14 15 15 16 16 17 17 18 18 18 "
        "19 19 20 20 20 21 21 21 22 22 22 23 23 23 23 23 24 24 24 24 24 24 25 25 25 25 25 25 25 "
        "25",
        "1 1 2 3 4 4 5 6 7 8 8 9 10 11 11 12 13 14 14 15 16 16 17 18 18 19 19 20 21 21 22 22 23 "
        "23 24 24 25 25 25 26 26 26 27 27 27 27 27 28 28 28 28 28 28 29 29 29",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 23 24 25 26 26 27 28 28 29 "
        "29 30 30 31 31 32 32 32 33 33 33 33 33 33 33 34",
        "1 2 4 6 7 9 10 12 13 15 16 18 19 20 22 23 24 26 27 28 29 30 31 32 33 34 35 35 36 37 37 "
        "38 38 39 39 39 40 40 40 40",
        "1 4 6 9 11 13 16 18 20 23 25 27 29 31 33 35 36 38 40 41 42 44 45 46 47 48 48 49 49 50 "
        "50 50",
    ),
}
# Numbers of steps that its models are trained with.
TRAINED = {
    (16, 16): (256, 128, 64, 32, 24, 20, 16, 12, 8),
    (32, 32): (1024, 512, 256, 224, 192, 160, 128, 96, 80, 64, 56, 48, 40, 32),
}
JITTER = 0.01  # decides between places alike; scores and squared distances are further apart


def group_sizes(layout: CodeLayout, count: int, steps: int) -> list[int]:
    """How many of `count` codes are drawn in each of so many steps, at most `count`: as published
    for a whole image of the layout, else by a cosine, as in MaskGIT (arXiv 2202.04200)."""
    if count == layout.codes:
        for text in PUBLISHED.get((layout.rows, layout.columns), ()):
            sizes = [int(size) for size in text.split()]
            if len(sizes) == steps and layout.depth == 1:
                return sizes
    ends = [0]
    for step in range(1, steps + 1):
        share = 1 - math.cos(math.pi * step / (2 * steps))
        ends.append(max(ends[-1] + 1, round(count * share)))
    return sorted(end - begin for begin, end in pairwise(ends))


def training_steps(layout: CodeLayout) -> list[int]:
    """The numbers of steps whose groups a model of the layout is trained with: the published ones,
    or the same shares of its codes as those of 16x16."""
    known = TRAINED.get((layout.rows, layout.columns)) if layout.depth == 1 else None
    shares = (round(steps * layout.codes / 256) for steps in TRAINED[16, 16])
    return list(dict.fromkeys(known or (max(1, steps) for steps in shares)))


def numbered(sizes: Sequence[int]) -> list[int]:
    """The number of the group of each code, in their order: 0 1 1 2 2 2 of groups of 1, 2, 3."""
    return [number for number, size in enumerate(sizes) for _ in range(size)]


def locality_order(
    layout: CodeLayout,
    known: Tensor,
    sizes: Sequence[Sequence[int]],
    choices: Tensor,
    proximity: float,
    repulsion: float,
) -> tuple[Tensor, list[int]]:
    """Indices [B, S] of the codes in the order in which images draw them, and the sizes of the
    groups that this is cut into. An image with smaller or fewer groups than others has -1 behind
    its own.

    A group takes the places whose eight neighbours hold known codes, the sum of 1 / distance over
    which is at least `proximity`, in the order of that score, none within `repulsion` of another;
    and for the rest of it always the place farthest from the others. With a depth all first codes
    of the places are drawn before all second ones.

    Args:
        known: codes that need not be drawn [B, N].
        sizes: of each image's groups.
        choices: numbers in [0, 1) [B, N], which decide between places alike.
        repulsion: in places, as distances are.
    """
    batch, index = len(known), torch.arange(layout.codes)
    place, level = index // layout.depth, index % layout.depth
    at = torch.stack((place // layout.columns, place % layout.columns), dim=1)
    apart = (at[:, None] - at).square().sum(-1).double()  # squares of distances [N, N]
    is_neighbour = (apart > 0) & (apart <= 2) & (level[:, None] == level)
    nearness = torch.where(is_neighbour, apart.rsqrt(), 0.0)
    steps = max(map(len, sizes))
    wanted = torch.tensor([[*own, *[0] * (steps - len(own))] for own in sizes])  # [B, steps]
    ties, left, score = JITTER * choices.double(), ~known, known.double() @ nearness
    rows, drawn, widths = torch.arange(batch), list[Tensor](), wanted.amax(0).tolist()
    for step, width in enumerate(widths):
        reached, distance = score.clone(), torch.full_like(score, 2.0 * len(apart) ** 2)
        for turn in range(width):
            takes = wanted[:, step] > turn
            free = left
            if layout.depth > 1:
                lowest = torch.where(left, level, layout.depth).amin(1, keepdim=True)
                free = left & (level == lowest)
            near = free & (reached >= proximity) & (distance > repulsion**2)
            rank = torch.where(near, reached, -math.inf)
            rank = torch.where(near.any(1, keepdim=True), rank, distance)
            best = (rank + ties).masked_fill(~free, -math.inf).argmax(1)
            drawn.append(torch.where(takes, best, -1))
            left[rows, best] &= ~takes
            distance = torch.minimum(distance, apart[best])
            score += nearness[best] * takes[:, None]
    return torch.stack(drawn, dim=1), widths
