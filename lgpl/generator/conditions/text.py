"""Features of a text encoder as a condition."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lgpl.errors import UserError
from lgpl.generator.conditions.base import Condition, Inputs, Prefix, Question
from lgpl.text import TextEncoder
from lgpl.text.encoder import left_pad


class TextCondition(Condition):
    """Features of a frozen text encoder through an MLP; left-padded to a fixed length.

    A batch brings `text` and `text_lengths`, or `caption` for the encoder. A prompt is a caption.

    Args:
        dim: width of the transformer.
        features: width of the text features; the command line asks the code shards' statistics or
            the encoder where a config leaves it out.
        length: number of prefix positions; the encoder's `max_length` by default, or 120.
        dropout: probability of the null condition in training.
        trainable_null: train the null condition's table, as far as there is dropout.
        encoder: of captions and prompts; None where all batches bring features and nobody draws.
    """

    fields = ("text", "caption")

    def __init__(
        self,
        dim: int,
        features: int | None = None,
        length: int | None = None,
        dropout: float = 0.1,
        trainable_null: bool = True,
        encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__(dropout)
        if features is None:
            given = "give it, an encoder, or code shards whose statistics name it"
            raise UserError(f"condition.features is not set; {given}.")
        if length is None:
            length = 120 if encoder is None else encoder.max_length
        if encoder is not None and encoder.max_length > length:
            above = f"{encoder.max_length} is above the condition's length, {length}"
            raise UserError(f"condition.encoder.max_length: {above}.")
        self.length, self.features, self.encoder = length, features, encoder
        self.fc1 = nn.Linear(features, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)
        table = torch.randn(length, features) / features**0.5
        # A weight that requires a gradient and never gets one has no state in the optimizer, which
        # a sharded checkpoint would miss.
        self.null_features = nn.Parameter(table, requires_grad=trainable_null and dropout > 0)

    def inputs(self, batch: Mapping[str, Any]) -> Inputs:
        self.check_fields(batch)
        if "text" in batch:
            return {name: batch[name] for name in ("text", "text_lengths")}
        return self._encode(batch["caption"], refuse_long=False)

    def null(self, inputs: Inputs) -> Inputs:
        """It keeps the caption's length and padding."""
        features = inputs["text"]
        null = self.null_features.to(features.dtype).expand_as(features)
        return {"text": null, "text_lengths": inputs["text_lengths"]}

    def prefix(self, inputs: Inputs) -> Prefix:
        features = inputs["text"]
        if features.shape[1] != self.length:
            found = f"The text features hold {features.shape[1]} positions"
            raise UserError(f"{found}, the model's prefix {self.length}.")
        hidden = self.fc1(features.to(self.fc1.weight.dtype))
        x = self.fc2(F.gelu(hidden, approximate="tanh"))
        return Prefix(x, inputs["text_lengths"])

    def parse(self, prompt: str) -> Inputs:
        return self._encode([prompt], refuse_long=True)  # alone, so that no neighbour rounds it

    def parse_cut(self, prompt: str) -> Inputs:
        return self._encode([prompt], refuse_long=False)

    def load(self) -> None:
        self._encoder().cleaned(["an image"])

    def check(self, prompt: str) -> None:
        self._encoder().cleaned([prompt], refuse_long=True)

    def zeros(self, batch_size: int) -> Inputs:
        return {
            "text": torch.zeros(batch_size, self.length, self.features),
            "text_lengths": torch.full((batch_size,), self.length),
        }

    def limits(self) -> dict[str, Any]:
        limits = {"text_features": self.features, "text_length": self.length}
        return limits | ({"caption_style": self.encoder.captions} if self.encoder else {})

    def asks(self) -> Question:
        return Question("What to show", ["pizza"])

    def positions(self, inputs: Inputs) -> int:
        return int(inputs["text_lengths"][0])

    def _encode(self, captions: list[str], refuse_long: bool) -> Inputs:
        device = self.null_features.device
        features = self._encoder().encode(captions, device, refuse_long)
        padded, lengths = left_pad(features, self.length)
        return {"text": padded, "text_lengths": lengths.to(device)}

    def _encoder(self) -> TextEncoder:
        if self.encoder is None:
            raise UserError("condition.encoder is not set; captions and prompts need it.")
        return self.encoder
