"""The contract between a generator model and what trains it or draws with it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.codes import CodeLayout
from lgpl.described import Described
from lgpl.generator.conditions import Condition, Inputs
from lgpl.generator.decoders import Decoder, UncachedRaster


class Model(Described, nn.Module, ABC):
    """Predicts the codes of images under a condition.

    The least that one needs is `forward`: codes [B, N] and the inputs of the condition to logits
    [B, N, codebook_size], those at i for code i, which see no code from i on. One that is not
    autoregressive has a `loss` and a `decoder` of its own instead. A config gives the constructor
    `condition: Callable[[int], Condition]`, which it calls with the width of its prefix.
    """

    condition: Condition
    layout: CodeLayout  # of an image's codes, N in all
    codebook_size: int

    def loss(self, codes: Tensor, inputs: Inputs, step: int) -> Tensor:
        """Mean cross-entropy [B] of each image's codes [B, N], flat by `layout`, in nats, at a
        step of the optimizer; objectives may change in training."""
        logits = self(codes, inputs).float()
        return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").mean(1)

    def decoder(self) -> Decoder:
        """Draws where the config names no other."""
        return UncachedRaster()

    def blocks(self) -> Sequence[nn.Module]:
        """Repeated parts, which are sharded and compiled one by one."""
        return ()

    def hidden_matrices(self) -> list[Tensor]:
        """The matrices that Muon is for."""
        parts = [part for block in self.blocks() for part in block.modules()]
        return [part.weight for part in parts if isinstance(part, nn.Linear)]

    def check_start(self, other: Model, source: object) -> None:
        """Raise a UserError where weights of `other`, which training starts from and `source` names
        for the message, fit by their shapes and not by what they mean."""

    def pack(self) -> None:
        """Lay weights out for drawing; afterwards the model can be neither trained nor saved."""

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))
