"""The contract between a decoder and what draws with it.

Every image draws from its own stream of random numbers, so it does not depend on its neighbours.
Kernels round differently with other numbers of rows: in float32 the codes were equal in batches of
1 to 16, greedy and drawn; two codes closer than rounding can still change places, which in bf16 is
to be expected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lgpl.codes import CodeLayout
from lgpl.described import Described
from lgpl.errors import UserError
from lgpl.generator.conditions import Inputs, rows
from lgpl.generator.sampling import Sampling

if TYPE_CHECKING:
    from lgpl.generator.model import Model

# After every step: all codes [B, N] and, on the CPU, which of them are drawn [B, N]. Both go on
# changing. What it raises ends the drawing.
Progress = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Task:
    """Images that are drawn together."""

    inputs: Inputs  # of the condition, of B samples
    sampling: Sequence[Sampling]  # of each image
    uniform: Tensor  # numbers in [0, 1) for each image's codes [B, N], on the model's device
    given: Tensor | None  # codes that are known [B, N], on the CPU, and -1 at all others
    same: Sequence[int]  # for each image the first one with the same condition and given codes
    streams: Sequence[torch.Generator]  # of each image, on the CPU, for what takes more numbers


class Step(NamedTuple):
    """Codes that a decoder has drawn, or was given."""

    places: slice | Tensor  # in the flat order of codes; a slice or [n] for all images, or [B, n]
    codes: Tensor  # [B, n]


class Decoder(Described, ABC):
    """Draws the codes of images in steps; holds nothing of an image between two tasks."""

    needs: type = torch.nn.Module  # class or runtime-checkable Protocol of the models it draws with
    # Whether what it draws sees only what stands before it, so that given codes count up to the
    # first one that is drawn, and no further.
    in_order = False
    is_compiled = False  # whether it runs compiled code, which takes no inference tensors

    @abstractmethod
    def steps(self, model: Model, task: Task) -> Iterator[Step]:
        """Steps that together draw every code of every image once, given ones as they are; without
        gradients, with the model in evaluation mode."""

    def check_given(self, layout: CodeLayout, given: Tensor) -> None:
        """Raise a UserError where what is drawn could not see all given codes [B, N], -1 at others:
        whatever `in_order` stands behind the first hole."""
        known = given >= 0
        if not self.in_order or bool((known == known.cumprod(1).bool()).all()):
            return
        first = int(known.cumprod(1).sum(1).min()) // layout.depth
        row, column = first // layout.columns + 1, first % layout.columns + 1
        raise UserError(
            f"{type(self).__name__} draws in raster order, where no code sees what follows, so a "
            f"mask must cover all that follows its first code (row {row}, column {column} of "
            f"{layout}) down to the last; a parallel model takes any mask."
        )

    def compiled(self, **options: Any) -> Decoder:
        """One like it for many batches of one size, by torch.compile where it can be."""
        return self

    def memory(self, model: Model, images: int, dtype: torch.dtype) -> int:
        """Bytes beside the weights for so many guided images, for `lgpl plan`; a cache in dtype."""
        return 0

    def summary(self) -> str:
        """What it has to say of all that it has drawn, for `lgpl sample`."""
        return ""

    def most_steps(self, model: Model) -> int | None:
        """The largest `Sampling.steps` of an image; None where it takes no number of steps."""
        return None


def make_task(
    model: Model,
    inputs: Inputs,
    sampling: Sampling | Sequence[Sampling],
    seeds: Sequence[int] | None = None,
    given: Tensor | None = None,
    same: Sequence[int] | None = None,
) -> Task:
    """The task of new images; see `generate` for the arguments."""
    batch = rows(inputs)
    # One stream for each image, on the CPU: equal on every device.
    seeds = range(batch) if seeds is None else seeds
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniform = torch.stack([torch.rand(model.layout.codes, generator=s) for s in streams])
    each = [sampling] * batch if isinstance(sampling, Sampling) else sampling
    same = range(batch) if same is None else same
    return Task(inputs, each, uniform.to(model.device), given, same, streams)


def generate(
    model: Model,
    inputs: Inputs,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    seeds: Sequence[int] | None = None,
    given: Tensor | None = None,
    progress: Progress | None = None,
    decoder: Decoder | None = None,
    same: Sequence[int] | None = None,
) -> Tensor:
    """Codes of new images, [B, *layout.shape], int64; raises as both checks below do.

    Args:
        inputs: of the condition, of B samples.
        sampling: of all images or of each.
        seeds: one for each image; 0, 1, 2, ... by default.
        given, same: see `Task`; by default nothing is known.
        progress: see `Progress`.
        decoder: the model's own by default.
    """
    batch, count = rows(inputs), model.layout.codes
    decoder = decoder or model.decoder()
    check_decoder(model, decoder)
    task = make_task(model, inputs, sampling, seeds, given, same)
    left = [count] * batch if given is None else (given < 0).sum(1).tolist()
    for one, number in {*zip(task.sampling, left, strict=True)}:
        check_sampling(model, decoder, one, number)
    codes = torch.zeros(batch, count, dtype=torch.int64, device=model.device)
    drawn = torch.zeros(batch, count, dtype=torch.bool)
    was_training = model.training
    model.eval()
    try:
        # Inference mode is worth a tenth of the time on a CPU.
        with torch.no_grad() if decoder.is_compiled else torch.inference_mode():
            for places, new in decoder.steps(model, task):
                if isinstance(places, Tensor) and places.dim() == 2:
                    codes.scatter_(1, places.to(codes.device), new)
                    drawn.scatter_(1, places.cpu(), True)
                else:
                    codes[:, places] = new
                    drawn[:, places] = True
                if progress is not None:
                    progress(codes, drawn)
    finally:
        model.train(was_training)
    if not drawn.all():
        raise UserError(f"decoder: {type(decoder).__name__} has left codes undrawn.")
    return model.layout.unflatten(codes.clone())  # a tensor for any use again


def check_decoder(model: Model, decoder: Decoder) -> None:
    """Raise a UserError where the model cannot serve the decoder."""
    if not isinstance(model, decoder.needs):
        raise UserError(
            f"model.decoder: {type(model).__name__} cannot serve {type(decoder).__name__}, which "
            f"needs a {decoder.needs.__name__}; set it to null for the model's own."
        )


def check_sampling(
    model: Model, decoder: Decoder, sampling: Sampling, left: int | None = None
) -> None:
    """Raise a UserError where the decoder cannot draw so; `left` of an image's codes are not given,
    by default all."""
    most = decoder.most_steps(model)
    if sampling.steps is None:
        return
    if most is None:
        said = f"{type(decoder).__name__} takes no number of steps"
        raise UserError(f"steps must be left out, got {sampling.steps}: {said}.")
    most = most if left is None else max(1, left)
    if sampling.steps > most:
        said = f"steps must be from 1 to {most}, the codes to draw"
        raise UserError(f"{said}, got {sampling.steps}")
