"""Optimizers and learning-rate schedules of both modules."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lgpl.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run, as a factor of its peak.

    Attributes:
        warmup: optimizer steps of linear rise.
        decay: what comes after: `constant`, `linear` or `cosine`.
        steps: optimizer steps until the decay ends; needed unless constant.
        floor: the factor at the end.
        batch_rule: how the peak grows with the global batch: `linear` (arXiv 1706.02677) or `sqrt`
            (arXiv 1404.5997); None leaves it.
        base_batch: the global batch that the config's peak is meant for.
        hold: optimizer steps at the peak before the decay begins.
    """

    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    steps: int | None = None
    floor: float = 0.0
    batch_rule: Literal["linear", "sqrt"] | None = None
    base_batch: int = 256
    hold: int = 0

    def __post_init__(self) -> None:
        if self.decay != "constant" and self.steps is None:
            raise UserError(f"schedule.steps is not set, but decay {self.decay} has to end.")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.decay == "constant" or self.steps is None:
            return 1.0
        begin = self.warmup + self.hold
        progress = min(1.0, max(0, step - begin) / max(1, self.steps - begin))
        left = 1 - progress if self.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.floor + (1 - self.floor) * left


def adamw(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool = True,
) -> AdamW:
    """AdamW with weight decay on matrices and convolutions, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=fused)


class MuonAdamW(Optimizer):
    """Muon on hidden matrices and AdamW on everything else, as one optimizer.

    Muon orthogonalises the momentum of a matrix (Jordan et al., 2024); torch's own, from 2.9 on.
    `lr` and `betas` are AdamW's, the weight decay is Muon's.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        muon_lr: float,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            needed = f"torch 2.9 or newer, not {torch.__version__}"
            raise UserError(f"model.muon_lr needs {needed}; set it to null.")
        self.parts: tuple[Optimizer, ...] = (
            torch.optim.Muon(list(matrices), lr=muon_lr, weight_decay=weight_decay),
            AdamW(list(others), lr=lr, betas=betas, weight_decay=0.0, fused=True),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """One list of groups and one state, so that the parts see what is changed in them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state.clear()
        for part in self.parts:
            self.state.update(part.state)
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        states = []
        for part in self.parts:
            own = {p for group in part.param_groups for p in group["params"]}
            part.state = {p: s for p, s in self.state.items() if p in own}  # type: ignore[assignment]
            states.append(part.state_dict())
            part.state = self.state
        return {"parts": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
