"""The plan against what real models take on this CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lgpl.cli import main
from lgpl.commands.planning import per_device
from lgpl.generator import ClassCondition, GeneratorModule, ParallelTransformer, Transformer
from lgpl.tokenizer import PatchGAN, TokenizerLoss, TokenizerModule, VectorQuantizer, VQModel
from lgpl.training import TrainingModule
from lgpl.training.estimate import LiveBytes, StepEstimate, estimate_step
from tests.models import transformer

LAYERS, HEADS, DIM, HIDDEN, CODES, GRID, BATCH = 12, 4, 64, 256, 96, (8, 8), 4
# Of the activations: a little stands beside what is kept for the backward pass for a moment, and a
# convolution's kernel does not need quite what its rehearsal needs.
TOLERANCE = 0.02


def generator(**condition: int) -> GeneratorModule:
    def build() -> Transformer:
        return transformer((LAYERS, HEADS, DIM), CODES, GRID, text_length=16, **condition)

    return GeneratorModule(build)


def tokenizer() -> TokenizerModule:
    autoencoder = VQModel(VectorQuantizer(64), (1, 2), width=32, blocks=1, z_channels=32)
    return TokenizerModule(autoencoder, TokenizerLoss(discriminator=PatchGAN(8, 1)))


def parallel() -> GeneratorModule:
    classes = partial(ClassCondition, num_classes=5)
    return GeneratorModule(
        partial(ParallelTransformer, classes, (LAYERS, HEADS, DIM), CODES, GRID, dropout=0.1)
    )


MODULES: dict[str, Callable[[], TrainingModule]] = {
    "class": lambda: generator(num_classes=5),
    "text": lambda: generator(text_features=24),
    "parallel": parallel,
    "tokenizer": tokenizer,
}


def planned(
    name: str, precision: str, sharded: bool = False, reshard: bool = True, device: str = "cuda"
) -> StepEstimate:
    with torch.device("meta"):
        module = MODULES[name]()
    return estimate_step(module, BATCH, (32, 32), precision, sharded, reshard, device)


def size(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", MODULES)
def test_a_real_step_takes_what_was_planned(name: str, precision: str) -> None:
    step = planned(name, precision)
    module = MODULES[name]()
    module.configure_model()
    parameters = list(module.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    live = LiveBytes(module)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with live, autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.one_step(module.zeros(BATCH, (32, 32)))
    assert step.parameters == size(parameters)
    assert step.weights == sum(p.numel() for p in parameters)
    assert step.gradients == size(p.grad for p in parameters)
    assert step.activations == pytest.approx(live.peak, rel=TOLERANCE)
    # what the backward pass makes beside it comes on top
    assert step.activations == pytest.approx(sum(kept.values()), rel=2 * TOLERANCE)

    optimizers: Any = module.configure_optimizers()
    optimizers = [optimizers["optimizer"]] if isinstance(optimizers, dict) else optimizers
    for optimizer in optimizers:
        optimizer.step()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    assert step.optimizer == size(value for state in states for value in state.values())


def test_flops_are_those_of_the_matrices() -> None:
    """Two a weight and position forward, four backward; attention's products beside them."""
    step = planned("class", "32-true")
    positions = GRID[0] * GRID[1]  # the class and all codes but the last
    weights = LAYERS * (4 * DIM * DIM + 3 * DIM * HIDDEN) + DIM * CODES
    attention = LAYERS * (4 + 10) * positions**2 * DIM
    assert step.flops == BATCH * (6 * weights * positions + attention)
    assert step.tokens == BATCH * positions


def test_activation_checkpointing_shows() -> None:
    """Less is kept, and the forward pass of the blocks is taken twice."""
    build = partial(
        transformer, (LAYERS, HEADS, DIM), CODES, GRID, num_classes=5, activation_checkpointing=True
    )
    kept = planned("class", "bf16-mixed")
    again = estimate_step(GeneratorModule(build), BATCH, (32, 32), "bf16-mixed")
    assert again.activations < 0.3 * kept.activations
    assert 1.2 * kept.flops < again.flops < 4 / 3 * kept.flops
    assert (again.parameters, again.optimizer) == (kept.parameters, kept.optimizer)


def test_cache_is_what_sampling_allocates() -> None:
    positions = 16 + GRID[0] * GRID[1]
    values = 2 * LAYERS * positions * DIM * 16 * 2  # keys and values, 16 images, guidance
    assert planned("text", "32-true").cache == 4 * values
    assert planned("text", "bf16-mixed").cache == 2 * values
    assert planned("text", "bf16-mixed", device="cpu").cache == 4 * values


def test_strategies() -> None:
    step = planned("class", "bf16-mixed")
    alone, ddp = per_device(step, 1, False, False), per_device(step, 8, False, True)
    assert alone["parameters"] == ddp["parameters"] == step.parameters == ddp["moving average"]
    assert "buckets of DDP" not in alone and ddp["buckets of DDP"] == step.gradients
    sharded = planned("class", "bf16-mixed", sharded=True)
    lines = per_device(sharded, 8, True, False)
    for name, whole in (
        ("parameters", step.parameters),
        ("gradients", step.gradients),
        ("optimizer state", step.optimizer),
    ):
        assert lines[name] == -(-whole // 8)
    assert sharded.activations < step.activations  # all in bf16
    assert 0 < lines["gathered by FSDP"] < 2.5 * step.parameters
    replicated = per_device(sharded, 8, True, False, replicas=4)
    assert replicated["parameters"] == -(-step.parameters // 2)


def test_weights_that_are_not_resharded_stay_gathered() -> None:
    zero3, zero2 = (
        planned("class", "32-true", True, reshard).gathered for reshard in (True, False)
    )
    block = size(generator(num_classes=5).model.blocks()[0].parameters())
    assert zero2 - zero3 == (LAYERS - 2) * block  # of which two are gathered in any case


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "-c", "configs/generator/c2i.yaml", "-c", "configs/generator/size/3b.yaml"]
    command += ["-c", "configs/trainer/fsdp.yaml"]
    recompute = "--model.init_args.transformer.init_args.activation_checkpointing"
    main([*command, "--gpus", "8", "--memory", "72"])
    said = capsys.readouterr().out
    assert "fits, " in said
    assert "for LlamaGen      no export: it has prefix_rope identity, not zero" in said
    main([*command, "--gpus", "8", "--memory", "72", recompute, "false"])
    said = capsys.readouterr().out
    for line in ("parameters        1.44 GiB", "optimizer state   2.88 GiB", "gathered by FSDP"):
        assert line in said
    assert "3096.7M" in said and "147,456" in said and "does NOT fit" in said
    rope = ("--model.init_args.transformer.init_args.prefix_rope", "zero")
    main([*command, "--gpus", "8", "--memory", "141", "--data.batch_size", "4", *rope])
    said = capsys.readouterr().out
    assert "\nfits, " in said and "for LlamaGen" not in said


def test_mistakes_are_named(fails: Callable[..., str]) -> None:
    plan = ("plan", "-c", "configs/generator/c2i.yaml")
    assert fails(*plan, "--gpus", "0") == "--gpus must be >= 1, got 0"
    assert fails(*plan, "--gpus", "-8") == "--gpus must be >= 1, got -8"
    assert "--memory must be > 0, got 0" in fails(*plan, "--memory", "0")
