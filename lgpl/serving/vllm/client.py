"""Prompts for an engine, and the codes it returns; only `Client.params` needs vLLM."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgpl.checkpoints import Checkpoint, read_checkpoint
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling, Transformer
from lgpl.generator.conditions import Inputs
from lgpl.training import build_described


def outline(config: dict[str, Any], trust: Iterable[str] = ()) -> Transformer:
    """A config's `Transformer` on the meta device; a UserError where vLLM could not run it."""
    checkpoint = Checkpoint(Path("config.json"), "generator", config, dict)
    with torch.device("meta"):
        module = build_described(checkpoint, trust=trust)
        module.configure_model()
    assert isinstance(module, GeneratorModule)
    model = module.model
    if not isinstance(model, Transformer) or model.layout.depth > 1:
        raise UserError(
            "vLLM: the model must be lgpl.generator.Transformer with one code per place, got "
            f"{type(model).__name__} with {model.layout.depth}; `lgpl serve` without --engine vllm "
            "serves others"
        )
    return model


class Client:
    """Converts prompts, sampling and codes for an engine that has loaded an exported generator,
    whose config may name classes of the packages in `trust` beside lgpl's own."""

    def __init__(self, folder: str | Path, trust: Iterable[str] = ()) -> None:
        checkpoint = read_checkpoint(folder, "generator")
        model = outline(checkpoint.described(), trust)
        self.codebook_size, self.layout = model.codebook_size, model.layout
        model.load_state_dict(checkpoint.weights(), assign=True)
        self.condition = model.condition.eval().requires_grad_(False)

    @torch.no_grad()
    def prompts(self, samples: Sequence[Inputs]) -> list[dict[str, Any]]:
        """Prompts of vLLM's from the condition's inputs, each of one sample; a UserError where
        they belong to another condition, or the condition refuses them."""
        return [self._prompt(inputs) for inputs in samples]

    def _prompt(self, inputs: Inputs) -> dict[str, Any]:
        names = self.condition.zeros(1)
        if set(inputs) != set(names):
            raise UserError(
                f"the inputs must be {', '.join(sorted(names))}, which the generator's "
                f"condition takes, got {', '.join(sorted(inputs))}"
            )
        if self.condition.tokens:  # a row of a table, whose token ids follow those of the codes
            return {"prompt_token_ids": [self.codebook_size + self.condition.token(inputs)]}
        x, lengths = self.condition(inputs)
        null = self.condition(self.condition.null(inputs)).embeddings
        length = x.shape[1] if lengths is None else max(1, int(lengths[0]))  # without padding
        both = torch.cat((x, null), dim=-1)[0, -length:]  # branches [L, 2 * dim]
        return {"prompt_embeds": both.cpu().contiguous()}

    def params(self, sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
        """`vllm.SamplingParams` of one image for each seed, which repeats it; lgpl's own sampler
        draws the same codes only at temperature 0."""
        from vllm import SamplingParams

        chosen = asdict(sampling)
        guidance = {name: chosen.pop(name) for name in [*chosen] if name.startswith("guidance")}
        if (steps := chosen.pop("steps")) is not None:
            raise UserError(f"steps must be left out, got {steps}: vLLM draws code after code.")
        chosen |= {"max_tokens": self.layout.codes, "ignore_eos": True, "detokenize": False}
        return [SamplingParams(**chosen, seed=seed, extra_args=guidance) for seed in seeds]

    def codes(self, outputs: Sequence[Any]) -> Tensor:
        """Codes [B, rows, columns], int64, of finished requests."""
        return self.layout.unflatten(torch.tensor([out.outputs[0].token_ids for out in outputs]))
