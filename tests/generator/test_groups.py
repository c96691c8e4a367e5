"""How many codes are drawn together, and which."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from lgpl.codes import CodeLayout
from lgpl.generator.decoders.groups import group_sizes, locality_order, training_steps
from tests.golden import LPD


def grid(name: str) -> CodeLayout:
    side = int(name.partition("x")[0])
    return CodeLayout(side, side)


@pytest.mark.parametrize("name", LPD["group sizes"])
def test_published_sizes(name: str) -> None:
    steps = int(re.findall(r"(\d+) steps", name)[0])
    layout = grid(name)
    assert group_sizes(layout, layout.codes, steps) == LPD["group sizes"][name]


def test_published_schedules_of_training() -> None:
    for name, steps in LPD["group schedules drawn from in training"].items():
        assert training_steps(grid(name)) == steps
    assert training_steps(CodeLayout(8, 8)) == [64, 32, 16, 8, 6, 5, 4, 3, 2]
    assert training_steps(CodeLayout(1, 2)) == [2, 1]


@pytest.mark.parametrize("layout", [CodeLayout(16, 16), CodeLayout(3, 5), CodeLayout(4, 4, 2)])
def test_any_number_of_steps_draws_every_code_once(layout: CodeLayout) -> None:
    for count in (layout.codes, layout.codes // 2, 1):
        for steps in range(1, count + 1):
            sizes = group_sizes(layout, count, steps)
            assert len(sizes) == steps and sum(sizes) == count
            assert sizes[0] >= 1 and sizes == sorted(sizes)


def order(
    layout: CodeLayout,
    sizes: list[list[int]],
    seed: int = 0,
    known: Tensor | None = None,
    proximity: float = 1.0,
    repulsion: float = 1.5,
) -> list[list[list[int]]]:
    """The groups of each image."""
    choices = torch.rand(len(sizes), layout.codes, generator=torch.Generator().manual_seed(seed))
    if known is None:
        known = torch.zeros_like(choices, dtype=torch.bool)
    index, widths = locality_order(layout, known, sizes, choices, proximity, repulsion)
    parts = [part.tolist() for part in index.split(widths, dim=1)]
    return [
        [[i for i in part[image] if i >= 0] for part in parts[: len(own)]]
        for image, own in enumerate(sizes)
    ]


def distance(layout: CodeLayout, one: int, other: int) -> float:
    a, b = (divmod(code // layout.depth, layout.columns) for code in (one, other))
    return ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5


def scores(layout: CodeLayout, known: set[int]) -> dict[int, float]:
    """Sum of 1 / distance over the known among each one's eight neighbours."""
    found = {}
    for code in set(range(layout.codes)) - known:
        far = [distance(layout, code, other) for other in known]
        found[code] = sum(1 / d for d in far if d < 1.5)
    return found


@pytest.mark.parametrize(("layout", "steps"), [(CodeLayout(16, 16), 20), (CodeLayout(5, 9), 7)])
def test_groups_are_near_to_what_is_known_and_apart(layout: CodeLayout, steps: int) -> None:
    """Every choice against the rule, worked out one by one."""
    sizes = group_sizes(layout, layout.codes, steps)
    (groups,) = order(layout, [sizes])
    assert [len(group) for group in groups] == sizes
    assert sorted(code for group in groups for code in group) == [*range(layout.codes)]
    known: set[int] = set()
    for group in groups:
        score = scores(layout, known)
        for turn, code in enumerate(group):
            chosen = group[:turn]

            def apart(one: int, chosen: list[int] = chosen) -> float:
                return min((distance(layout, one, other) for other in chosen), default=99.0)

            free = [one for one in score if one not in chosen]
            near = [one for one in free if score[one] >= 1.0 and apart(one) > 1.5]
            if near:
                assert code in near and score[code] == pytest.approx(max(map(score.get, near)))
            else:
                assert apart(code) == max(map(apart, free))
        known |= {*group}


def test_order_is_of_the_seed_and_of_no_neighbour() -> None:
    layout = CodeLayout(8, 8)
    sizes = [group_sizes(layout, 64, steps) for steps in (12, 4, 64)]
    known = torch.zeros(3, 64, dtype=torch.bool)
    together = order(layout, sizes)
    assert together == order(layout, sizes) != order(layout, sizes, seed=1)
    assert [len(own) for own in together] == [12, 4, 64]
    for image in range(3):
        choices = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))[[image]]
        index, _ = locality_order(layout, known[[image]], [sizes[image]], choices, 1.0, 1.5)
        assert index[0].tolist() == [code for group in together[image] for code in group]


def test_known_codes_are_not_drawn_and_attract() -> None:
    layout = CodeLayout(8, 8)
    known = torch.zeros(2, 64, dtype=torch.bool)
    known[0, :32], known[1, [0, 63]] = True, True
    groups = order(layout, [[4, 28], [2, 60]], known=known)
    for image in range(2):
        drawn = sorted(code for group in groups[image] for code in group)
        assert drawn == (~known[image]).nonzero().flatten().tolist()
    assert {code // 8 for code in groups[0][0]} == {4}  # the row below
    assert all(min(distance(layout, code, end) for end in (0, 63)) == 1 for code in groups[1][0])


def test_first_codes_of_all_places_come_before_second_ones() -> None:
    layout = CodeLayout(4, 4, 2)
    (groups,) = order(layout, [[3, 5, 12, 12]])
    drawn = [code for group in groups for code in group]
    assert sorted(drawn) == [*range(32)] and [code % 2 for code in drawn] == [0] * 16 + [1] * 16


def test_thresholds_are_settings() -> None:
    """Without repulsion the first group around a known place is its neighbours; with a proximity
    that no place reaches they are far from each other."""
    layout, known = CodeLayout(9, 9), torch.zeros(1, 81, dtype=torch.bool)
    known[0, 40] = True
    (near,) = order(layout, [[8, 72]], known=known, proximity=0.5, repulsion=0.0)
    assert {*near[0]} == {30, 31, 32, 39, 41, 48, 49, 50}
    (far,) = order(layout, [[4, 76]], known=known, proximity=99.0)
    assert min(distance(layout, a, b) for a in far[0] for b in far[0] if a != b) > 4
