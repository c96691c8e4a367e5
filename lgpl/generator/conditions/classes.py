"""A class label as a condition."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lgpl.errors import UserError, as_user_error
from lgpl.generator.conditions.base import Condition, Inputs, Prefix, Question

DIGITS = 9  # of a class that is given by its number
IMAGENET = "imagenet"  # in place of a file: the names of its 1000 classes, which come with lgpl


def read_names(path: str) -> list[str]:
    """The lines of a file of names, or ImageNet's names; a UserError where a line is empty, or it
    cannot be read."""
    file = Path(__file__).with_name("imagenet.txt") if path == IMAGENET else Path(path)
    with as_user_error(f"condition.names: {path} cannot be read as text", OSError, ValueError):
        lines = file.read_text(encoding="utf-8").splitlines()
    if not lines or not all(line.strip() for line in lines):
        raise UserError(f"condition.names: {path} should hold a name on every line.")
    return [line.strip() for line in lines]


class ClassCondition(Condition):
    """One prefix position per class; the last row of the table is the null condition.

    A batch brings `class`. A prompt is a class, by its number or its name.

    Args:
        dim: width of the transformer.
        num_classes: number of classes without the null condition; the number of names by default.
        dropout: probability of the null condition in training.
        names: of the classes in their order, or a text file with one a line, such as the
            `classes.txt` of `lgpl data pack`; `imagenet` for ImageNet's 1000.
    """

    length = 1
    fields = ("class",)
    option = "label"
    files = {"names": read_names}

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        dropout: float = 0.1,
        # Of texts; jsonargparse takes the square of a typed list's length, 6 s for a thousand.
        names: str | list | None = None,  # type: ignore[type-arg]
    ) -> None:
        super().__init__(dropout)
        if isinstance(names, list) and not all(isinstance(name, str) for name in names):
            raise UserError("condition.names must be texts, one for each class; quote numbers.")
        self.names = read_names(names) if isinstance(names, str) else names
        count = num_classes if self.names is None else len(self.names)
        if count is None:
            given = "give it, names, or data with a classes.txt beside the shards or their index"
            raise UserError(f"condition.num_classes is not set; {given}.")
        if num_classes not in (None, count):
            raise UserError(
                f"condition.names: there are {count}, but num_classes is {num_classes}."
            )
        self.num_classes = self.tokens = count
        self._accepted = f"0 to {count - 1}{', or its name' if self.names else ''}"
        self.embedding = nn.Embedding(count + 1, dim)

    def inputs(self, batch: Mapping[str, Any]) -> Inputs:
        self.check_fields(batch)
        return {"class": batch["class"]}

    def null(self, inputs: Inputs) -> Inputs:
        return {"class": torch.full_like(inputs["class"], self.num_classes)}

    def prefix(self, inputs: Inputs) -> Prefix:
        return Prefix(self.embedding(inputs["class"]).unsqueeze(1))  # [B, 1, dim]

    def parse(self, prompt: str) -> Inputs:
        return {"class": torch.tensor([self.label(prompt)], device=self.embedding.weight.device)}

    def label(self, prompt: str) -> int:
        """The class that a prompt names; raises as `parse` does."""
        text = prompt.strip()
        if (
            text.isascii()
            and text.isdigit()
            and len(text) <= DIGITS
            and int(text) < self.num_classes
        ):
            return int(text)
        names = self.names or []
        known = {name.casefold(): i for i, name in reversed(list(enumerate(names)))}
        if text.casefold() in known:
            return known[text.casefold()]
        near = difflib.get_close_matches(text.casefold(), known, 3)
        meant = " or ".join(repr(names[known[name]]) for name in near)
        hint = f"; did you mean {meant}?" if meant else "."
        raise UserError(f"{text[:80]!r} is no class: give one from {self._accepted}{hint}")

    def zeros(self, batch_size: int) -> Inputs:
        return {"class": torch.zeros(batch_size, dtype=torch.int64)}

    def limits(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def prompts(self) -> list[str]:
        return [str(label) for label in range(self.num_classes)]

    def captions(self, batch: Mapping[str, Any]) -> list[str] | None:
        return [self.name(label) for label in batch["class"].tolist()]

    def name(self, label: int) -> str:
        """What people call a class."""
        return self.names[label] if self.names else f"class {label}"

    def asks(self) -> Question:
        names = self.names or []
        longest = max(map(len, [*names, "9" * DIGITS]))
        return Question(f"Class, {self._accepted}", names, not names, longest)

    def token(self, inputs: Inputs) -> int:
        return self.label(str(int(inputs["class"][0])))  # which refuses what is no class

    def of_tokens(self, tokens: Tensor) -> Inputs:
        return {"class": tokens}
