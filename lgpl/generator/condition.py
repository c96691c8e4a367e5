"""Conditions: a class label or text features -> the prefix of the sequence, with a null condition.

Classifier-free guidance (arXiv 2207.12598): in training a condition is replaced by the null
condition with probability `dropout`; in sampling both are evaluated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.errors import UserError


class ClassCondition(nn.Module):
    """One prefix token per class; the last row of the table is the null condition.

    Args:
        num_classes: number of classes without the null condition.
        dim: width of the transformer.
        dropout: probability of the null condition in training.
    """

    length = 1

    def __init__(self, num_classes: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = dropout
        self.embedding = nn.Embedding(num_classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:
        """Prefix [B, 1, dim] of class labels [B]."""
        if self.training and self.dropout:
            dropped = torch.rand(label.shape, device=label.device) < self.dropout
            label = label.masked_fill(dropped, self.num_classes)
        return self.embedding(label).unsqueeze(1)

    def null(self, label: Tensor) -> Tensor:
        """The null condition in the shape of `label`."""
        return torch.full_like(label, self.num_classes)


class TextCondition(nn.Module):
    """Features of a frozen text encoder through an MLP; left-padded to a fixed length.

    Args:
        features: width of the text features.
        length: number of prefix tokens.
        dim: width of the transformer.
        dropout: probability of the null condition in training.
        trainable_null: train the null condition's table, as far as there is dropout; False keeps it
            as it was drawn.
    """

    def __init__(
        self,
        features: int,
        length: int,
        dim: int,
        dropout: float = 0.1,
        trainable_null: bool = True,
    ) -> None:
        super().__init__()
        self.length = length
        self.dropout = dropout
        self.fc1 = nn.Linear(features, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)
        table = torch.randn(length, features) / features**0.5
        # A weight that requires a gradient and never gets one has no state in the optimizer, which
        # a sharded checkpoint would miss.
        self.null_features = nn.Parameter(table, requires_grad=trainable_null and dropout > 0)

    def forward(self, features: Tensor) -> Tensor:
        """Prefix [B, length, dim] of text features [B, length, features]."""
        if features.shape[1] != self.length:
            raise UserError(
                f"The text features hold {features.shape[1]} positions, "
                f"the model's prefix {self.length}."
            )
        if self.training and self.dropout:
            dropped = torch.rand(len(features), 1, 1, device=features.device) < self.dropout
            features = torch.where(dropped, self.null(features), features)
        features = features.to(self.fc1.weight.dtype)
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))

    def null(self, features: Tensor) -> Tensor:
        """The null condition in the shape of `features`; it keeps the caption's length and
        padding."""
        return self.null_features.to(features.dtype).expand_as(features)
