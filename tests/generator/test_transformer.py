"""Transformer against the original's numbers, the paper's sizes and its own promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling, Transformer, generate
from lgpl.generator.blocks import Past, rotary_table
from lgpl.generator.conditions import Inputs
from lgpl.generator.transformer import SIZES
from lgpl.training import load_module
from tests.golden import GOLDEN, fill, import_golden
from tests.models import labels, text, transformer


def small(**changes: Any) -> Transformer:
    options = {"size": (2, 2, 32), "codebook_size": 16, "grid": (3, 4), "num_classes": 5, **changes}
    torch.manual_seed(0)
    model = transformer(**options)
    torch.nn.init.normal_(model.output.weight)  # it starts at zero
    return model.eval()


def golden_model(kind: str, folder: Path) -> tuple[Transformer, Inputs]:
    """The model as it comes out of a released file, and inputs of its condition."""
    module = load_module(import_golden(kind, folder), "generator")
    assert isinstance(module, GeneratorModule)
    golden = GOLDEN[kind]
    if kind == "c2i":
        return module.model, labels(*golden["class"])
    caption, lengths = fill("caption", (2, 120, 48), 1.0), torch.tensor(golden["lengths"])
    for row, length in zip(caption, lengths, strict=True):
        row[: 120 - length] = 0
    return module.model, text(caption, lengths)


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
@torch.inference_mode()
def test_golden_logits(kind: str, tmp_path: Path) -> None:
    golden = GOLDEN[kind]
    model, inputs = golden_model(kind, tmp_path)
    codes = torch.tensor(golden["codes"])
    logits = model(codes, inputs)
    assert list(logits.shape) == golden["logits_shape"]
    for place in ((0, 0), (1, 15)):
        expected = torch.tensor(golden[f"logits[{place[0]},{place[1]},:8]"])
        assert torch.allclose(logits[place][:8], expected, rtol=1e-4, atol=1e-6)
    assert logits.abs().mean().item() == pytest.approx(golden["logits_abs_mean"], rel=1e-4)
    loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten()).item()
    assert loss == pytest.approx(golden["cross_entropy"], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "key", "guidance", "steps"),
    [
        ("c2i", "greedy_cfg1.0", 1.0, None),
        ("c2i", "greedy_cfg3.0", 3.0, None),
        # the original's interval counts from the second token and includes its end
        ("c2i", "greedy_cfg3.0_interval5", 3.0, 7),
        ("t2i", "greedy_cfg1.0", 1.0, None),
        ("t2i", "greedy_cfg7.5", 7.5, None),
    ],
)
def test_golden_tokens(
    kind: str, key: str, guidance: float, steps: int | None, tmp_path: Path
) -> None:
    model, inputs = golden_model(kind, tmp_path)
    sampling = Sampling(guidance=guidance, guidance_steps=steps, temperature=0.0)
    codes = generate(model, inputs, sampling)
    assert codes.flatten(1).tolist() == GOLDEN[kind][key]


@pytest.mark.parametrize(
    ("size", "millions", "digits"),
    [
        *(("B", 110.9, 1), ("L", 343, 0), ("XL", 775, 0), ("XXL", 1400, -2), ("3B", 3100, -2)),
        *(("XXXL", 3900, -2), ("1B", 1200, -2), ("7B", 6600, -2)),  # not in the paper's table
    ],
)
def test_paper_sizes(size: str, millions: float, digits: int) -> None:
    with torch.device("meta"):
        model = transformer(size, grid=(16, 16), num_classes=1000)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(count, digits) == millions


def test_every_size_builds() -> None:
    with torch.device("meta"):
        for size in SIZES:
            transformer(size, num_classes=1000)
            transformer(size, text_features=2048)


def test_codes_see_only_what_came_before() -> None:
    model = small()
    codes = torch.randint(16, (1, 12))
    changed = codes.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 16
    a, b = (model(c, labels(1)) for c in (codes, changed))
    assert torch.equal(a[:, :7], b[:, :7]) and not torch.equal(a[:, 7], b[:, 7])


def test_padding_does_not_matter() -> None:
    """The same caption with other values in its padding gives the same logits."""
    model = small(text_features=6, text_length=5)
    codes, features = torch.randint(16, (2, 12)), torch.randn(2, 5, 6)
    lengths = torch.tensor([2, 5])
    other = features.clone()
    other[0, :3] = 100.0
    logits = model(codes, text(features, lengths))
    assert torch.equal(logits, model(codes, text(other, lengths)))
    other[0, 3] = 100.0
    assert not torch.equal(logits, model(codes, text(other, lengths)))


@pytest.mark.parametrize("prefix_rope", ["identity", "zero"])
def test_turning_padding_away_equals_masking_it(prefix_rope: str) -> None:
    """Logits and gradients of the forward pass without a mask, against one with it."""
    model = small(text_features=6, text_length=5, prefix_rope=prefix_rope)
    codes, features = torch.randint(16, (6, 12)), torch.randn(6, 5, 6)
    lengths = torch.arange(6)
    inputs = text(features, lengths)

    def masked() -> Tensor:
        prefix = model.condition(inputs).embeddings
        x = torch.cat((prefix, model.tok_embeddings(codes[:, :-1])), dim=1)
        scores = torch.zeros(6, 1, 16, 16).masked_fill(~model.mask(lengths, 16), -torch.inf)
        for layer, cache in zip(model.layers, model.new_cache(6, torch.float32, 16), strict=True):
            x = layer(x, model.rope[:16], Past(cache, torch.arange(16), scores))
        return model.output(model.norm(x[:, 4:]))

    results = []
    for logits in (masked(), model(codes, inputs)):
        model.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_fresh_head_is_uniform() -> None:
    model = transformer((1, 1, 8), 16, (2, 2), num_classes=3)
    assert (model(torch.zeros(1, 4, dtype=torch.int64), labels(0)) == 0).all()


def test_rotary_table() -> None:
    table = rotary_table(2, CodeLayout(3, 4), 8, "identity")
    assert table.shape == (14, 4, 2)
    assert table[:2, :, 0].eq(1).all() and table[:2, :, 1].eq(0).all()
    assert rotary_table(2, CodeLayout(3, 4), 8, "zero")[:2].eq(0).all()
    # rows turn the first half of the pairs, columns the second
    same_row, same_column = (
        table[2:].view(3, 4, 4, 2)[1, :, :2],
        table[2:].view(3, 4, 4, 2)[:, 1, 2:],
    )
    assert (same_row == same_row[:1]).all() and (same_column == same_column[:1]).all()


def test_null_condition_trains() -> None:
    model = small(text_features=6, text_length=5, condition_dropout=1.0).train()
    model(torch.zeros(2, 12, dtype=torch.int64), text(torch.randn(2, 5, 6))).sum().backward()
    assert model.condition.null_features.grad.abs().sum() > 0
    frozen = small(text_features=6, text_length=5, trainable_null=False)
    assert not frozen.condition.null_features.requires_grad


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": "M"}, "'M' is none of B, L, XL"),
        ({"size": (1, 3, 32)}, "multiple of 4"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        small(**changes)


def test_text_of_another_length_is_refused() -> None:
    model = small(text_features=6, text_length=5)
    with pytest.raises(UserError, match="hold 4 positions, the model's prefix 5"):
        model(torch.zeros(1, 12, dtype=torch.int64), text(torch.zeros(1, 4, 6)))
