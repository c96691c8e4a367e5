"""The plugin in the real engine; `make test-serving` brings the environment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lgpl.errors import UserError
from lgpl.generator import Sampling, Transformer, generate
from lgpl.generator.conditions import Inputs, join
from lgpl.serving.vllm import Client
from lgpl.text.encoder import left_pad
from tests.models import labels, text
from tests.serving.generators import (
    FEATURES,
    TEXT_LENGTH,
    class_config,
    export_generator,
    text_config,
)

pytestmark = pytest.mark.serving

GREEDY = Sampling(temperature=0.0)
GUIDED = Sampling(guidance=2.5, temperature=0.0)
SCHEDULED = [
    Sampling(4.0, 25, 0.0, guidance_schedule="power-cosine", guidance_start=3),
    Sampling(4.0, None, 0.0, guidance_schedule="linear"),
    Sampling(4.0, None, 0.0, guidance_schedule="cosine"),
    Sampling(4.0, 20, 0.0, guidance_start=10),
]
CLASSES, TEXT = class_config(10), text_config(FEATURES, TEXT_LENGTH)


@contextlib.contextmanager
def engine(folder: Path, **settings: Any) -> Iterator[Any]:
    import vllm

    settings = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 5, **settings}
    llm = vllm.LLM(model=str(folder), **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def draw(llm: Any, client: Client, prompts: list[Any], sampling: Sampling | list[Any]) -> Tensor:
    params = sampling
    if isinstance(sampling, Sampling):
        params = client.params(sampling, range(len(prompts)))
    return client.codes(llm.generate(prompts, params, use_tqdm=False))


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Client, Any]]:
    folder = tmp_path_factory.mktemp("classes")
    model = export_generator(folder, CLASSES, prefix_rope="zero")
    with engine(folder) as llm:
        yield llm, Client(folder), model


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Client, Any]]:
    """An engine with room for only few requests, in chunks of 7 positions: it has to interrupt
    some and compute them again."""
    folder = tmp_path_factory.mktemp("text")
    model = export_generator(folder, TEXT)
    starved = {"num_gpu_blocks_override": 6, "block_size": 32, "max_num_batched_tokens": 7}
    with engine(folder, **starved, disable_log_stats=False) as llm:
        yield llm, Client(folder), model


def each(classes: list[int]) -> list[Inputs]:
    return [labels(number) for number in classes]


def captions(lengths: list[int], prefix: int = TEXT_LENGTH) -> list[Inputs]:
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(n, FEATURES, generator=generator) for n in lengths]
    return [text(*left_pad([one], prefix)) for one in features]


@pytest.mark.parametrize("sampling", [GREEDY, GUIDED, *SCHEDULED])
def test_classes(of_classes: tuple[Any, Client, Transformer], sampling: Sampling) -> None:
    """More requests than the engine runs at once; every code is the sampler's."""
    llm, client, model = of_classes
    inputs = each([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 3, 3])
    wanted = generate(model, join(inputs), sampling)
    assert torch.equal(draw(llm, client, client.prompts(inputs), sampling), wanted)
    assert wanted.unique().numel() > 10  # no image of one code


def test_each_request_has_its_own_scale(of_classes: tuple[Any, Client, Transformer]) -> None:
    llm, client, model = of_classes
    scales = [1.0, 1.5, 4.0, 0.0, 7.5, 2.0, 1.0, 3.0]
    samplings = [*(Sampling(scale, temperature=0.0) for scale in scales), *SCHEDULED]
    params = [param for s in samplings for param in client.params(s, [0])]
    drawn = draw(llm, client, client.prompts(each([3] * len(samplings))), params)
    wanted = [generate(model, labels(3), s) for s in samplings]
    assert torch.equal(drawn, torch.cat(wanted))
    assert not torch.equal(drawn[0], drawn[2])


def test_draws_are_codes_and_repeat(of_classes: tuple[Any, Client, Transformer]) -> None:
    llm, client, model = of_classes
    sampling, prompts = Sampling(2.0, top_k=20, top_p=0.9), client.prompts(each([1] * 6))
    first, second = (draw(llm, client, prompts, sampling) for _ in range(2))
    assert torch.equal(first, second) and int(first.max()) < model.codebook_size
    assert len({tuple(codes.flatten().tolist()) for codes in first}) == 6


@pytest.mark.parametrize("sampling", [GREEDY, GUIDED, SCHEDULED[0]])
def test_captions_of_every_length(
    of_text: tuple[Any, Client, Transformer], sampling: Sampling
) -> None:
    llm, client, model = of_text
    inputs = captions([*range(TEXT_LENGTH + 1), 3, 0, 7])
    wanted = generate(model, join(inputs), sampling)
    assert torch.equal(draw(llm, client, client.prompts(inputs), sampling), wanted)
    interrupted = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
    assert sum(interrupted) > 0


def test_captions_of_the_papers_length(tmp_path: Path) -> None:
    """From 1 to 120 positions, and no more; neighbours of one length are not mistaken for each
    other where their cache is kept, and long ones come in pieces."""
    model = export_generator(tmp_path, text_config(FEATURES, 120))
    client = Client(tmp_path)
    inputs = captions([1, 2, 63, 64, 65, 119, 120, 120, 120, 1], 120)
    wanted = generate(model, join(inputs), GUIDED)
    settings = {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 24, "block_size": 32}
    with engine(tmp_path, **settings) as llm:
        prompts = client.prompts(inputs)
        assert torch.equal(draw(llm, client, prompts, GUIDED), wanted)
        assert torch.equal(draw(llm, client, prompts, GUIDED), wanted)  # from the cache
    with pytest.raises(UserError, match="hold 121 positions, the model's prefix 120"):
        client.prompts(captions([121], 121))


def test_several_conditions_at_once(tmp_path: Path) -> None:
    """A class before captions of several lengths: padding stands between them, and is moved."""
    parts = {"class_path": "lgpl.generator.Conditions", "init_args": {"parts": [CLASSES, TEXT]}}
    model, client = export_generator(tmp_path, parts), Client(tmp_path)
    numbers, texts = [3, 0, 9, 3], captions([4, 0, TEXT_LENGTH, 1])
    inputs = [
        {"0.class": torch.tensor([number]), **{f"1.{name}": value for name, value in one.items()}}
        for number, one in zip(numbers, texts, strict=True)
    ]
    wanted = generate(model, join(inputs), GUIDED)
    with engine(tmp_path) as llm:
        assert torch.equal(draw(llm, client, client.prompts(inputs), GUIDED), wanted)


def test_bad_requests_leave_the_engine_running(of_text: tuple[Any, Client, Transformer]) -> None:
    llm, client, _ = of_text
    (params,) = client.params(GUIDED, [0])
    (prompt,) = client.prompts(captions([2]))
    for guidance in (-1, "much", float("nan"), True):
        params.extra_args = {"guidance": guidance}
        with pytest.raises(Exception, match=r"guidance must be"):
            llm.generate([prompt], params, use_tqdm=False)
    (params,) = client.params(GUIDED, [0])
    params.max_tokens = 38  # more codes than an image has
    llm.generate([{"prompt_token_ids": [10**6]}, prompt], params, use_tqdm=False)
    drawn = draw(llm, client, [prompt], GUIDED)
    assert torch.equal(drawn, draw(llm, client, [prompt], GUIDED))


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        pytest.param(
            {
                "condition": class_config(1000),
                "size": [2, 2, 200],
                "qk_norm": True,
                "target_positions": True,
            },
            {},
            id="head of 100, as the 3B has; more classes than codes; what random orders need",
        ),
        pytest.param({}, {"enforce_eager": False}, id="compiled"),
    ],
)
def test_other_sizes(tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]) -> None:
    model = export_generator(tmp_path, **{"condition": CLASSES, **changes})
    client, inputs = Client(tmp_path), each([0, 5, 9])
    wanted = generate(model, join(inputs), GUIDED)
    with engine(tmp_path, **settings) as llm:
        assert torch.equal(draw(llm, client, client.prompts(inputs), GUIDED), wanted)


def test_two_devices_are_refused(tmp_path: Path) -> None:
    export_generator(tmp_path, CLASSES)
    with (
        pytest.raises((UserError, ValueError), match="tensor_parallel_size"),
        engine(tmp_path, tensor_parallel_size=2),
    ):
        pass


def test_client_names_mistakes(tmp_path: Path) -> None:
    export_generator(tmp_path / "classes", CLASSES)
    export_generator(tmp_path / "text", TEXT)
    classes, texts = Client(tmp_path / "classes"), Client(tmp_path / "text")
    mistakes: list[tuple[str, Callable[[], Any]]] = [
        ("'10' is no class: give one from 0 to 9", lambda: classes.prompts(each([3, 10]))),
        ("inputs must be class, .* got text, text_lengths", lambda: classes.prompts(captions([1]))),
        ("inputs must be text, text_lengths, .* got class", lambda: texts.prompts(each([1]))),
        ("hold 11 positions, the model's prefix 10", lambda: texts.prompts(captions([11], 11))),
    ]
    for message, make in mistakes:
        with pytest.raises(UserError, match=message):
            make()
    assert texts.prompts([]) == []
