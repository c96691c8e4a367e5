"""Classes that a research group would write: lgpl knows nothing of them, and takes them by path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.codes import CodeLayout, ImageSize
from lgpl.errors import UserError
from lgpl.generator import Condition, Decoder, Model
from lgpl.generator.conditions import Inputs, Prefix, join, rows
from lgpl.generator.decoders import Step, Task
from lgpl.generator.guidance import Picker
from lgpl.tokenizer import Autoencoder, Quantized, Quantizer


class MeanColours(Condition):
    """The mean colours of an image's quarters. A prompt is four of them, such as #ff8000.

    Its arguments are as people write them: some without a type, one named as a part of lgpl has it.
    """

    length = 4
    fields = ("image",)

    def __init__(self, dim, dropout=0.1, names: str = "quarters") -> None:  # type: ignore
        super().__init__(dropout)
        self.names = names
        self.fc = nn.Linear(3, dim)
        self.nothing = nn.Parameter(torch.zeros(4, 3))

    def inputs(self, batch: Mapping[str, Any]) -> Inputs:
        if "image" not in batch:
            raise UserError("data.fields lacks image, whose mean colours the model needs.")
        return {"colours": F.adaptive_avg_pool2d(batch["image"], 2).flatten(2).mT}  # [B, 4, 3]

    def null(self, inputs: Inputs) -> Inputs:
        return {"colours": self.nothing.expand_as(inputs["colours"])}

    def prefix(self, inputs: Inputs) -> Prefix:
        return Prefix(self.fc(inputs["colours"]))

    def parse(self, prompt: str) -> Inputs:
        found = re.findall(r"#?([0-9a-f]{6})\b", prompt.lower())
        if len(found) != 4:
            raise UserError(f"{prompt[:80]!r} is no four colours, such as #ff8000.")
        pixels = torch.tensor([list(bytes.fromhex(colour)) for colour in found])
        return {"colours": (pixels / 127.5 - 1)[None].to(self.nothing.device)}

    def zeros(self, batch_size: int) -> Inputs:
        return {"colours": torch.zeros(batch_size, 4, 3)}


class OneRow(Autoencoder):
    """Codes without rows: images of one size as 1 x N, each code seeing the whole image."""

    def __init__(self, quantizer: Quantizer, side: int = 32, codes: int = 16) -> None:
        super().__init__()
        self.side, self.codes = side, codes
        self.quantizer, self.codebook_size = quantizer, quantizer.codebook_size
        self.down = nn.Linear(3 * 8 * 8, codes * quantizer.dim)
        self.up = nn.Linear(codes * quantizer.dim, 3 * 8 * 8)

    def layout(self, height: int, width: int) -> CodeLayout:
        if (height, width) != (self.side, self.side):
            raise UserError(f"The tokenizer is for {self.side} px, not for {width}x{height}.")
        return CodeLayout(1, self.codes)

    def image_size(self, layout: CodeLayout) -> ImageSize:
        if layout != CodeLayout(1, self.codes):
            raise UserError(f"The tokenizer has codes of 1x{self.codes}, not of {layout}.")
        return self.side, self.side

    def _features(self, image: Tensor) -> Tensor:
        z = self.down(F.adaptive_avg_pool2d(image, 8).flatten(1))
        return z.view(len(z), -1, 1, self.codes)  # [B, D, 1, N]

    def _image(self, z: Tensor) -> Tensor:
        small = self.up(z.flatten(1)).view(-1, 3, 8, 8)
        return F.interpolate(small, (self.side, self.side))

    def encode(self, image: Tensor) -> Tensor:
        return self.quantizer(self._features(image)).codes

    def decode(self, codes: Tensor) -> Tensor:
        return self._image(self.quantizer.lookup(codes))

    def forward(self, image: Tensor) -> tuple[Tensor, Quantized]:
        quantized = self.quantizer(self._features(image))
        return self._image(quantized.z), quantized


class EvenFirst(Decoder):
    """All even places at once, then each odd one: an order that is no raster."""

    needs = Model

    def steps(self, model: Model, task: Task) -> Iterator[Step]:
        batch, count = rows(task.inputs), model.layout.codes
        picker, inputs = Picker(task), task.inputs
        if picker.guided:
            inputs = join([inputs, model.condition.null(inputs)])
        codes = torch.zeros(batch, count, dtype=torch.int64, device=model.device)
        for places in (range(0, count, 2), *([i] for i in range(1, count, 2))):
            both = torch.cat((codes, codes)) if picker.guided else codes
            logits = model(both, inputs)
            new = torch.stack([picker(logits[:, i], i) for i in places], dim=1)
            where = torch.tensor([*places])
            if task.given is not None:
                known = task.given.to(codes.device)[:, where]
                new = torch.where(known < 0, new, known)
            codes[:, where] = new
            yield Step(where.expand(batch, -1), new)


class Frequencies(Model):
    """How often each code stands at each place, for each class: a table, and no Transformer."""

    def __init__(
        self,
        condition: Callable[[int], Condition],
        codebook_size: int,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.layout, self.codebook_size = CodeLayout(*grid), codebook_size
        self.condition = condition(self.layout.codes * codebook_size)

    def forward(self, codes: Tensor, inputs: Inputs) -> Tensor:
        table, _ = self.condition(inputs)  # [B, 1, N * K]
        return table.view(len(table), self.layout.codes, self.codebook_size)
