"""A run that meets NaN goes on without the step, or ends with what it saw; warnings name knobs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lgpl.callbacks import NaNGuard, TokenizerHealth
from lgpl.cli import main
from lgpl.training import load_module
from tests.callbacks.test_evaluation import generator, scalars, short, stacked, tokenizer
from tests.conftest import Chain

GUARD = {"class_path": "lgpl.callbacks.NaNGuard", "init_args": {"patience": 3}}
GAN = [
    *("--model.init_args.loss.init_args.discriminator", "lgpl.tokenizer.PatchGAN"),
    *("--model.init_args.loss.init_args.discriminator.init_args.width", "8"),
    *("--model.init_args.loss.init_args.discriminator.init_args.layers", "1"),
    *("--model.init_args.discriminator_start", "0"),
]


class Poison(Callback):
    """Makes the gradients of these training batches NaN, as a broken kernel would."""

    def __init__(self, batches: list[int]) -> None:
        self.batches = batches
        self._batch = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self._batch += 1

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._batch in self.batches:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.nan)


class State(Callback):
    """The weights after each batch."""

    after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: pl.LightningModule, *_: Any) -> None:
        named = pl_module.named_parameters()
        State.after.append({name: p.detach().clone() for name, p in named if p.requires_grad})


def poison(*batches: int) -> dict[str, Any]:
    return {"class_path": f"{__name__}.Poison", "init_args": {"batches": list(batches)}}


STATE = {"class_path": f"{__name__}.State"}


@pytest.mark.parametrize("kind", [pytest.param("tokenizer", marks=pytest.mark.slow), "generator"])
def test_a_step_with_nan_changes_nothing_and_is_counted(
    kind: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two optimizers that are stepped by hand, and with one that Lightning steps."""

    def fit(name: str, *callbacks: dict[str, Any]) -> tuple[list[float], dict[str, list[float]]]:
        State.after.clear()
        chosen = stacked(tmp_path, name, poison(3), STATE, *callbacks)
        if kind == "tokenizer":
            main(["fit", *tokenizer(*chosen), *short(*GAN)])
        else:
            main(["fit", *generator(chain, *chosen), *short()])
        metrics = scalars(tmp_path / name / ("tokenizer" if kind == "tokenizer" else "stage2"))
        return metrics["train/loss"], metrics

    loss, metrics = fit("guarded", GUARD)
    assert len(loss) == 6 and all(map(math.isfinite, loss))
    assert metrics["health/skipped_steps"] == [1]
    second, third, fourth = State.after[1:4]
    assert any("discriminator" in name for name in second) == (kind == "tokenizer")
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert not all(torch.equal(third[name], fourth[name]) for name in third)
    assert fit("by default")[0] == loss
    monkeypatch.setattr(NaNGuard, "_check", lambda *_: None)
    loss, _ = fit("unguarded")
    assert all(map(math.isnan, loss[3:]))


def test_steps_in_a_row_end_the_run(
    chain: Chain, tmp_path: Path, fails: Callable[..., str]
) -> None:
    chosen = stacked(tmp_path, "a", poison(1, 3, 4, 5), GUARD)
    said = fails("fit", *generator(chain, *chosen), *short())
    assert said.startswith("3 steps in a row had gradients that are not finite, the last with the")
    assert "samples " in said and "on rank 0: lower model.lr" in said and ", ..." not in said


class FakeRun:
    """As much of a Trainer as a look at the last metrics needs."""

    def __init__(self) -> None:
        self.callback_metrics: dict[str, Tensor] = {}


def test_collapse_and_saturation_are_told_once_with_the_knob(
    chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    module = load_module(chain.tokenizer, "tokenizer")
    health, run = TokenizerHealth(every=1, patience=2), FakeRun()

    def look(usage: float, loss: float) -> list[str]:
        run.callback_metrics = {
            "train/usage": torch.tensor(usage),
            "train/discriminator/loss": torch.tensor(loss),
        }
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            health.on_train_batch_end(run, module, None, {}, 0)  # type: ignore[arg-type]
        return [record.getMessage() for record in caplog.records]

    assert look(0.05, 0.5) == []
    (said,) = look(0.05, 0.5)
    assert "codebook collapses: 5.0%" in said and "revive_after" in said
    assert look(0.05, 0.01) == []  # logged once
    (said,) = look(0.9, 0.01)
    assert "discriminator saturates: its loss is 0.010" in said and "adversarial_weight" in said
