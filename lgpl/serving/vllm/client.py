"""What is sent to the engine and comes back from it: prompts, sampling parameters, codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.checkpoints import read_checkpoint
from lgpl.data.decode import left_pad
from lgpl.errors import UserError
from lgpl.generator import Sampling, Transformer
from lgpl.generator.condition import ClassCondition, TextCondition
from lgpl.serving.vllm.config import transformer_arguments


class Client:
    """Speaks to an engine that has loaded an exported generator.

    Args:
        folder: the exported generator.
    """

    def __init__(self, folder: str | Path) -> None:
        checkpoint = read_checkpoint(folder, "generator")
        with torch.device("meta"):
            model = Transformer(**transformer_arguments(checkpoint.described()))
        self.codebook_size, self.grid = model.codebook_size, model.grid
        self.condition = model.condition.eval().requires_grad_(False)
        weights = {
            name.removeprefix("condition."): tensor
            for name, tensor in checkpoint.weights().items()
            if name.startswith("condition.")
        }
        self.condition.load_state_dict(weights, assign=True)

    def class_prompts(self, labels: Sequence[int]) -> list[dict[str, Any]]:
        """One prompt for each class label.

        Raises:
            UserError: the model is text-conditional, or a label is none of its classes.
        """
        if not isinstance(self.condition, ClassCondition):
            raise UserError("The generator is text-conditional: give it text, not classes.")
        classes = self.condition.num_classes
        for label in labels:
            if not 0 <= label < classes:
                raise UserError(f"{label} is no class; the model has 0 to {classes - 1}.")
        return [{"prompt_token_ids": [self.codebook_size + label]} for label in labels]

    @torch.no_grad()
    def text_prompts(self, features: Sequence[Tensor]) -> list[dict[str, Any]]:
        """One prompt for each caption.

        Args:
            features: of the text encoder, [L, F] each, L from 0 to the model's text length.

        Raises:
            UserError: the model is class-conditional, or a caption is too long.
        """
        if not isinstance(self.condition, TextCondition):
            raise UserError("The generator is class-conditional: give it classes, not text.")
        length = self.condition.length
        if (longest := max(map(len, features), default=0)) > length:
            raise UserError(f"A caption has {longest} positions; the limit is {length}.")
        if not features:
            return []
        padded, lengths = left_pad(features, length)
        null = self.condition(self.condition.null(padded))
        both = torch.cat((self.condition(padded), null), dim=-1)  # [B, length, 2 * dim]
        real = lengths.clamp(min=1).tolist()
        return [
            {"prompt_embeds": row[length - n :].contiguous()}
            for row, n in zip(both, real, strict=True)
        ]

    def params(self, sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
        """`vllm.SamplingParams` of one picture for each seed.

        The same seed gives the same picture again, but another one than lgpl's own sampler draws
        from it; only the most likely codes (temperature 0) are those of both.
        """
        from vllm import SamplingParams

        guidance = {n: v for n, v in vars(sampling).items() if n.startswith("guidance")}
        return [
            SamplingParams(
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                seed=seed,
                max_tokens=self.grid[0] * self.grid[1],
                ignore_eos=True,
                detokenize=False,
                extra_args=guidance,
            )
            for seed in seeds
        ]

    def codes(self, outputs: Sequence[Any]) -> Tensor:
        """Codes [B, rows, columns], int64, of finished requests."""
        return torch.tensor([out.outputs[0].token_ids for out in outputs]).view(-1, *self.grid)
