"""Speculative Jacobi decoding: what Raster draws, in fewer passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lgpl.cli import main
from lgpl.errors import UserError
from lgpl.generator import Sampling, SpeculativeJacobi, Transformer, generate
from lgpl.generator.decoders.base import check_decoder
from tests.generator.test_transformer import small
from tests.models import labels, some, text

LABELS = labels(1, 3, 4)
CODES, PLACES = 3, 4
EVERY = torch.cartesian_prod(*[torch.arange(CODES)] * PLACES)  # all images of the toy


def toy() -> Transformer:
    """Whose next code depends on the ones before it; of attention alone, which is quick."""
    model = small(size=(1, 1, 16), codebook_size=CODES, grid=(2, 2))
    for layer in model.layers:
        layer.feed_forward = torch.nn.Identity()
    torch.nn.init.normal_(model.tok_embeddings.weight)
    torch.nn.init.normal_(model.output.weight, 0.0, 0.2)
    return model


def exact(model: Transformer, sampling: Sampling) -> Tensor:
    """The probability of each image of `EVERY` of class 1, code after code."""
    inputs = labels(*[1] * len(EVERY))
    with torch.no_grad():
        c, u = (model(EVERY, x).double() for x in (inputs, model.condition.null(inputs)))
    scale = torch.tensor(sampling.scales(PLACES)).double()[:, None]
    logits = (u + scale * (c - u)) / sampling.temperature
    if sampling.top_k:
        least = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits.softmax(-1).gather(2, EVERY[..., None]).squeeze(2).prod(1)


def chi_squared(drawn: Tensor, expected: Tensor) -> float:
    """The probability of such a distance, or a greater one, from what is expected."""
    number = (drawn * CODES ** torch.arange(PLACES).flip(0)).sum(1)
    counts = number.bincount(minlength=len(EVERY)).double()
    assert counts[expected == 0].sum() == 0
    awaited = expected * len(drawn)
    often = awaited >= 10  # the others count as one
    counts, awaited = (torch.cat((x[often], x[~often].sum()[None])) for x in (counts, awaited))
    counts, awaited = counts[awaited > 0], awaited[awaited > 0]
    assert len(awaited) > 10
    distance = ((counts - awaited) ** 2 / awaited).sum()
    return float(torch.special.gammaincc(torch.tensor((len(awaited) - 1) / 2.0), distance / 2))


@pytest.mark.parametrize(
    ("draws", "window", "sampling"),
    [
        (100_000, 3, Sampling(guidance=1.5)),
        (20_000, 2, Sampling(temperature=0.7)),
        (20_000, 16, Sampling(2.0, top_k=2, guidance_schedule="linear")),
    ],
    ids=["guided", "cold", "truncated"],
)
def test_the_distribution_is_the_sequential_one(
    draws: int, window: int, sampling: Sampling
) -> None:
    model, decoder = toy(), SpeculativeJacobi(window)
    many = labels(*[1] * draws)
    codes = generate(model, many, sampling, decoder=decoder, same=[0] * draws).flatten(1)
    assert chi_squared(codes, exact(model, sampling)) > 0.01
    # So many draws tell apart what is only a little different.
    other = Sampling(sampling.guidance, temperature=sampling.temperature * 1.1)
    assert chi_squared(codes, exact(model, other)) < 1e-4
    assert 1 < float(decoder.summary().split()[0]) < PLACES


@pytest.mark.parametrize("window", [1, 5, 100])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.0), Sampling(3.0, temperature=0.0, guidance_schedule="linear")],
    ids=["plain", "guided"],
)
def test_without_temperature_the_codes_are_rasters(
    sampling: Sampling, depth: int, window: int
) -> None:
    model, decoder = small(depth=depth), SpeculativeJacobi(window)
    drawn = generate(model, LABELS, sampling, decoder=decoder)
    assert torch.equal(drawn, generate(model, LABELS, sampling))


def test_captions_of_any_length() -> None:
    model = small(text_features=6, text_length=5)
    inputs = text(torch.randn(6, 5, 6), torch.arange(6))
    sampling = Sampling(2.0, temperature=0.0)
    drawn = generate(model, inputs, sampling, decoder=SpeculativeJacobi(4))
    assert torch.equal(drawn, generate(model, inputs, sampling))


def test_image_does_not_depend_on_its_neighbours() -> None:
    """Though each comes on at its own speed, and has settings of its own."""
    each = [
        Sampling(3.0, top_k=8),
        Sampling(),
        Sampling(5.0, temperature=0.0, guidance_schedule="linear"),
        Sampling(1.5, top_p=0.7, temperature=0.3),
    ]
    model, classes, seeds, decoder = small(), labels(1, 3, 4, 1), [5, 6, 7, 8], SpeculativeJacobi(4)
    together = generate(model, classes, each, seeds, decoder=decoder)
    for i, sampling in enumerate(each):
        alone = generate(model, some(classes, [i]), sampling, [seeds[i]], decoder=decoder)
        assert torch.equal(together[i], alone[0])
    again = generate(model, classes, each, [5, 9, 7, 8], decoder=decoder)
    equal = [torch.equal(*pair) for pair in zip(again, together, strict=True)]
    assert equal == [True, False, True, True]


def test_nor_does_an_image_of_which_codes_are_given() -> None:
    """However many more or fewer are given of the others."""
    model, classes, seeds, decoder = small(), labels(1, 3, 4, 1), [5, 6, 7, 8], SpeculativeJacobi(4)
    sampling = Sampling(3.0, top_k=8)
    count = model.layout.codes
    begun = generate(model, classes, sampling, [9] * 4).flatten(1)
    first = torch.tensor([0, 1, count // 2, count - 2])[:, None]
    given = torch.where(torch.arange(count) < first, begun, -1)
    together = generate(model, classes, sampling, seeds, given, decoder=decoder).flatten(1)
    assert torch.equal(together[given >= 0], given[given >= 0])
    for chosen in ([0], [1], [2], [3], [1, 2], [3, 2]):
        some_seeds = [seeds[i] for i in chosen]
        few = some(classes, chosen)
        drawn = generate(model, few, sampling, some_seeds, given[chosen], decoder=decoder)
        assert torch.equal(drawn.flatten(1), together[chosen])


def test_codes_come_in_order_and_stay() -> None:
    """Places that are told to be drawn, those of each image from the first on, do not change."""
    model, seen = small(), []

    def watch(codes: Tensor, drawn: Tensor) -> None:
        seen.append((codes.clone(), drawn.clone()))

    codes = generate(model, LABELS, progress=watch, decoder=SpeculativeJacobi(4)).flatten(1)
    for then, drawn in seen:
        assert torch.equal(then[drawn], codes[drawn])
        assert torch.equal(drawn.int().cummin(1).values, drawn.int())
    counts = torch.stack([drawn.sum(1) for _, drawn in seen])
    assert (counts.diff(dim=0) >= 0).all() and (counts.sum(1).diff() > 0).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"decoder.window must be >= 1, got 0"):
        SpeculativeJacobi(0)

    class OnlyForward(torch.nn.Module):
        pass

    with pytest.raises(UserError, match="OnlyForward cannot serve SpeculativeJacobi"):
        check_decoder(OnlyForward(), SpeculativeJacobi())  # type: ignore[arg-type]


def test_the_emoji_model_takes_fewer_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same image, at the sampling of the model's own."""
    draw = ["sample", "--checkpoint", "emoji", "--prompt", "a slice of pizza", "rocket", "--out"]
    images = {}
    for name, options in {
        "raster": [],
        "speculative": ["--decoder", "lgpl.generator.SpeculativeJacobi"],
    }.items():
        main([*draw, str(tmp_path / f"{name}.png"), *options])
        images[name] = (tmp_path / f"{name}.png").read_bytes()
    assert images["speculative"] == images["raster"]
    said = re.search(r"([\d.]+) codes a pass", capsys.readouterr().out)
    assert said is not None and float(said[1]) > 1.5


def test_its_window_can_be_chosen(tmp_path: Path, fails: Any) -> None:
    draw = ("sample", "--checkpoint", "emoji", "--prompt", "pizza", "--out", "a.png", "--decoder")
    path = "lgpl.generator.SpeculativeJacobi"
    said = fails(*draw, f'{{"class_path": "{path}", "init_args": {{"window": 0}}}}')
    assert said == "decoder.window must be >= 1, got 0."
    assert "NoSuchDecoder" in fails(*draw, "lgpl.generator.NoSuchDecoder")
