"""Classifier-free guidance where vLLM lets logits be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def requested(params: SamplingParams) -> tuple[float, int | None]:
    """Scale and number of guided codes of a request.

    Raises:
        ValueError: one of them is not what it should be.
    """
    extra = params.extra_args or {}
    scale, steps = extra.get("guidance", 1.0), extra.get("guidance_steps")
    if (
        isinstance(scale, bool)
        or not isinstance(scale, (int, float))
        or not 0 <= scale < float("inf")
    ):
        raise ValueError(f"guidance: {scale!r} is no number of at least 0.")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise ValueError(f"guidance_steps: {steps!r} is no whole number of at least 0.")
    return float(scale), steps


class Guidance(LogitsProcessor):
    """Mixes the logits of both branches, [conditional | null], by each request's own scale."""

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        requested(params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.codes = vllm_config.model_config.hf_config.transformer["codebook_size"]
        # row of the batch -> scale, guided codes, and the codes so far, which vLLM appends to
        self.rows: dict[int, tuple[float, int | None, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, codes in batch_update.added:
            self.rows[row] = (*requested(params), codes)
        for source, target, direction in batch_update.moved:
            moved, met = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if met is not None and direction == MoveDirectionality.SWAP:
                self.rows[source] = met

    def scale(self, row: int) -> float:
        scale, steps, codes = self.rows.get(row, (1.0, None, []))
        return scale if steps is None or len(codes) < steps else 1.0

    def apply(self, logits: Tensor) -> Tensor:
        scales = torch.tensor([self.scale(row) for row in range(len(logits))], dtype=logits.dtype)
        scales = scales.to(logits.device, non_blocking=True)[:, None]
        conditional, null = logits[:, : self.codes], logits[:, self.codes : 2 * self.codes]
        guided = null + scales * (conditional - null)
        logits[:, : self.codes] = torch.where(scales == 1.0, conditional, guided)
        logits[:, self.codes :] = float("-inf")
        return logits
