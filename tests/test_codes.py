"""CodeLayout: which code stands where."""

from __future__ import annotations

import pytest
import torch

from lgpl.codes import CodeLayout, to_image_size
from lgpl.errors import UserError


@pytest.mark.parametrize("layout", [CodeLayout(2, 3), CodeLayout(1, 16), CodeLayout(2, 3, 4)])
def test_flat_and_back(layout: CodeLayout) -> None:
    codes = torch.randint(9, (5, *layout.shape))
    flat = layout.flatten(codes)
    assert flat.shape == (5, layout.codes) and torch.equal(layout.unflatten(flat), codes)
    # The codes of the first place stand together, in the order of their depths.
    first = codes[:, :, 0, 0] if layout.depth > 1 else codes[:, :1, 0]
    assert torch.equal(flat[:, : layout.depth], first)


def test_a_place_is_drawn_with_its_last_code() -> None:
    drawn = torch.tensor([[True, True, True, False, False, True]])
    assert CodeLayout(1, 3, 2).places_of(drawn).tolist() == [[[True, False, False]]]


@pytest.mark.parametrize(
    ("layout", "partial", "shown"),
    [
        (CodeLayout(4, 5), 0, []),
        (CodeLayout(4, 5), 1, [10]),
        (CodeLayout(4, 5), 3, [5, 10, 15]),
        (CodeLayout(4, 5), 64, [5, 10, 15]),  # after whole rows
        (CodeLayout(1, 8), 1, [4]),
    ],
)
def test_when_an_image_is_shown(layout: CodeLayout, partial: int, shown: list[int]) -> None:
    assert layout.shown_at(partial) == shown


@pytest.mark.parametrize(
    ("known", "partial", "shown"),
    [(8, 1, [12]), (8, 3, [10, 12, 14]), (13, 7, [14, 15]), (15, 3, []), (0, 1, [8])],
)
def test_when_an_image_is_shown_part_of_which_is_known(
    known: int, partial: int, shown: list[int]
) -> None:
    """Evenly over what is drawn of it, and only then."""
    assert CodeLayout(4, 4).shown_at(partial, known) == shown


def test_names_and_mistakes() -> None:
    assert str(CodeLayout(2, 3)) == "2x3" and str(CodeLayout(2, 3, 4)) == "2x3x4"
    assert to_image_size(64) == to_image_size([64]) == (64, 64)
    assert to_image_size([64, 96]) == (64, 96)
    with pytest.raises(UserError, match="depth must be at least 1, got 2x3"):
        CodeLayout(2, 3, 0)
    for wrong in (0, [64, 0], [1, 2, 3], []):
        with pytest.raises(UserError, match=r"data\.image_size must be a side, or height and"):
            to_image_size(wrong, "data.image_size")
