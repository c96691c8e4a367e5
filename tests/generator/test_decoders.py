"""Sampling: the cache, guidance, truncation and seeds."""

from __future__ import annotations

import copy
import functools
import inspect
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator import (
    Decoder,
    GeneratorModule,
    Raster,
    Sampling,
    SpeculativeJacobi,
    UncachedRaster,
    generate,
    packing,
)
from lgpl.generator.decoders import raster
from lgpl.generator.decoders.base import make_task
from lgpl.generator.decoders.raster import CachedModel, Drawing, decode_together
from lgpl.generator.packing import pack_weights
from tests.contracts import EvenFirst
from tests.generator.test_transformer import small
from tests.models import labels, on, some, text, transformer

LABELS = labels(1, 3, 4)


@pytest.mark.parametrize("depth", [1, 3])
def test_cache_equals_the_full_forward(depth: int) -> None:
    model = small(depth=depth)
    drawn = generate(model, LABELS, sampling=Sampling(temperature=0.0))
    assert drawn.shape == (3, *model.layout.shape)
    codes = model.layout.flatten(drawn)
    assert torch.equal(model(codes, LABELS).argmax(-1), codes)


def test_what_raster_needs_is_seen_on_every_python() -> None:
    """From 3.12 on, isinstance looks past `nn.Module.__getattr__`, which finds submodules."""
    needed = [name for name in (*CachedModel.__annotations__, *vars(CachedModel)) if name[0] != "_"]
    assert "prefix_length" in needed and "step" in needed
    for name in needed:
        inspect.getattr_static(small(), name)


def test_codes_of_a_place_share_its_position_and_know_their_depth() -> None:
    model = small(depth=2)
    assert torch.equal(model.rope[1::2], model.rope[2::2])  # behind the prefix of one
    same = torch.full((1, 24), 7)
    embedded = model.embed(same, torch.arange(24))
    assert torch.equal(embedded[:, 0], embedded[:, 2])
    assert not torch.equal(embedded[:, 0], embedded[:, 1])


def test_every_caption_length_samples_what_was_trained() -> None:
    """From the empty one on; what stands in the padding does not matter."""
    model = small(text_features=6, text_length=5)
    inputs = text(torch.randn(6, 5, 6), torch.arange(6))
    codes = generate(model, inputs, Sampling(temperature=0.0)).flatten(1)
    assert torch.equal(model(codes, inputs).argmax(-1), codes)


def test_guidance_mixes_both_branches() -> None:
    model = small()
    codes = generate(model, LABELS, sampling=Sampling(guidance=2.5, temperature=0.0)).flatten(1)
    c, u = model(codes, LABELS), model(codes, model.condition.null(LABELS))
    assert torch.equal((u + 2.5 * (c - u)).argmax(-1), codes)


def test_image_does_not_depend_on_its_neighbours() -> None:
    model = small()
    sampling = Sampling(guidance=2.0, top_k=8)
    together = generate(model, LABELS, sampling=sampling, seeds=[5, 6, 7])
    alone = [generate(model, some(LABELS, [i]), sampling, [5 + i]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, generate(model, LABELS, sampling=sampling, seeds=[5, 6, 7]))
    assert not torch.equal(together, generate(model, LABELS, sampling=sampling, seeds=[8, 9, 10]))


@pytest.mark.parametrize("is_full", [False, True])
@torch.inference_mode()
def test_drawings_at_different_places_are_drawn_together(
    monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """Each as alone, while others join and leave, also where memory has no room for one cache."""
    model = small(text_features=6, text_length=5)
    inputs = text(torch.randn(4, 5, 6), torch.tensor([5, 0, 3, 1]))
    each = [Sampling(2.0 * (i % 2) + 1.0, top_k=8) for i in range(4)]
    alone = [generate(model, some(inputs, [i]), each[i], [i]).flatten() for i in range(4)]
    if is_full:
        monkeypatch.setattr(raster, "Rows", Mock(side_effect=torch.OutOfMemoryError("no room")))
    drawn: dict[int, list[Tensor]] = {i: [] for i in range(4)}
    begun: dict[int, Drawing] = {}
    while len(drawn[3]) < model.layout.codes:
        steps = len(drawn[0])
        if steps % 3 == 0 and steps < 12:  # another joins
            i = steps // 3
            begun[i] = Drawing(model, make_task(model, some(inputs, [i]), each[i], [i]))
        for i, drawing in begun.items():
            drawn[i].append(drawing.pick().codes[0, 0])
        begun = {i: drawing for i, drawing in begun.items() if not drawing.is_done}
        if begun:
            decode_together(model, [*begun.values()])
    for i in range(4):
        assert torch.equal(torch.stack(drawn[i]), alone[i])


def test_images_with_settings_of_their_own_share_a_batch() -> None:
    """Each is to the bit what it is alone, guided or not, whatever is drawn beside it."""
    each = [
        Sampling(3.0, top_k=8),
        Sampling(),
        Sampling(5.0, temperature=0.0, guidance_schedule="linear"),
        Sampling(2.0, top_k=8),
        Sampling(1.5, top_p=0.7),
    ]
    model, classes, seeds = small(), labels(1, 3, 4, 1, 0), [5, 6, 7, 8, 9]
    together = generate(model, classes, sampling=each, seeds=seeds)
    for i, sampling in enumerate(each):
        alone = generate(model, some(classes, [i]), sampling=sampling, seeds=[seeds[i]])
        assert torch.equal(together[i], alone[0])


def test_what_rows_begin_with_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six guided images of two prompts: both, and the null condition of each."""
    model = small(text_features=6, text_length=5)
    features = torch.randn(2, 5, 6)
    inputs = text(features, torch.tensor([3, 3]))
    six, sampling = [0, 1, 0, 0, 1, 1], Sampling(guidance=2.0)
    alone = [generate(model, some(inputs, [i]), sampling, [0]) for i in (0, 1)]
    rows: list[int] = []
    step = model.step
    monkeypatch.setattr(model, "step", lambda x, *rest: rows.append(len(x)) or step(x, *rest))
    same = [six.index(prompt) for prompt in six]
    codes = generate(model, some(inputs, six), sampling, [0] * 6, same=same)
    assert rows == [4] + [12] * (model.layout.codes - 1)
    assert torch.equal(codes, torch.cat([alone[i] for i in six]))
    rows.clear()  # nothing is known of these
    generate(model, some(inputs, six), sampling, [0] * 6)
    assert rows[0] == 12


@pytest.mark.parametrize("spread", [0.3, 0.001])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(2.0, temperature=0.0), Sampling(2.0), Sampling()],
    ids=["greedy", "guided", "plain"],
)
def test_float32_image_does_not_depend_on_the_batch_size(spread: float, sampling: Sampling) -> None:
    """At B's width, where kernels for one row and for many are others; of a head that is sure of
    its codes, and of one whose codes are nearly alike."""
    torch.manual_seed(0)
    model = transformer((2, 12, 768), grid=(2, 2), num_classes=20).eval()
    torch.nn.init.normal_(model.output.weight, 0.0, spread)
    classes = labels(*range(16))
    alone = torch.cat([generate(model, some(classes, [i]), sampling, [i]) for i in range(16)])
    for batch in (3, 5, 8, 16):
        together = generate(model, some(classes, slice(batch)), sampling, list(range(batch)))
        assert torch.equal(together, alone[:batch])


@pytest.mark.parametrize("is_text", [False, True])
def test_compiled_decoding_is_the_eager_one(is_text: bool) -> None:
    """Compiled once for all steps, scales, settings and batches; what the last batch left in the
    cache shows in none."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def no_gradients(*_: object) -> None:
        assert not torch.is_grad_enabled()

    decoder, wanted = Raster().compiled(backend=keep), LABELS
    model = small()
    if is_text:
        model = small(text_features=6, text_length=5)
        wanted = text(torch.randn(3, 5, 6), torch.tensor([0, 2, 5]))
    kept = None
    for seeds, sampling in (
        ([0, 1, 2], Sampling(guidance=3.0, temperature=0.0)),
        ([3, 4, 5], Sampling(guidance=2.0, top_k=8, guidance_schedule="linear")),
        ([6, 7, 8], Sampling(guidance=5.0, top_p=0.9)),
    ):
        eager = generate(model, wanted, sampling, seeds)
        compiled = generate(model, wanted, sampling, seeds, progress=no_gradients, decoder=decoder)
        assert torch.equal(compiled, eager)
        assert decoder._compiled is not None
        cache = decoder._compiled.cache(model, 6, torch.float32)
        assert kept is None or cache is kept
        kept = cache
    assert len(graphs) == 1


def test_compiled_decoding_of_a_module() -> None:
    """Where blocks are compiled for training, too, whose compiled code the prefill leaves out."""
    module = GeneratorModule(small, compile=True)
    sampling, seeds = Sampling(guidance=2.0), [0, 1, 2]
    eager = module.sample_codes(LABELS, sampling, seeds)
    decoder = Raster().compiled(backend="aot_eager")
    assert torch.equal(module.sample_codes(LABELS, sampling, seeds, decoder=decoder), eager)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, marks=pytest.mark.slow),
        pytest.param("cpu", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
def test_compiled_kernels_draw_what_eager_ones_draw(device: str, dtype: torch.dtype) -> None:
    """By the settings of `lgpl sample`, on a GPU as CUDA graphs: every code is the likeliest for
    the eager model, up to rounding."""
    torch.manual_seed(0)
    model = transformer((4, 4, 128), grid=(8, 8), num_classes=5).eval().to(device, dtype)
    torch.nn.init.normal_(model.output.weight, 0.0, 3.0)
    decoder, classes = Raster().compiled(), on(LABELS, device)
    for guidance in (1.5, 2.0, 4.0):
        sampling = Sampling(guidance, temperature=0.0)
        codes = generate(model, classes, sampling=sampling, decoder=decoder).flatten(1)
        if dtype == torch.float32:
            assert torch.equal(codes, generate(model, classes, sampling=sampling).flatten(1))
        with torch.no_grad():
            c, u = (model(codes, x).float() for x in (classes, model.condition.null(classes)))
        logits = u + guidance * (c - u)
        lacking = logits.amax(-1) - logits.gather(-1, codes[..., None]).squeeze(-1)
        assert (lacking <= (1e-3 if dtype == torch.float32 else 0.1) * logits.std(-1)).all()


@pytest.mark.parametrize("decoder", [Raster(), UncachedRaster(), SpeculativeJacobi(4)])
@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4], [0, 1, 7], [11]])
def test_given_codes_are_kept(decoder: Decoder, places: list[int]) -> None:
    """Those that an image begins with, and any others; what comes behind sees them."""
    model = small()
    given = torch.full((3, 12), -1)
    given[:, places] = torch.randint(16, (3, len(places)))
    sampling = Sampling(guidance=2.0, temperature=0.0)
    codes = generate(model, LABELS, sampling, given=given, decoder=decoder).flatten(1)
    assert torch.equal(codes[:, places], given[:, places])
    c, u = model(codes, LABELS), model(codes, model.condition.null(LABELS))
    drawn = [place for place in range(12) if place not in places]
    assert torch.equal((u + 2.0 * (c - u)).argmax(-1)[:, drawn], codes[:, drawn])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(3.0, top_k=8)])
def test_without_a_cache_the_same_codes_are_drawn(sampling: Sampling) -> None:
    model = small()
    cached = generate(model, LABELS, sampling)
    assert torch.equal(cached, generate(model, LABELS, sampling, decoder=UncachedRaster()))


def test_progress_and_mode() -> None:
    model = small().train()
    seen: list[tuple[Tensor, Tensor]] = []
    codes = generate(
        model, LABELS, progress=lambda codes, drawn: seen.append((codes.clone(), drawn.clone()))
    )
    assert [int(drawn.sum()) for _, drawn in seen] == [3 * n for n in range(1, 13)]
    assert model.training
    model(codes.flatten(1), LABELS).sum().backward()  # what was drawn can be trained on
    assert all(torch.equal(part[drawn], codes.flatten(1)[drawn]) for part, drawn in seen)


def test_schedule_is_followed() -> None:
    model = small()
    sampling = Sampling(guidance=4.0, temperature=0.0, guidance_schedule="linear")
    codes = generate(model, LABELS, sampling=sampling).flatten(1)
    c, u = model(codes, LABELS), model(codes, model.condition.null(LABELS))
    scale = torch.tensor(sampling.scales(12))[:, None]
    assert torch.equal((u + scale * (c - u)).argmax(-1), codes)


@pytest.mark.parametrize("fault", ["missing", "raises", "differs"])
def test_nothing_is_packed_where_torch_has_changed(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def product(*_: Any) -> Tensor:
        if fault == "raises":
            raise RuntimeError("no such product")
        return torch.zeros(3, 64)

    reorder = torch.ops.mkldnn._reorder_linear_weight
    operations = {"_reorder_linear_weight": reorder, "_linear_pointwise": product}
    if fault == "missing":
        del operations["_reorder_linear_weight"]
    monkeypatch.setattr(packing, "_packs", functools.cache(packing._packs.__wrapped__))
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**operations))
    for _ in range(2):
        model = small()
        pack_weights(model)
        assert isinstance(model.output, torch.nn.Linear)
    (line,) = caplog.messages
    assert line.startswith("weights are not packed for the CPU: ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_text", [False, True])
def test_packed_weights_draw_what_plain_ones_draw(dtype: torch.dtype, is_text: bool) -> None:
    model, wanted = small(), LABELS
    if is_text:
        model = small(text_features=6, text_length=5)
        wanted = text(torch.randn(3, 5, 6), torch.tensor([0, 2, 5]))
    model.to(dtype)
    packed, codes = copy.deepcopy(model), torch.randint(16, (3, model.layout.codes))
    pack_weights(packed)
    assert not any(isinstance(module, torch.nn.Linear) for module in packed.layers.modules())
    with torch.no_grad():
        torch.testing.assert_close(packed(codes, wanted), model(codes, wanted))
    sampling = Sampling(guidance=2.0, temperature=0.0)
    drawn = generate(packed, wanted, sampling)
    if dtype == torch.float32:
        assert torch.equal(drawn, generate(model, wanted, sampling))


@pytest.mark.parametrize("decoder", [Raster(), UncachedRaster()])
def test_raster_order_cannot_honour_codes_behind_a_hole(decoder: Decoder) -> None:
    """What it draws sees nothing of them; a decoder that says nothing of its order takes any."""
    layout = CodeLayout(3, 4, depth=2)
    given = torch.arange(24).expand(2, -1).clone()
    decoder.check_given(layout, given)
    given[:, 14:] = -1
    decoder.check_given(layout, given)
    given[1, 20] = 5
    with pytest.raises(UserError, match=r"its first code \(row 2, column 4 of 3x4x2\)"):
        decoder.check_given(layout, given)
    EvenFirst().check_given(layout, given)
