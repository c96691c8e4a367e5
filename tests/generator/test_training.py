"""What training may do to a block: leave it out, compute it again, compile it."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lgpl.codes import CodeLayout
from lgpl.data import ShardDataModule
from lgpl.generator import GeneratorModule
from lgpl.generator.blocks import DropPath, SwiGLU, rotary_table, rotate
from lgpl.training.optimizers import Schedule
from tests.generator.test_transformer import small
from tests.models import transformer

BATCH = {"codes": torch.arange(36).view(3, 3, 4) % 16, "class": torch.tensor([0, 3, 4])}


def module(compile: bool = False, **options: Any) -> GeneratorModule:
    made = GeneratorModule(partial(small, **options), compile=compile)
    made.configure_model()
    return made.train()


def gradients(made: GeneratorModule) -> tuple[Tensor, list[Tensor], int]:
    """Loss, all gradients, and bytes kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(1)
    with saved_tensors_hooks(keep, lambda x: x):
        loss = made.loss(BATCH).mean()
    loss.backward()
    return loss, [p.grad for p in made.parameters() if p.grad is not None], sum(kept.values())


def test_checkpointed_blocks_give_the_same_gradients_and_keep_less() -> None:
    options = {"size": (6, 2, 64), "dropout": 0.3, "drop_path": 0.5}
    loss, expected, much = gradients(module(**options))
    again, found, little = gradients(module(activation_checkpointing=True, **options))
    assert torch.equal(loss, again)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    weights = sum(p.numel() * 4 for p in module(**options).parameters())
    assert little - weights < 0.2 * (much - weights)


@pytest.mark.slow
def test_compiled_in_place() -> None:
    """The same figures, and a checkpoint that does not show it."""
    options = {"dropout": 0.0, "token_dropout": 0.0, "condition_dropout": 0.0}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = module(**options), module(compile=True, **options)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    (loss, expected, _), (again, found, _) = gradients(eager), gradients(compiled)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_paths_are_dropped_for_whole_samples() -> None:
    x = torch.ones(4000, 3, 2)
    out = DropPath(0.25).train()(x)
    dropped = (out == 0).all(dim=(1, 2))
    assert ((out == 0).any(dim=2).any(dim=1) == dropped).all()
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(out[~dropped], x[~dropped] / 0.75)
    assert torch.equal(DropPath(0.25).eval()(x), x)
    model = transformer((5, 2, 32), 16, (3, 4), num_classes=5, drop_path=0.4)
    assert [layer.drop_path.p for layer in model.layers] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_swiglu_keeps_its_gradient() -> None:
    gate, up = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(SwiGLU.apply, (gate, up))
    assert torch.equal(SwiGLU.apply(gate, up), nn.functional.silu(gate) * up)


def test_both_ways_to_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rope = torch.randn(2, 10, 3, 16), rotary_table(1, CodeLayout(3, 3), 16, "identity")
    complex_product = rotate(x, rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, rope), complex_product)
    torch.testing.assert_close(x.norm(dim=-1), complex_product.norm(dim=-1))


def test_rotary_table_stays_exact_in_bf16() -> None:
    model = small()
    table = model.rope.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.rope, table) and model.output.weight.dtype == torch.bfloat16
    logits = model(BATCH["codes"].flatten(1), {"class": BATCH["class"]})
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@pytest.mark.parametrize(("rule", "factor"), [(None, 1), ("linear", 4), ("sqrt", 2)])
def test_peak_follows_the_global_batch(rule: Any, factor: float) -> None:
    schedule = Schedule(warmup=10, batch_rule=rule, base_batch=16)
    made = GeneratorModule(partial(small), lr=1e-3, schedule=schedule)
    data = ShardDataModule(global_batch=64)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule, made._trainer = data, trainer  # type: ignore[attr-defined]
    made.configure_model()
    configured = made.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-3 * factor * min(1, (i + 1) / 10) for i in range(12)])


def test_peak_is_held_until_the_decay_begins() -> None:
    schedule = Schedule(warmup=2, hold=3, decay="linear", steps=9, floor=0.2)
    rates = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert [schedule(step) for step in range(11)] == pytest.approx(rates)
