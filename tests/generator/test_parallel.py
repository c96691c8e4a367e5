"""The parallel generator: the original's numbers, what its positions see, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lgpl.errors import UserError
from lgpl.generator import (
    ClassCondition,
    Conditions,
    GeneratorModule,
    Parallel,
    ParallelTransformer,
    Raster,
    Sampling,
    TextCondition,
    UncachedRaster,
    generate,
)
from lgpl.generator.conditions import Inputs
from lgpl.generator.decoders.base import Step, make_task
from lgpl.generator.decoders.groups import group_sizes, numbered, training_steps
from lgpl.generator.decoders.parallel import Plan
from lgpl.training import load_module
from tests.generator.test_transformer import small as raster
from tests.golden import LPD, import_golden
from tests.models import labels, on, some, text

GREEDY = Sampling(temperature=0.0)
LABELS = labels(1, 3, 4)
FEATURES = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
CLASSES = partial(ClassCondition, num_classes=5)
CAPTIONS = partial(TextCondition, features=6, length=5)
# Conditions, and inputs of three samples: a class, captions of all lengths, and both.
KINDS: dict[str, tuple[Any, Inputs]] = {
    "class": (CLASSES, LABELS),
    "text": (CAPTIONS, text(FEATURES, torch.tensor([0, 3, 5]))),
    "both": (
        partial(Conditions, parts=[CLASSES, CAPTIONS]),
        {
            "0.class": LABELS["class"],
            "1.text": FEATURES,
            "1.text_lengths": torch.tensor([0, 3, 5]),
        },
    ),
}


def small(**changes: Any) -> ParallelTransformer:
    options = {
        "condition": CLASSES, "size": (2, 2, 32), "codebook_size": 16, "grid": (3, 4),
        "dropout": 0.0, "steps": 5, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    model = ParallelTransformer(**options)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.3)  # no rounding decides between codes
    return model.eval()


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> ParallelTransformer:
    """The original's small model, as it comes out of a file with its names."""
    module = load_module(import_golden("lpd", tmp_path_factory.mktemp("lpd")), "generator")
    assert isinstance(module, GeneratorModule)
    assert isinstance(module.model, ParallelTransformer)
    return module.model


@torch.inference_mode()
def test_golden_logits_and_loss(golden: ParallelTransformer) -> None:
    wanted, orders = LPD["training"], torch.tensor(LPD["orders"])
    codes = torch.tensor(LPD["codes"]).gather(1, orders)
    group = torch.tensor(numbered(wanted["group_sizes"]))
    logits = golden(codes, labels(*LPD["labels"]), orders, group)
    assert list(logits.shape) == wanted["logits_shape"]
    for row, name in (((0, 0), "logits_row_0_0_first8"), ((1, 15), "logits_row_1_15_first8")):
        expected = torch.tensor(wanted[name])
        torch.testing.assert_close(logits[row][:8], expected, rtol=1e-4, atol=1e-6)
    assert logits.sum().item() == pytest.approx(wanted["logits_sum"], rel=1e-4)
    assert logits.abs().mean().item() == pytest.approx(wanted["logits_abs_mean"], rel=1e-4)
    loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten()).item()
    assert loss == pytest.approx(wanted["loss"], rel=1e-4)


GUIDANCES = {
    "cfg 1": Sampling(temperature=0.0),
    "cfg 4 linear": Sampling(4.0, temperature=0.0, guidance_schedule="linear"),
    "cfg 2 constant": Sampling(2.0, temperature=0.0),
}
GROUPS = {"[1, 2, 5, 8]": [1, 2, 5, 8], "[1]*16": [1] * 16, "[16]": [16]}


def planned(orders: Tensor, sizes: Sequence[int]) -> Plan:
    """Groups of orders [B, N] without given codes."""
    return Plan(orders, [0, *sizes], torch.ones_like(orders, dtype=torch.bool))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("guidance", GUIDANCES)
@torch.inference_mode()
def test_golden_tokens(golden: ParallelTransformer, guidance: str, groups: str) -> None:
    task = make_task(golden, labels(*LPD["labels"]), GUIDANCES[guidance])
    plan = planned(torch.tensor(LPD["orders"]), GROUPS[groups])
    codes = torch.full((2, 16), -1)
    for places, new in Parallel().draw(golden, task, plan):
        codes.scatter_(1, places, new)
    wanted = LPD["greedy tokens in raster order (top_k 1)"][f"{guidance}, groups {groups}"]
    assert codes.tolist() == wanted


@pytest.mark.parametrize(
    ("size", "millions", "digits"), [("L", 337, 0), ("XL", 752, 0), ("XXL", 1400, -2)]
)
def test_paper_sizes(size: str, millions: float, digits: int) -> None:
    with torch.device("meta"):
        model = small(
            size=size,
            codebook_size=16384,
            grid=(16, 16),
            condition=partial(ClassCondition, num_classes=1000),
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == millions


def everything(steps: list[Step]) -> tuple[Tensor, Tensor]:
    """Places [B, N] in the order in which they were drawn, and their codes."""
    return torch.cat([p for p, _ in steps], dim=1), torch.cat([c for _, c in steps], dim=1)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("sizes", [[1] * 12, [1, 2, 4, 5], [12]], ids=len)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_cache_equals_the_full_forward(
    kind: str, sizes: list[int], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever order and groups, with a prefix of any length, also where captions are padded."""
    condition, inputs = KINDS[kind]
    model, sizes = small(condition=condition, depth=depth), [n * depth for n in sizes]
    logits, answer = [], model.answer
    monkeypatch.setattr(model, "answer", lambda *a: logits.append(answer(*a)) or logits[-1])
    orders = torch.rand(3, 12 * depth, generator=torch.Generator().manual_seed(1)).argsort(dim=1)
    task = make_task(model, inputs, GREEDY)
    places, codes = everything([*Parallel().draw(model, task, planned(orders, sizes))])
    assert torch.equal(places, orders)
    whole = model(codes, inputs, orders, torch.tensor(numbered(sizes)))
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_queries_see_earlier_groups_and_each_other(kind: str) -> None:
    condition, inputs = KINDS[kind]
    model, sizes = small(condition=condition), [1, 2, 4, 5]
    group = torch.tensor(numbered(sizes))
    codes, order = torch.randint(16, (3, 12)), torch.rand(3, 12).argsort(dim=1)
    logits = model(codes, inputs, order, group)
    for number, first in enumerate((0, 1, 3)):  # of which groups the first code is changed
        changed = codes.clone()
        changed[:, first] = (changed[:, first] + 1) % 16
        moved = (model(changed, inputs, order, group) != logits).any(-1)
        assert not moved[:, group <= number].any() and moved[:, group > number].all()
    asked = order.clone()
    asked[:, [3, 7]] = order[:, [7, 3]]  # of the two last groups
    moved = (model(codes, inputs, asked, group) != logits).any(-1)
    assert not moved[:, group < 2].any() and moved[:, group >= 2].all()


@torch.inference_mode()
def test_padding_does_not_matter() -> None:
    """The same captions with other values in their padding are drawn alike."""
    model = small(condition=CAPTIONS)
    inputs, codes = KINDS["text"][1], torch.randint(16, (3, 12))
    other = FEATURES.clone()
    other[1, :2] = 9.0
    order = torch.arange(12).expand(3, -1)
    elsewhere = text(other, inputs["text_lengths"])
    assert torch.equal(model(codes, inputs, order), model(codes, elsewhere, order))
    assert torch.equal(generate(model, inputs, GREEDY), generate(model, elsewhere, GREEDY))


def test_raster_order_is_one_of_the_orders() -> None:
    """So a decoder that needs a forward pass alone draws with it, code after code."""
    model = small()
    codes = generate(model, LABELS, GREEDY, decoder=UncachedRaster()).flatten(1)
    assert torch.equal(model(codes, LABELS).argmax(-1), codes)


EACH = [
    Sampling(3.0, top_k=8),
    Sampling(steps=2),
    Sampling(5.0, temperature=0.0, guidance_schedule="linear", steps=12),
    Sampling(2.0, top_k=8, steps=5),
    Sampling(1.5, top_p=0.7, steps=1),
]


@pytest.mark.parametrize("is_given", [False, True])
def test_image_does_not_depend_on_its_neighbours(is_given: bool) -> None:
    """Whatever they are drawn with, in however many steps, and however much of them is given."""
    model, classes, seeds, given = small(), labels(1, 3, 4, 1, 0), [5, 6, 7, 8, 9], None
    each = [*EACH]
    if is_given:
        given = torch.full((5, 12), -1)
        for row, places in enumerate(([0, 5, 11], [], [7], [*range(1, 12)], [*range(12)])):
            given[row, places] = torch.randint(16, (len(places),))
        each[2], each[3] = Sampling(5.0, steps=11), Sampling(2.0)
    together = generate(model, classes, each, seeds, given)
    for i, sampling in enumerate(each):
        known = None if given is None else given[[i]]
        alone = generate(model, some(classes, [i]), sampling, [seeds[i]], known)
        assert torch.equal(together[[i]], alone)
        if given is not None:
            kept = given[i] >= 0
            assert torch.equal(together[i].flatten()[kept], given[i][kept])
    again = generate(model, classes, each, [9, 8, 7, 6, 5], given)
    assert not torch.equal(together, again)


def test_given_codes_are_context() -> None:
    """Greedy codes behind given ones are the likeliest of a forward pass that has read them."""
    model, given = small(), torch.full((3, 12), -1)
    given[0, [0, 7]], given[1, [11, 2]], given[2, [3, 4]] = torch.randint(16, (3, 2)).unbind()
    seen: list[Tensor] = []
    sampling = Sampling(temperature=0.0, steps=1)
    codes = generate(
        model, LABELS, sampling, given=given, progress=lambda _, drawn: seen.append(drawn.clone())
    ).flatten(1)
    assert [part.sum().item() for part in seen] == [36]
    order = (given < 0).int().argsort(dim=1, stable=True)
    group = torch.tensor(numbered([2, 10]))
    logits = model(codes.gather(1, order), LABELS, order, group)
    assert torch.equal(logits.argmax(-1)[:, 2:], codes.gather(1, order)[:, 2:])
    whole = generate(model, LABELS, given=codes)
    assert torch.equal(whole.flatten(1), codes)


def test_steps_are_as_many_as_wanted() -> None:
    model = small()
    for steps in (*range(1, 13), None):
        seen: list[int] = []
        generate(
            model, LABELS, Sampling(steps=steps),
            progress=lambda _, drawn, seen=seen: seen.append(int(drawn[0].sum())),  # type: ignore[misc]
        )  # fmt: skip
        assert len(seen) == (steps or 5) and seen[-1] == 12
    few = small(grid=(1, 3), steps=20)  # as many as there are codes, where those are fewer
    assert generate(few, LABELS).shape == (3, 1, 3)


@pytest.mark.slow
def test_compiled_decoding_is_the_eager_one() -> None:
    """Also with other settings and batches behind each other, which find the cache as it was left;
    compiled for single codes and for groups, whatever their sizes are."""
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    condition, inputs = KINDS["text"]
    model = small(condition=condition, size=(1, 2, 32))
    decoder = Parallel(5).compiled(backend=keep)
    for seeds, sampling in (
        ([0, 1, 2], Sampling(3.0, temperature=0.0)),
        ([3, 4, 5], Sampling(2.0, top_k=8, guidance_schedule="linear")),
        ([6, 7, 8], Sampling(2.0, steps=3)),
    ):
        eager = generate(model, inputs, sampling, seeds)
        assert torch.equal(generate(model, inputs, sampling, seeds, decoder=decoder), eager)
    assert len(graphs) == 2


def test_the_sum_of_the_branches_stays_float32() -> None:
    """Under autocast, as in training."""
    model, seen = small().train(), []
    model.layers[-1].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(torch.randint(16, (3, 12)), LABELS, 0)
    assert seen == [torch.float32]


def test_no_steps_are_refused() -> None:
    with pytest.raises(UserError, match=r"decoder\.steps must be >= 1, got 0"):
        Parallel(0)


def test_training_draws_orders_and_sizes_by_seed_and_step() -> None:
    model, codes = small().train(), torch.randint(16, (3, 12))
    model.condition.dropout = 0.0
    torch.manual_seed(1)
    first, second = (model.loss(codes, LABELS, step) for step in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, model.loss(codes, LABELS, 0))  # whatever was drawn meanwhile
    assert not torch.equal(first, model.loss(codes, LABELS, 0))  # another batch of the step
    model.loss(codes, LABELS, 1)
    torch.manual_seed(2)
    assert not torch.equal(first, model.loss(codes, LABELS, 0))
    seen = set()
    forward = model.forward
    model.forward = lambda c, i, order, group: (
        seen.add((*group.tolist(),)) or forward(c, i, order, group)
    )  # type: ignore
    for step in range(60):
        model.loss(codes, LABELS, step)
    steps = [steps for steps in training_steps(model.layout)]
    assert {len({*group}) for group in seen} == {*steps} and len(steps) > 3


def test_images_learned_by_heart_are_drawn_in_any_number_of_steps() -> None:
    model, codes = small(condition=CLASSES).train(), torch.randint(16, (3, 12))
    model.condition.dropout = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(300):
        loss = model.loss(codes, LABELS, step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    for steps in (1, 3, 12):
        drawn = generate(model, LABELS, Sampling(temperature=0.0, steps=steps))
        assert torch.equal(drawn.flatten(1), codes)


def test_evaluation_takes_one_order() -> None:
    """So that losses compare, and no neighbour and no batch changes them."""
    model, codes = small(), torch.randint(16, (3, 12))
    with torch.inference_mode():
        losses = model.loss(codes, LABELS, 0)
        alone = torch.cat([model.loss(codes[[i]], some(LABELS, [i]), 7) for i in range(3)])
    torch.testing.assert_close(alone, losses)
    model.loss(codes, LABELS, 0).mean().backward()  # what was kept of it can be trained on


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, marks=pytest.mark.slow),
        pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
def test_compiled_kernels_draw_what_eager_ones_draw(device: str, dtype: torch.dtype) -> None:
    """By the settings of `lgpl sample`, on a GPU as CUDA graphs."""
    model = small(size=(4, 4, 128), grid=(8, 8), steps=12).to(device, dtype)
    decoder, classes = Parallel(12).compiled(), on(LABELS, device)
    for guidance in (1.5, 2.0, 4.0):
        sampling = Sampling(guidance, temperature=0.0)
        codes = generate(model, classes, sampling, decoder=decoder)
        eager = generate(model, classes, sampling)
        same = (codes == eager).float().mean().item()
        assert same == 1 if dtype == torch.float32 else same > 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": "M"}, "'M' is none of B, L, XL"),
        ({"size": (1, 3, 32)}, "dim 32 is no multiple of 3 heads"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"grid": None}, "grid is not set"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        small(**changes)


def test_steps_out_of_range_are_named() -> None:
    with pytest.raises(UserError, match=r"^steps must be from 1 to 12, the codes to draw, got 13$"):
        generate(small(), LABELS, Sampling(steps=13))
    given = torch.full((3, 12), -1)
    given[1, :4] = 3
    with pytest.raises(UserError, match=r"^steps must be from 1 to 8, the codes to draw, got 9$"):
        generate(small(), LABELS, Sampling(steps=9), given=given)
    for model, decoder in ((raster(), Raster()), (small(), UncachedRaster())):
        name = type(decoder).__name__
        with pytest.raises(UserError, match=f"^steps must be left out, got 4: {name} takes no"):
            generate(model, LABELS, Sampling(steps=4), decoder=decoder)


def test_only_its_own_decoders_serve_it() -> None:
    with pytest.raises(UserError, match="ParallelTransformer cannot serve Raster, which needs"):
        generate(small(), LABELS, decoder=Raster())
    with pytest.raises(UserError, match="Transformer cannot serve Parallel, which needs"):
        generate(raster(), LABELS, decoder=Parallel())


def test_training_starts_from_the_same_kind_alone() -> None:
    model = small()
    model.check_start(small(), "a.ckpt")
    for other, says in (
        (raster(), "a.ckpt holds a Transformer, which is no ParallelTransformer"),
        (small(size=(2, 4, 32)), "was trained with heads 4, but the config's transformer has 2"),
        (small(grid=(2, 6)), "was trained with layout 2x6, but the config's transformer has 3x4"),
    ):
        with pytest.raises(UserError, match=says):
            model.check_start(other, "a.ckpt")


def test_sizes_of_a_whole_image_and_of_a_part() -> None:
    layout = small().layout
    assert group_sizes(layout, 12, 12) == [1] * 12 and group_sizes(layout, 7, 1) == [7]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_weights_in_bf16_draw_every_code(guidance: float) -> None:
    """On a CPU the cache stays in float32, and the scores with it."""
    model = small().bfloat16()
    codes = generate(model, labels(1, 3), Sampling(guidance, temperature=0.0))
    assert codes.shape == (2, 3, 4) and int(codes.min()) >= 0 and int(codes.max()) < 16
    plain = generate(small(), labels(1, 3), Sampling(guidance, temperature=0.0))
    assert (codes == plain).float().mean() > 0.5
