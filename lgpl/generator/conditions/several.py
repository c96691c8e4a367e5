"""Several conditions at once."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lgpl.errors import UserError
from lgpl.generator.conditions.base import Condition, Inputs, Prefix, Question

BETWEEN = "|"  # the parts of a prompt


class Conditions(Condition):
    """Prefixes behind each other, each with its own dropout.

    A prompt has the parts' prompts with | between them; an empty one is the null condition.

    Args:
        dim: width of the transformer.
        parts: the conditions, each built with `dim`.
    """

    def __init__(self, dim: int, parts: list[Callable[[int], Condition]]) -> None:
        super().__init__(dropout=0.0)
        if not parts:
            raise UserError("condition.parts: give at least one condition.")
        modules = nn.ModuleList(part(dim) for part in parts)
        self.parts: Sequence[Condition] = modules  # type: ignore[assignment]
        self.length = sum(part.length for part in self.parts)

    def inputs(self, batch: Mapping[str, Any]) -> Inputs:
        return self._merged([part.inputs(batch) for part in self.parts])

    def null(self, inputs: Inputs) -> Inputs:
        return self._merged([part.null(own) for part, own in self._split(inputs)])

    def prefix(self, inputs: Inputs) -> Prefix:
        prefixes = [part(own) for part, own in self._split(inputs)]
        x = torch.cat([prefix.embeddings for prefix in prefixes], dim=1)
        if all(prefix.lengths is None for prefix in prefixes):
            return Prefix(x)
        real = torch.cat([_real(prefix) for prefix in prefixes], dim=1)  # [B, L]
        # What is padding goes to the front, where padding stands; the rest keeps its order.
        place = real.int().argsort(dim=1, stable=True)
        return Prefix(x.gather(1, place[..., None].expand_as(x)), real.sum(1))

    def parse(self, prompt: str) -> Inputs:
        return self._merged([p.parse(t) if t else _nothing(p) for p, t in self._texts(prompt)])

    def parse_cut(self, prompt: str) -> Inputs:
        return self._merged([p.parse_cut(t) if t else _nothing(p) for p, t in self._texts(prompt)])

    def check(self, prompt: str) -> None:
        for part, text in self._texts(prompt):
            if text:
                part.check(text)

    def check_fields(self, available: Collection[str]) -> None:
        for part in self.parts:
            part.check_fields(available)

    def load(self) -> None:
        for part in self.parts:
            part.load()

    def asks(self) -> Question:
        return Question(f" {BETWEEN} ".join(part.asks().label for part in self.parts))

    def zeros(self, batch_size: int) -> Inputs:
        return self._merged([part.zeros(batch_size) for part in self.parts])

    def limits(self) -> dict[str, Any]:
        return {name: value for part in self.parts for name, value in part.limits().items()}

    def captions(self, batch: Mapping[str, Any]) -> list[str] | None:
        found = [texts for part in self.parts if (texts := part.captions(batch)) is not None]
        return [f" {BETWEEN} ".join(texts) for texts in zip(*found, strict=True)] or None

    def positions(self, inputs: Inputs) -> int:
        return sum(part.positions(own) for part, own in self._split(inputs))

    def _texts(self, prompt: str) -> list[tuple[Condition, str]]:
        """Each part with its part of a prompt."""
        texts = [text.strip() for text in prompt.split(BETWEEN)]
        if len(texts) != len(self.parts):
            wanted = f"The condition has {len(self.parts)} parts, with {BETWEEN} between them"
            raise UserError(f"{wanted}; the prompt {prompt[:80]!r} has {len(texts)}.")
        return list(zip(self.parts, texts, strict=True))

    @staticmethod
    def _merged(own: list[Inputs]) -> Inputs:
        return {f"{i}.{name}": v for i, inputs in enumerate(own) for name, v in inputs.items()}

    def _split(self, inputs: Inputs) -> Iterator[tuple[Condition, Inputs]]:
        """Each part with its own of what is merged."""
        for i, part in enumerate(self.parts):
            start = f"{i}."
            own = {n.removeprefix(start): v for n, v in inputs.items() if n.startswith(start)}
            yield part, own


def _nothing(part: Condition) -> Inputs:
    """The null condition for one sample."""
    device = next((p.device for p in part.parameters()), torch.device("cpu"))
    return part.null({name: value.to(device) for name, value in part.zeros(1).items()})


def _real(prefix: Prefix) -> torch.Tensor:
    """[B, L], true where a position is no padding."""
    x, lengths = prefix
    if lengths is None:
        return x.new_ones(x.shape[:2], dtype=torch.bool)
    return torch.arange(x.shape[1], device=x.device) >= x.shape[1] - lengths[:, None]
