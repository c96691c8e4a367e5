"""GenEval's questions (arXiv 2310.11513): whether the objects found in an image are those that its
prompt asks for. A prompt `include`s groups of objects, each with its class, the least count and
perhaps a colour and a position relative to an earlier group, and `exclude`s others."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Its tasks by their tags, in the order of its table.
TASKS = {
    "single_object": "single object",
    "two_object": "two object",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "color_attr": "color attribution",
}
MARGIN = 0.1  # of two objects' extents together, by which a position has to be clear
DIRECTION = 0.5  # least part of the unit vector between two objects that names a position


class Box(NamedTuple):
    """Where an object is, in pixels from the top left."""

    left: float
    top: float
    right: float
    bottom: float


Objects = Mapping[str, Sequence[Box]]  # by their class, the surest first
ColorsOf = Callable[[str, Sequence[Box]], Sequence[str]]  # of objects of a class


def fault(objects: Objects, wanted: Mapping[str, Any], colors_of: ColorsOf) -> str:
    """Why the image is not what is wanted, or nothing where it is."""
    groups: list[Sequence[Box]] = []
    faults = []
    for group in wanted["include"]:
        name, count = group["class"], group["count"]
        found = list(objects.get(name, ()))[:count]
        said = _lacks(name, count, found, group, groups, colors_of)
        faults += [said] if said else []
        groups.append([] if said else found)
    for group in wanted.get("exclude", ()):
        if (number := len(objects.get(group["class"], ()))) >= group["count"]:
            faults.append(f"{number} of {group['class']}, not fewer than {group['count']}")
    return "; ".join(faults)


def _lacks(
    name: str,
    count: int,
    found: Sequence[Box],
    group: Mapping[str, Any],
    earlier: Sequence[Sequence[Box]],
    colors_of: ColorsOf,
) -> str:
    if len(found) < count:
        return f"{len(found)} of {name}, not {count}"
    if "color" in group:
        colors = list(colors_of(name, found))
        if colors.count(group["color"]) < count:
            return f"{name} in {', '.join(colors)}, not {group['color']}"
    if "position" in group:
        position, number = group["position"]
        others = earlier[number] if number < len(earlier) else []
        if not others:
            return f"nothing for {name} to be {position}"
        for one in found:
            for other in others:
                if position not in (there := positions(one, other)):
                    return f"{name} {' and '.join(sorted(there)) or 'on top'}, not {position}"
    return ""


def positions(one: Box, other: Box) -> set[str]:
    """Where the first lies as seen from the second: left of, right of, above, below, two of these
    on a diagonal, or none where they overlap too much to say."""
    centers = [((b.left + b.right) / 2, (b.top + b.bottom) / 2) for b in (one, other)]
    extents = [(b.right - b.left, b.bottom - b.top) for b in (one, other)]
    offset = [a - b for a, b in zip(*centers, strict=True)]
    margins = [MARGIN * (a + b) for a, b in zip(*extents, strict=True)]
    clear = [max(abs(d) - m, 0.0) for d, m in zip(offset, margins, strict=True)]
    if max(clear) < 1e-3:
        return set()
    x, y = (math.copysign(c, d) / math.hypot(*offset) for c, d in zip(clear, offset, strict=True))
    named = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, part in named.items() if part > DIRECTION}
