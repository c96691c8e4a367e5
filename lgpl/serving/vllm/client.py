"""What is sent to the engine and comes back from it: prompts, sampling parameters, codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.checkpoints import read_checkpoint
from lgpl.errors import UserError
from lgpl.generator import Sampling
from lgpl.generator.conditions import Inputs
from lgpl.serving.vllm.config import outline


class Client:
    """Speaks to an engine that has loaded an exported generator.

    Args:
        folder: the exported generator.
        trust: packages whose classes its config may name beside lgpl's own.
    """

    def __init__(self, folder: str | Path, trust: Iterable[str] = ()) -> None:
        checkpoint = read_checkpoint(folder, "generator")
        model = outline(checkpoint.described(), trust)
        self.codebook_size, self.layout = model.codebook_size, model.layout
        self.condition = model.condition.eval().requires_grad_(False)
        weights = {
            name.removeprefix("condition."): tensor
            for name, tensor in checkpoint.weights().items()
            if name.startswith("condition.")
        }
        self.condition.load_state_dict(weights, assign=True)

    @torch.no_grad()
    def prompts(self, wanted: Sequence[Inputs]) -> list[dict[str, Any]]:
        """A prompt for each of the condition's inputs, of one sample each.

        Raises:
            UserError: they are of another condition, or not what it takes.
        """
        names = set(self.condition.zeros(1))
        for inputs in wanted:
            if set(inputs) != names:
                raise UserError(
                    f"The inputs have {', '.join(sorted(inputs))}, but the generator's condition "
                    f"takes {', '.join(sorted(names))}."
                )
        if self.condition.tokens:  # rows of a table, which stand behind the codes
            return [
                {"prompt_token_ids": [self.codebook_size + self.condition.token(inputs)]}
                for inputs in wanted
            ]
        return [{"prompt_embeds": self._embeddings(inputs)} for inputs in wanted]

    def _embeddings(self, inputs: Inputs) -> Tensor:
        """Both branches [L, 2 * dim] of the positions that are real."""
        x, lengths = self.condition(inputs)
        null = self.condition(self.condition.null(inputs)).embeddings
        length = x.shape[1] if lengths is None else max(1, int(lengths[0]))
        return torch.cat((x, null), dim=-1)[0, -length:].cpu().contiguous()

    def params(self, sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
        """`vllm.SamplingParams` of one picture for each seed.

        The same seed gives the same picture again, but another one than lgpl's own sampler draws
        from it; only the most likely codes (temperature 0) are those of both.
        """
        from vllm import SamplingParams

        chosen = asdict(sampling)
        guidance = {name: chosen.pop(name) for name in [*chosen] if name.startswith("guidance")}
        return [
            SamplingParams(
                **chosen,
                seed=seed,
                max_tokens=self.layout.codes,
                ignore_eos=True,
                detokenize=False,
                extra_args=guidance,
            )
            for seed in seeds
        ]

    def codes(self, outputs: Sequence[Any]) -> Tensor:
        """Codes [B, rows, columns], int64, of finished requests."""
        return self.layout.unflatten(torch.tensor([out.outputs[0].token_ids for out in outputs]))
