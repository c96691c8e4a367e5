"""Classifier-free guidance as a logits processor of vLLM's."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from lgpl.errors import UserError
from lgpl.generator import Sampling
from lgpl.generator.guidance import guide

LARGEST = 2**31  # keeps numbers representable in tensors
FIELDS = tuple(field.name for field in fields(Sampling) if field.name.startswith("guidance"))


def requested(params: SamplingParams) -> Sampling:
    """The guidance of a request; raises a UserError where a field is wrong."""
    given = {n: v for n, v in (params.extra_args or {}).items() if n in FIELDS and v is not None}
    for name, value in given.items():
        if name == "guidance_schedule":
            if not isinstance(value, str):
                raise UserError(f"{name} must be a string, got {value!r}")
        elif type(value) not in (int, float) or not -LARGEST < value < LARGEST:
            raise UserError(f"{name} must be a number below 2**31, got {value!r}")
    return Sampling(**given)


class Guidance(LogitsProcessor):
    """Mixes the logits of both branches, [conditional | null], by each request's own scale."""

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        try:
            requested(params)
        except UserError as error:
            raise ValueError(str(error)) from error  # vLLM's own server answers it with 400

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        config = vllm_config.model_config.hf_config
        self.codes, self.count = config.codes, config.code_count
        # row of a guided request -> its scale for each code, and its codes; vLLM appends to them
        self.rows: dict[int, tuple[list[float], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        def row(params: SamplingParams, _: Any, codes: list[int]) -> Any:
            sampling = requested(params)
            return None if sampling.guidance == 1.0 else (sampling.scales(self.count), codes)

        process_dict_updates(self.rows, batch_update, row)

    def apply(self, logits: Tensor) -> Tensor:
        conditional, null = logits[:, : self.codes], logits[:, self.codes : 2 * self.codes]
        if rows := [row for row in self.rows if row < len(logits)]:
            guided = [self.rows[row] for row in rows]
            scales = [scales[min(len(drawn), self.count - 1)] for scales, drawn in guided]
            scale = torch.tensor(scales, dtype=logits.dtype, device=logits.device)[:, None]
            conditional[rows] = guide(torch.cat((conditional[rows], null[rows])), scale)
        logits[:, self.codes :] = float("-inf")
        return logits
