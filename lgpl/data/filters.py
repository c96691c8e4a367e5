"""Which samples are wanted: conditions on the image's size, the caption and the JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lgpl.data.members import Unwanted, check_finite
from lgpl.errors import UserError


class Scalar:
    """A number, a truth value or a text as it stands in YAML or JSON.

    The command line registers it: the texts of a union of these would be read once more, "no" as
    false and "007" as 7.
    """

    @staticmethod
    def read(value: Any) -> Any:
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"expected a number, a truth value or a text, got {value!r}")
        return value


@dataclass
class JsonCondition:
    """On one value of the JSON: a number from `min` to `max`, or one of `only`.

    Attributes:
        min: least number.
        max: largest number.
        only: values that are wanted.
    """

    min: float | None = None
    max: float | None = None
    only: list[Scalar] | None = None

    def holds(self, value: Any) -> bool:
        is_bool = isinstance(value, bool)  # which Python counts among the numbers
        is_number = isinstance(value, (int, float)) and not is_bool
        equal = (w for w in self.only or () if w == value and isinstance(w, bool) == is_bool)
        return (
            (self.only is None or next(equal, None) is not None)
            and (self.min is None or (is_number and value >= self.min))
            and (self.max is None or (is_number and value <= self.max))
        )


@dataclass
class Filter:
    """The samples that a run wants; what is not set lets everything pass.

    Attributes:
        min_side: least shorter side of the image, pixels.
        max_aspect_ratio: of the longer side to the shorter.
        caption_length: least and largest number of characters of the cleaned caption.
        json: conditions on the values of `KEY.json` by name, such as an aesthetic score, a
            language, an NSFW mark.
    """

    min_side: int | None = None
    max_aspect_ratio: float | None = None
    caption_length: tuple[int, int] | None = None
    json: dict[str, JsonCondition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, condition in self.json.items():
            if condition.min is None and condition.max is None and condition.only is None:
                raise UserError(f"data.filter.json.{name}: give min, max or only.")
            if {bool, str} <= set(map(type, condition.only or ())):
                raise UserError(
                    f"data.filter.json.{name}.only: {condition.only} mixes texts and truth values; "
                    "YAML reads no, off, yes and on as truth values: put texts in quotes."
                )
        if self.max_aspect_ratio is not None and self.max_aspect_ratio < 1:
            raise UserError(f"data.filter.max_aspect_ratio: {self.max_aspect_ratio} is below 1.")

    @property
    def reads_size(self) -> bool:
        return self.min_side is not None or self.max_aspect_ratio is not None

    def check_size(self, width: int, height: int) -> None:
        """Raises Unwanted for an image of another size."""
        if self.min_side is not None and min(width, height) < self.min_side:
            raise Unwanted(f"side below {self.min_side} px")
        longest = (self.max_aspect_ratio or float("inf")) * min(width, height)
        if max(width, height) > longest:
            raise Unwanted(f"aspect ratio above {self.max_aspect_ratio:g}")

    def check_caption(self, caption: str) -> None:
        """Raises Unwanted for a caption of another length."""
        low, high = self.caption_length or (0, len(caption))
        if not low <= len(caption) <= high:
            raise Unwanted(f"caption not of {low} to {high} characters")

    def check_json(self, values: Mapping[str, Any]) -> None:
        """Raises Unwanted for a value that is missing or outside, BadSample for NaN and such."""
        for name, condition in self.json.items():
            if values.get(name) is None:
                raise Unwanted(f"no {name!r} in the JSON")
            check_finite(values[name])
            if not condition.holds(values[name]):
                raise Unwanted(f"{name!r} in the JSON is not wanted")
