"""Codes from logits: guidance, temperature, truncation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lgpl.generator.sampling import Sampling

if TYPE_CHECKING:
    from lgpl.generator.decoders.base import Task

GREEDY = 1e-5  # a temperature below is taken for 0, as by vLLM: logits over it may be infinite


def guide(logits: Tensor, scale: float | Tensor) -> Tensor:
    """Guided logits [B, K] of [2B, K], conditional rows first."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


class Picker:
    """Draws codes from logits as each image's sampling says; given ones are kept.

    Args:
        span: see `Sampling.scales`.
    """

    def __init__(self, task: Task, span: int | None = None) -> None:
        device, count = task.uniform.device, task.uniform.shape[1]
        is_guided = [one.guidance != 1.0 for one in task.sampling]
        # Whether any image is guided: then logits of null rows stand behind the others.
        self.guided = any(is_guided)
        # Of an image without guidance the logits are the conditional ones to the bit.
        mixed = self.guided and not all(is_guided)
        self._unguided = ~torch.tensor(is_guided, device=device) if mixed else None
        scales = {one: one.scales(count, span) for one in dict.fromkeys(task.sampling)}
        # [B, N], float32
        self._scales = torch.tensor([scales[one] for one in task.sampling], device=device)
        # Images that are treated alike, whatever their guidance.
        groups: dict[tuple[float, int, float], list[int]] = {}
        for i, one in enumerate(task.sampling):
            groups.setdefault((one.temperature, one.top_k, one.top_p), []).append(i)
        self._groups = [(task.sampling[images[0]], images) for images in groups.values()]
        self._uniform = task.uniform
        self._given = None if task.given is None else task.given.to(device)

    def doubled(self, x: Tensor) -> Tensor:
        """Where guided twice, for one forward pass of conditional rows and null rows behind."""
        return torch.cat((x, x)) if self.guided else x

    def __call__(self, logits: Tensor, index: int) -> Tensor:
        """Codes [B] of logits [B, K], or where guided [2B, K], for the code at `index`."""
        codes = self._drawn(logits, self._scales[:, index, None], self._uniform[:, index])
        if self._given is None:
            return codes
        given = self._given[:, index]
        return torch.where(given < 0, codes, given)

    def together(self, logits: Tensor, index: Tensor, turn: Tensor) -> Tensor:
        """Codes [B, n] of logits [B, n, K], or where guided [2B, n, K], for the codes at `index`
        [B, n] in the flat order; guidance is that of the code whose turn [B, n] it is."""
        scale = self._scales.gather(1, turn).unsqueeze(-1)
        return self._drawn(logits, scale, self._uniform.gather(1, index))

    def distribution(self, logits: Tensor, index: Tensor) -> Tensor:
        """Probabilities [B, T, K], float32, from which codes are drawn, of logits [B, T, K], or
        where guided [2B, T, K], for the codes at an index [B, T]; given codes do not count."""
        logits = self._guide(logits, self._scales.gather(1, index).unsqueeze(-1))
        if len(self._groups) == 1:
            return distribution(logits, self._groups[0][0])
        p = torch.empty_like(logits, dtype=torch.float32)
        for one, images in self._groups:
            p[images] = distribution(logits[images], one)
        return p

    def _drawn(self, logits: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
        logits = self._guide(logits, scale)
        if len(self._groups) == 1:
            return pick(logits, self._groups[0][0], uniform)
        codes = torch.empty(uniform.shape, dtype=torch.int64, device=logits.device)
        for one, images in self._groups:
            codes[images] = pick(logits[images], one, uniform[images])
        return codes

    def _guide(self, logits: Tensor, scale: Tensor) -> Tensor:
        """Logits [B, ...] of each image, where guided of [2B, ...] by a scale [B, ...]."""
        if not self.guided:
            return logits
        logits = logits.float()
        guided = guide(logits, scale)
        if self._unguided is None:
            return guided
        unguided = self._unguided.view(-1, *(1,) * (logits.dim() - 1))
        return torch.where(unguided, logits[: len(guided)], guided)


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """A code for each row of logits [..., K], by inverting its distribution at `uniform` [...]."""
    if sampling.temperature < GREEDY:
        return logits.argmax(-1)
    p, codes = _truncate(logits, sampling)
    place = invert(p, uniform)
    return place if codes is None else codes.gather(-1, place[..., None]).squeeze(-1)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [..., K], float32, by which `pick` draws of logits [..., K]."""
    if sampling.temperature < GREEDY:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    p, codes = _truncate(logits, sampling)
    if codes is None:
        return p
    everywhere = torch.zeros_like(logits, dtype=torch.float32)
    return everywhere.scatter_(-1, codes, p / p.sum(-1, keepdim=True))


def _truncate(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Shares [..., k] of the codes that are kept, and which they are, None where all are."""
    logits = logits.float() / sampling.temperature
    k = sampling.top_k if 0 < sampling.top_k < logits.shape[-1] else logits.shape[-1]
    if k == logits.shape[-1] and sampling.top_p == 1:  # nothing is left out, nothing to sort
        return logits.softmax(-1), None
    kept, codes = logits.topk(k, dim=-1)  # descending
    p = kept.softmax(-1)
    if sampling.top_p < 1:
        before = p.cumsum(-1) - p
        p = p.masked_fill(before >= sampling.top_p, 0.0)
    return p, codes


def invert(p: Tensor, uniform: Tensor) -> Tensor:
    """Index in each row of p [..., k] where the cumulative sum passes that share of the whole."""
    cumulative = p.cumsum(-1)
    place = (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1)
    return place.clamp(max=p.shape[-1] - 1)
