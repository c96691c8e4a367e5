"""Codes from logits: guidance, temperature, truncation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
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
        self._unguided = ~torch.tensor(is_guided, device=device)[:, None] if mixed else None
        scales = torch.tensor([one.scales(count, span) for one in task.sampling], device=device)
        self._scales = scales.T.unsqueeze(-1)  # [N, B, 1], float32
        # Images that `pick` treats alike, whatever their guidance.
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
        codes = self._drawn(logits, self._scales[index], self._uniform[:, index])
        if self._given is None:
            return codes
        given = self._given[:, index]
        return torch.where(given < 0, codes, given)

    def together(self, logits: Tensor, index: Tensor, turn: Tensor) -> Tensor:
        """Codes [B, n] of logits [B, n, K], or where guided [2B, n, K], for the codes at `index`
        [B, n] in the flat order; guidance is that of the code whose turn [B, n] it is."""
        image = torch.arange(len(turn), device=turn.device)[:, None]
        return self._drawn(logits, self._scales[turn, image], self._uniform.gather(1, index))

    def _drawn(self, logits: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
        if self.guided:
            logits = logits.float()
            conditional, logits = logits[: len(logits) // 2], guide(logits, scale)
            if self._unguided is not None:
                unguided = self._unguided.view(-1, *[1] * (logits.dim() - 1))
                logits = torch.where(unguided, conditional, logits)
        if len(self._groups) == 1:
            return pick(logits, self._groups[0][0], uniform)
        codes = torch.empty(uniform.shape, dtype=torch.int64, device=logits.device)
        for one, images in self._groups:
            codes[images] = pick(logits[images], one, uniform[images])
        return codes


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """A code for each row of logits [..., K], by inverting its distribution at `uniform` [...]."""
    if sampling.temperature < GREEDY:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    k = sampling.top_k if 0 < sampling.top_k < logits.shape[-1] else logits.shape[-1]
    if k == logits.shape[-1] and sampling.top_p == 1:  # nothing is left out, nothing to sort
        return _invert(logits.softmax(-1), uniform)
    kept, codes = logits.topk(k, dim=-1)  # descending
    p = kept.softmax(-1)
    if sampling.top_p < 1:
        before = p.cumsum(-1) - p
        p = p.masked_fill(before >= sampling.top_p, 0.0)
    return codes.gather(-1, _invert(p, uniform)[..., None]).squeeze(-1)


def _invert(p: Tensor, uniform: Tensor) -> Tensor:
    """Index in each row of p [..., k] where the cumulative sum passes that share of the whole."""
    cumulative = p.cumsum(-1)
    place = (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1)
    return place.clamp(max=p.shape[-1] - 1)
