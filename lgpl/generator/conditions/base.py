"""The contract between a generator and what it is conditioned on.

Classifier-free guidance (arXiv 2207.12598): in training a condition is replaced by the null
condition with probability `dropout`; in sampling both are evaluated.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lgpl.described import Described
from lgpl.errors import UserError

# What a condition reads of a batch or a prompt: tensors by name, the batch first.
Inputs = dict[str, Tensor]


class Prefix(NamedTuple):
    """What the sequence of each sample begins with."""

    embeddings: Tensor  # [B, L, dim]
    lengths: Tensor | None = None  # real positions [B], which stand at the end; None where all are


class Question(NamedTuple):
    """What a page asks people for."""

    label: str  # of the field
    examples: list[str] = []  # answers to choose from, where there are some
    is_number: bool = False  # whether every answer is one
    longest: int | None = None  # characters of an answer, where that is known


class Condition(Described, nn.Module, ABC):
    """Batches and prompts -> prefixes. `Transformer` builds it with its own width, `dim`.

    Args:
        dropout: probability of the null condition in training.
    """

    length: int  # positions of the prefix, L; a Transformer needs one at least
    fields: tuple[str, ...] = ()  # of a batch that it reads, any one of which is enough
    option = "prompt"  # of the commands that takes its prompts; or `label`
    # How many prefixes there are, where each is a single row of a table, which an LLM engine can
    # take for a token; 0 where they are computed.
    tokens = 0

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout

    @abstractmethod
    def inputs(self, batch: Mapping[str, Any]) -> Inputs:
        """What it reads of a batch, at least one tensor; a UserError names a field of data.fields
        that it lacks."""

    @abstractmethod
    def null(self, inputs: Inputs) -> Inputs:
        """The null condition in the shape of `inputs`."""

    @abstractmethod
    def prefix(self, inputs: Inputs) -> Prefix:
        """The prefixes of inputs; nothing is dropped here."""

    @abstractmethod
    def parse(self, prompt: str) -> Inputs:
        """The inputs, of one sample, of a prompt; a UserError where that cannot be drawn."""

    @abstractmethod
    def zeros(self, batch_size: int) -> Inputs:
        """Inputs of zeros in the largest shape, to plan with."""

    def forward(self, inputs: Inputs) -> Prefix:
        """The prefixes of inputs, in training with some of them dropped; floating-point inputs are
        cast to the dtype of the condition's parameters."""
        batch, parameter = rows(inputs), next(self.parameters(), None)
        if parameter is not None:
            floats = {name: x for name, x in inputs.items() if x.is_floating_point()}
            inputs = inputs | {name: x.to(parameter.dtype) for name, x in floats.items()}
        if self.training and self.dropout:
            device = next(iter(inputs.values())).device
            dropped = torch.rand(batch, device=device) < self.dropout
            null = self.null(inputs)
            inputs = {
                name: torch.where(dropped.view(-1, *[1] * (x.dim() - 1)), null[name], x)
                for name, x in inputs.items()
            }
        return self.prefix(inputs)

    def check_fields(self, available: Collection[str]) -> None:
        """Raise a UserError where the data have none of `fields`."""
        if self.fields and not set(self.fields) & set(available):
            lacks = f"{' or '.join(self.fields)}, which {type(self).__name__} reads"
            raise UserError(f"data.fields lacks {lacks}, got {', '.join(available)}.")

    def limits(self) -> dict[str, Any]:
        """What samples have to keep to: arguments of `ShardDataModule.expect`."""
        return {}

    def parse_cut(self, prompt: str) -> Inputs:
        """`parse` of what a data set holds: what is too long is cut, as it is in training."""
        return self.parse(prompt)

    @torch.no_grad()
    def parse_each(self, prompts: Sequence[str], cut: bool = False) -> list[Inputs]:
        """The inputs of each prompt, parsed alone, so that no neighbour changes a rounding."""
        parse = self.parse_cut if cut else self.parse
        parsed = {prompt: parse(prompt) for prompt in dict.fromkeys(prompts)}
        return [parsed[prompt] for prompt in prompts]

    def check(self, prompt: str) -> None:
        """Raise what `parse` would, at less cost where that can be."""
        self.parse(prompt)

    def prompts(self) -> list[str] | None:
        """All prompts there are, such as classes; None where they cannot be counted."""
        return None

    def captions(self, batch: Mapping[str, Any]) -> list[str] | None:
        """What to write under the images of a batch."""
        return batch.get("caption")

    def positions(self, inputs: Inputs) -> int:
        """Positions that the prompt of one sample takes."""
        return self.length

    def token(self, inputs: Inputs) -> int:
        """The row of the table, below `tokens`, that is the prefix of one sample."""
        raise NotImplementedError(f"{type(self).__name__} has no table of prefixes.")

    def of_tokens(self, tokens: Tensor) -> Inputs:
        """The inputs of rows of the table [B]."""
        raise NotImplementedError(f"{type(self).__name__} has no table of prefixes.")

    def load(self) -> None:
        """Fetch what prompts need, such as a text encoder, before the first one."""

    def asks(self) -> Question:
        """What a page asks people for."""
        return Question("What to show")


def join(parts: Sequence[Inputs]) -> Inputs:
    """Inputs of several samples as one batch."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def rows(inputs: Inputs) -> int:
    """Samples of a batch of inputs; a UserError where there are no inputs."""
    if not inputs:
        raise UserError("condition: inputs and parse give at least one tensor, the batch first.")
    return len(next(iter(inputs.values())))
