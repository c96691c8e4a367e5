"""A condition of one's own, which lgpl knows nothing of: it is planned, trained and drawn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from lgpl.cli import main
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling, generate
from lgpl.generator.conditions import join
from lgpl.training import build_module
from lgpl.training.estimate import estimate_step
from tests.serving.generators import Config, class_config, export_generator, export_tokenizer

DIM = 32
BRIGHT, DARK = "#ffff80 #80ffff FF80FF ffffff", "000000 " * 4


OWN: Config = {"class_path": "tests.contracts.MeanColours", "init_args": {"dropout": 0.0}}
SEVERAL: Config = {
    "class_path": "lgpl.generator.Conditions",
    "init_args": {"parts": [OWN, class_config(5)]},
}


def of_colours(condition: Config) -> GeneratorModule:
    transformer = {
        "class_path": "lgpl.generator.Transformer",
        "init_args": {
            **{"size": [1, 2, DIM], "codebook_size": 16, "grid": [3, 4], "condition": condition},
            **{"dropout": 0.0, "token_dropout": 0.0},
        },
    }
    torch.manual_seed(0)
    module = build_module(
        {
            "class_path": "lgpl.generator.GeneratorModule",
            "init_args": {"transformer": transformer, "lr": 1e-2},
        }
    )
    assert isinstance(module, GeneratorModule)
    nn.init.normal_(module.model.output.weight, 0.0, 0.02)
    return module


@pytest.mark.parametrize(
    ("config", "prompts"),
    [(OWN, [BRIGHT, DARK]), (SEVERAL, [f"{BRIGHT} | 3", f"{DARK} | 1", "|"])],
    ids=["alone", "with a class"],
)
def test_ones_own_condition_trains_and_samples(config: Config, prompts: list[str]) -> None:
    """Codes that follow from the colours are learned, and drawn where the colours are asked for."""
    module = of_colours(config)
    condition = module.model.condition
    shade = torch.tensor([-1.0, -0.8, -1.0, -0.9, 0.9, 0.6, 0.8, 1.0])  # four dark, four bright
    codes = torch.tensor([7, 2]).repeat_interleave(4)[:, None, None].expand(8, 3, 4)
    image = shade[:, None, None, None].expand(8, 3, 8, 8)
    batch = {"image": image, "codes": codes, "class": torch.arange(8) % 5}
    optimizer, losses = module.configure_optimizers()["optimizer"], []
    before = {name: p.detach().clone() for name, p in condition.named_parameters()}
    for _ in range(30):
        losses.append(module.train().loss(batch).mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 < losses[0]
    still = [name for name, p in condition.named_parameters() if torch.equal(p, before[name])]
    assert [name.split(".")[-1] for name in still] == ["nothing"]  # without dropout
    inputs = join(condition.parse_each(prompts))
    drawn = module.sample_codes(inputs, Sampling(guidance=1.0, temperature=0.0), [0] * len(prompts))
    assert drawn[0].unique().tolist() == [2] and drawn[1].unique().tolist() == [7]
    guided = generate(module.model, inputs, Sampling(guidance=3.0))
    assert guided.shape == (len(prompts), 3, 4)
    with pytest.raises(UserError, match=r"data\.fields lacks image"):
        module.loss({"codes": batch["codes"], "class": batch["class"]})


def test_ones_own_condition_is_planned() -> None:
    with torch.device("meta"):
        module = of_colours(OWN)
    step = estimate_step(module, 2, (8, 8), "32-true")
    assert step.weights == sum(p.numel() for p in module.parameters())


def test_ones_own_condition_is_drawn_by_command(tmp_path: Path, fails: Callable[..., str]) -> None:
    """Where the package is trusted that a checkpoint names."""
    export_tokenizer(tmp_path / "tokenizer")
    export_generator(tmp_path / "generator", OWN)
    line = ["sample", "--checkpoint", str(tmp_path / "generator"), "--out", str(tmp_path / "a.png")]
    assert "give --trust tests" in fails(*line, "--prompt", BRIGHT)
    line += ["--trust", "tests"]
    main([*line, "--guidance", "2", "--dtype", "bf16", "--prompt", BRIGHT])
    assert Image.open(tmp_path / "a.png").size == (20, 24)
    assert fails(*line, "--prompt", "red") == "'red' is no four colours, such as #ff8000."
    assert fails(*line, "--label", "3") == "The checkpoint takes --prompt, not --label."
