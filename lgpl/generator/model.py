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
    autoregressive has a `loss` and a `decoder` of its own instead.

    Attributes:
        condition: what it is conditioned on.
        layout: of an image's codes, N in all.
        codebook_size: number of codes.
    """

    condition: Condition
    layout: CodeLayout
    codebook_size: int

    def loss(self, codes: Tensor, inputs: Inputs, step: int) -> Tensor:
        """Mean cross-entropy [B] of each image's codes, in nats.

        Args:
            codes: [B, N], flat by `layout`.
            inputs: of the condition, of B samples.
            step: optimizer steps done, for objectives that change in training.
        """
        logits = self(codes, inputs).float()
        return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").mean(1)

    def decoder(self) -> Decoder:
        """Draws where the config names no other."""
        return UncachedRaster()

    def serves(self, decoder: Decoder) -> bool:
        """Whether a decoder finds here what it needs."""
        return isinstance(self, decoder.needs)

    def blocks(self) -> Sequence[nn.Module]:
        """Repeated parts, which are sharded and compiled one by one."""
        return ()

    def hidden_matrices(self) -> list[Tensor]:
        """The matrices that Muon is for."""
        linear = [m for block in self.blocks() for m in block.modules() if isinstance(m, nn.Linear)]
        return [m.weight for m in linear]

    def check_start(self, other: Model, source: object) -> None:
        """Raise a UserError where weights of `other` fit by their shapes and not by what they mean.

        Args:
            other: model of the checkpoint that training starts from.
            source: path of the checkpoint.
        """

    def pack(self) -> None:
        """Lay weights out for drawing; afterwards the model can be neither trained nor saved."""

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))
