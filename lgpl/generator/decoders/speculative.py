"""Speculative Jacobi decoding (arXiv 2410.01699): several codes a pass, without training.

A pass checks a window of guesses at once. Each guess was drawn from a distribution q; behind the
guesses before it the model now gives p. It is kept with probability min(1, p / q), and otherwise
drawn anew from max(0, p - q), normalised, after which it is distributed as p (arXiv 2211.17192,
theorem 1). All guesses before the first that changed were true codes, so they and it are final, and
have the distribution of `Raster`. The others are the next pass's guesses, and their p its q. The
paper draws those from p anew; to keep what can be kept changes less of what the next ones stand
behind, and leaves p nearer to q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from lgpl.errors import UserError
from lgpl.generator.blocks import Cache
from lgpl.generator.decoders.base import Decoder, Step, Task
from lgpl.generator.decoders.raster import CachedModel, Drawing, Raster
from lgpl.generator.guidance import invert


@runtime_checkable
class VerifyingModel(CachedModel, Protocol):
    """One for `Raster` that also predicts behind each of several new codes; see `Transformer`."""

    def verify(self, x: Tensor, position: Tensor, mask: Tensor, cache: Cache) -> Tensor: ...


class SpeculativeJacobi(Decoder):
    """Draws in raster order from the distribution of `Raster`, several codes a pass; at temperature
    0 its codes are those of `Raster`.

    Args:
        window: codes that are checked in one pass.
    """

    needs = VerifyingModel
    in_order = True

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise UserError(f"decoder.window must be >= 1, got {window}.")
        self.window = window
        self._drawn = self._passes = 0  # of all images so far

    def memory(self, model: Any, images: int, dtype: torch.dtype) -> int:
        distributions = 2 * images * self.window * model.codebook_size * 4  # p and q, float32
        return Raster().memory(model, images, dtype) + distributions

    def summary(self) -> str:
        return f"{self._drawn / self._passes:.2f} codes a pass" if self._passes else ""

    def steps(self, model: Any, task: Task) -> Iterator[Step]:
        drawing = Drawing(model, task)
        if drawing.known is not None:
            yield drawing.known
        yield drawing.pick()
        guesses = Guesses(model, task, drawing, self.window)
        passes = len(task.sampling)
        while unfinished := guesses.unfinished:
            yield guesses.check()
            passes += unfinished
        self._passes += passes
        self._drawn += int((~guesses.given).sum())


class Guesses:
    """Codes of images, each image's first ones final and some behind them guessed."""

    def __init__(self, model: Any, task: Task, drawing: Drawing, window: int) -> None:
        self._model, self._streams, self._drawing = model, task.streams, drawing
        batch, self._count = task.uniform.shape
        device, self._window = task.uniform.device, window
        given = torch.full((batch, self._count), -1) if task.given is None else task.given
        self.given = (given >= 0).to(device)  # [B, N]
        self._codes = given.clamp(min=0).to(device)
        self._codes[:, drawing.index - 1] = drawing.codes
        self._hole = self.given.int().cumprod(1).sum(1, keepdim=True)  # the first of each [B, 1]
        self._finals = [drawing.index] * batch  # how many codes of each image are final
        self._final = torch.tensor(self._finals, device=device)[:, None]
        self._size = min(window, self._count - drawing.index)
        self._start = self._end = self._final  # of each image's guesses: the first, behind the last
        self._q = torch.zeros(batch, self._size, model.codebook_size, device=device)

    @property
    def unfinished(self) -> int:
        """How many images are not whole."""
        return sum(final < self._count for final in self._finals)

    @property
    def _waits(self) -> Tensor:
        """Which images have given codes left before their first hole [B, 1]. They go on to it, and
        draw it, before anything is guessed, so that they depend on no others of the batch."""
        return self._final <= self._hole

    def check(self) -> Step:
        """One pass: at least one code more of each image that is not whole."""
        ahead = torch.arange(self._size, device=self._codes.device)
        # The last windows of an image begin with codes that are final.
        start = self._final.clamp(max=self._count - self._size)  # [B, 1]
        index = start + ahead  # [B, W] in the flat order of codes
        is_new = index >= self._end
        guess, waits = self._guess(index, is_new), self._waits
        logits = self._predict(index)
        p = self._drawing.picker.distribution(logits, index)
        kept, codes = self._keep(index, is_new, guess, p, waits)
        if bool(waits.any()):
            at_hole = waits & (index == self._hole)
            drawn = self._drawing.picker.together(logits, index, index)
            kept, codes = kept & ~at_hole, torch.where(at_hole, drawn, codes)
        self._codes.scatter_(1, index, codes)
        end = torch.where(waits, self._hole + 1, self._count)
        self._start, self._end, self._q = start, (start + self._size).minimum(end), p
        first_changed = kept.int().cumprod(1).sum(1, keepdim=True)
        final = (start + (first_changed + 1).clamp(max=self._size)).minimum(end)
        before, self._finals = self._finals, final.flatten().tolist()
        most = max(now - then for now, then in zip(self._finals, before, strict=True))
        # An image with fewer new codes has its last one again.
        places = (self._final + ahead[:most]).minimum(final - 1)
        self._final = final
        return Step(places, self._codes.gather(1, places))

    def _guess(self, index: Tensor, is_new: Tensor) -> Tensor:
        """Guesses [B, W]; one that is new is the code of the same depth at the place before."""
        back = self._model.layout.depth
        before = index - back * ((index - self._end) // back + 1)  # the nearest that is not new
        near = self._codes.gather(1, before.clamp(0, self._count - 1))
        guess = self._codes.gather(1, index)
        guess = torch.where(is_new & ~self.given.gather(1, index), near, guess)
        self._codes.scatter_(1, index, guess)
        return guess

    def _predict(self, index: Tensor) -> Tensor:
        """Logits of the codes at an index [B, W], each behind those before it, [B, W, K] or where
        guided [2B, W, K]."""
        model, drawing = self._model, self._drawing
        before = drawing.picker.doubled(index - 1)  # of the code behind which each is predicted
        x = model.embed(drawing.picker.doubled(self._codes.gather(1, index - 1)), before)
        position = model.prefix_length + before
        seen = model.prefix_length + min(max(self._finals) + self._size, self._count) - 1
        row = torch.arange(len(drawing.mask), device=index.device)[:, None]
        mask = drawing.mask[row, 0, position, :seen].unsqueeze(1)  # [B, 1, W, seen]
        return model.verify(x, position, mask, drawing.cache)

    def _keep(
        self, index: Tensor, is_new: Tensor, guess: Tensor, p: Tensor, waits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which guesses are kept [B, W], and the codes [B, W] that are distributed as p."""
        random = torch.zeros(len(p), 2, self._window)  # from the first code that is not final on
        for own, later, stream in zip(random, waits.flatten().tolist(), self._streams, strict=True):
            if not later:
                own.uniform_(generator=stream)
        ahead = (index - self._final).clamp(min=0)
        accept, replace = (own.gather(1, ahead) for own in random.to(p.device).unbind(1))  # [B, W]
        slot = (index - self._start).clamp(max=self._size - 1)  # in q
        image = torch.arange(len(p), device=p.device)[:, None]
        likely = self._q[image, slot, guess].masked_fill(is_new, 1.0)  # a new guess is no draw
        kept = accept * likely < p.gather(2, guess[..., None]).squeeze(2)
        kept |= self.given.gather(1, index) | (index < self._final)
        codes, (row, at) = guess.clone(), (~kept).nonzero(as_tuple=True)
        if len(row):
            x = guess[row, at]
            drawn_from = torch.where(
                is_new[row, at, None], F.one_hot(x, p.shape[2]), self._q[row, slot[row, at]]
            )
            rest = (p[row, at] - drawn_from).clamp(min=0)
            new = invert(rest, replace[row, at])
            # Where p and q differ by rounding alone, nothing may be left.
            codes[row, at] = torch.where(rest.sum(-1) > 0, new, x)
        return kept, codes
