"""Code after code, with a whole forward pass for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from lgpl.generator.conditions import join, rows
from lgpl.generator.decoders.base import Decoder, Step, Task
from lgpl.generator.guidance import Picker

if TYPE_CHECKING:
    from lgpl.generator.model import Model


class UncachedRaster(Decoder):
    """Draws in raster order by any autoregressive model's `forward` alone: slow, and simple."""

    in_order = True

    def steps(self, model: Model, task: Task) -> Iterator[Step]:
        batch, count = rows(task.inputs), model.layout.codes
        picker, inputs = Picker(task), task.inputs
        if picker.guided:
            inputs = join([inputs, model.condition.null(inputs)])
        codes = torch.zeros(batch, count, dtype=torch.int64, device=model.device)
        for index in range(count):
            codes[:, index] = picker(model(picker.doubled(codes), inputs)[:, index], index)
            yield Step(slice(index, index + 1), codes[:, index : index + 1])
