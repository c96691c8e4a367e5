"""What conditions promise: names of classes, several conditions at once, what is dropped."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lgpl.cli import main
from lgpl.commands.training import CommandLine
from lgpl.errors import UserError
from lgpl.generator import (
    ClassCondition,
    Conditions,
    GeneratorModule,
    Sampling,
    TextCondition,
    Transformer,
    generate,
)
from lgpl.generator.conditions import Inputs, Question, join
from lgpl.inference import draw_in_turn, requests_for
from lgpl.text import TextEncoder
from lgpl.training import build_module, load_module
from tests.conftest import ROOT
from tests.contracts import MeanColours
from tests.models import labels, some, text
from tests.serving.generators import MINILM, export_generator, export_tokenizer

NAMES = ["tabby cat", "Golden Retriever", "hamster", "7"]
DIM = 32


def named(names: str | list[str], num_classes: int | None = None) -> ClassCondition:
    return ClassCondition(DIM, num_classes, names=names)


def both(length: int = 5, dropout: tuple[float, float] = (0.0, 0.0), **more: Any) -> Conditions:
    """A class, then a text."""
    torch.manual_seed(0)
    of_class = partial(ClassCondition, num_classes=5, dropout=dropout[0])
    of_text = partial(TextCondition, features=6, length=length, dropout=dropout[1], **more)
    return Conditions(DIM, [of_class, of_text]).eval()


def of_both(classes: Inputs, captions: Inputs) -> Inputs:
    return Conditions._merged([classes, captions])


class Letters(TextEncoder):
    """Encodes a caption without a network: one position a letter, whose features are its code."""

    def encode(self, captions: list[str], *_: Any, **__: Any) -> list[Tensor]:
        return [torch.tensor([[float(ord(c))] * 6 for c in caption]) for caption in captions]


# Classes


def test_a_class_has_a_number_and_a_name() -> None:
    condition = named(NAMES)
    assert condition.num_classes == condition.tokens == 4
    prompts = ["golden retriever", " HAMSTER ", "1", "Tabby Cat"]
    assert join(condition.parse_each(prompts))["class"].tolist() == [1, 2, 1, 0]
    assert named([*NAMES, *"abcd"]).parse("7")["class"].tolist() == [7]  # a number before a name
    assert condition.parse("7")["class"].tolist() == [3]  # which it is no number of
    batch = {"class": torch.tensor([1, 0])}
    assert condition.captions(batch) == ["Golden Retriever", "tabby cat"]
    assert ClassCondition(DIM, 4).captions(batch) == ["class 1", "class 0"]
    assert condition.prompts() == ["0", "1", "2", "3"]
    assert condition.asks() == Question("Class, 0 to 3, or its name", NAMES, longest=16)
    assert ClassCondition(DIM, 4).asks() == Question("Class, 0 to 3", [], True, longest=9)


def test_names_of_a_file(tmp_path: Path) -> None:
    """As `lgpl data pack` writes it."""
    file = tmp_path / "classes.txt"
    file.write_text("tabby cat\nFüchse\n", "utf-8")
    assert named(str(file)).parse("füchse")["class"].tolist() == [1]
    for content, says in (
        (b"cat\n\ndog\n", "should hold a name on every line"),
        (b"", "should hold a name on every line"),
        ("Füchse".encode("latin-1"), "cannot be read as text"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"condition.names: {file} {says}"):
            named(str(file))
    with pytest.raises(UserError, match="cannot be read as text"):
        named(str(tmp_path / "none.txt"))


def test_names_of_imagenet_come_along() -> None:
    classes = named("imagenet", 1000)
    assert classes.names is not None and len({name.casefold() for name in classes.names}) == 1000
    for label, name in (
        (0, "tench"),
        (207, "Golden Retriever"),
        (388, "giant panda"),
        (999, "toilet tissue"),
    ):
        assert classes.label(name) == label
    with pytest.raises(
        UserError, match=r"'golden retreiver' is no class.*did you mean 'golden retr"
    ):
        classes.label("golden retreiver")


def test_names_and_classes_are_as_many() -> None:
    assert named(NAMES, 4).num_classes == 4
    with pytest.raises(UserError) as told:
        named(NAMES, 5)
    assert str(told.value) == "condition.names: there are 4, but num_classes is 5."
    with pytest.raises(UserError, match="num_classes is not set; give it, names, or data"):
        ClassCondition(DIM)


@pytest.mark.parametrize(
    ("names", "prompt", "says"),
    [
        (None, "4", "'4' is no class: give one from 0 to 3."),
        (None, "-1", "'-1' is no class: give one from 0 to 3."),
        (None, "²", "'²' is no class: give one from 0 to 3."),
        (NAMES, "xyz", "'xyz' is no class: give one from 0 to 3, or its name."),
        (
            NAMES,
            "golden retreiver",
            "'golden retreiver' is no class: give one from 0 to 3, or its name; did you mean "
            "'Golden Retriever'?",
        ),
    ],
)
def test_what_is_no_class_is_told(names: list[str] | None, prompt: str, says: str) -> None:
    with pytest.raises(UserError) as told:
        ClassCondition(DIM, 4, names=names).parse(prompt)
    assert str(told.value) == says


def test_a_class_is_drawn_by_its_name(tmp_path: Path, fails: Callable[..., str]) -> None:
    export_tokenizer(tmp_path / "tokenizer")
    options = {"class_path": "lgpl.generator.ClassCondition", "init_args": {"names": NAMES}}
    export_generator(tmp_path / "generator", options)
    sample = ["sample", "--checkpoint", str(tmp_path / "generator"), "--label"]
    images = []
    for label in ("1", "golden retriever"):
        main([*sample, label, "--out", str(tmp_path / "a.png")])
        images.append((tmp_path / "a.png").read_bytes())
    assert images[0] == images[1]
    main([*sample, "0", "Tabby CAT", "2", "--out", str(tmp_path / "grid.png")])
    grid = Image.open(tmp_path / "grid.png")
    assert grid.width == 3 * (20 + 6) + 6  # by numbers and names beside each other
    said = fails(*sample, "tabby", "--out", str(tmp_path / "b.png"))
    assert said.startswith("'tabby' is no class: ") and "did you mean 'tabby cat'?" in said
    assert not (tmp_path / "b.png").exists()


# Several conditions


def test_padding_of_several_conditions_goes_to_the_front() -> None:
    condition = both()
    one, other = condition.parts
    classes, captions = labels(1, 3, 4), text(torch.randn(3, 5, 6), torch.tensor([0, 2, 5]))
    x, lengths = condition(of_both(classes, captions))
    assert condition.length == 6 and x.shape == (3, 6, DIM)
    assert lengths is not None and lengths.tolist() == [1, 3, 6]
    of_class, of_text = one(classes).embeddings, other(captions).embeddings
    for i, length in enumerate([0, 2, 5]):
        real = torch.cat((of_class[i], of_text[i, 5 - length :]))
        assert torch.equal(x[i, 5 - length :], real)


def test_conditions_without_padding_have_no_lengths() -> None:
    build = partial(ClassCondition, num_classes=5)
    condition = Conditions(DIM, [build, build]).eval()
    x, lengths = condition(of_both(labels(1, 3), labels(4, 0)))
    assert lengths is None and x.shape == (2, 2, DIM) and condition.length == 2
    with pytest.raises(UserError, match="give at least one condition"):
        Conditions(DIM, [])


@pytest.mark.parametrize("dropped", [0, 1])
def test_each_condition_has_its_own_dropout(dropped: int) -> None:
    condition = both(dropout=(1.0, 0.0) if dropped == 0 else (0.0, 1.0))
    own = [labels(1, 3, 4), text(torch.randn(3, 5, 6))]
    own_null = [part.null(inputs) for part, inputs in zip(condition.parts, own, strict=True)]
    wanted = condition(of_both(*(own_null[i] if i == dropped else own[i] for i in (0, 1))))
    given = condition.train()(of_both(*own))
    assert torch.equal(given.embeddings, wanted.embeddings)


def test_a_prompt_has_a_part_for_each_condition() -> None:
    condition = both(length=12, encoder=Letters(max_length=12))
    one, other = condition.parts
    parsed = condition.parse("3 | a red ball")
    for name, value in of_both(one.parse("3"), other.parse("a red ball")).items():
        assert torch.equal(parsed[name], value)
    assert condition.positions(parsed) == 1 + len("a red ball")
    for prompt, wanted in (
        ("| a red ball", of_both(one.null(labels(0)), other.parse("a red ball"))),
        ("3 |", of_both(one.parse("3"), other.null(other.zeros(1)))),
        ("|", condition.null(condition.zeros(1))),
    ):
        found = condition.parse(prompt)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert join(condition.parse_each(["3 | a", "| bc", "3 | a"]))["0.class"].tolist() == [3, 5, 3]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("3", "The condition has 2 parts, with | between them; the prompt '3' has 1."),
        (
            "3 | a | b",
            "The condition has 2 parts, with | between them; the prompt '3 | a | b' has 3.",
        ),
        ("5 | a", "'5' is no class: give one from 0 to 4."),
    ],
)
def test_wrong_parts_are_told(prompt: str, says: str) -> None:
    condition = both(encoder=Letters(max_length=5))
    for ask in (condition.parse, condition.check):
        with pytest.raises(UserError) as told:
            ask(prompt)
        assert str(told.value) == says


def test_batches_and_captions_of_several_conditions() -> None:
    condition = both()
    batch = {"class": torch.tensor([1, 3]), **text(torch.randn(2, 5, 6))}
    inputs = condition.inputs(batch)
    assert torch.equal(inputs["0.class"], batch["class"])
    assert torch.equal(inputs["1.text"], batch["text"])
    assert condition.captions(batch) == ["class 1", "class 3"]
    batch["caption"] = ["a cat", "a dog"]
    assert condition.captions(batch) == ["class 1 | a cat", "class 3 | a dog"]
    assert condition.limits() == {"num_classes": 5, "text_features": 6, "text_length": 5}
    assert condition.asks().label == "Class, 0 to 4 | What to show"
    with pytest.raises(UserError, match=r"data\.fields lacks class"):
        condition.inputs({"text": batch["text"]})


def test_padding_of_neighbours_does_not_show() -> None:
    """Neither in training nor in sampling; as if there were no padding at all."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"size": (2, 2, DIM), "codebook_size": 16, "grid": (3, 4)}
    size |= {"dropout": 0.0, "token_dropout": 0.0}
    model = Transformer(lambda dim: both(), **size).train()
    nn.init.normal_(model.output.weight)
    lengths = [0, 2, 5, 3]
    captions = text(torch.randn(4, 5, 6), torch.tensor(lengths))
    inputs, codes = of_both(labels(1, 3, 4, 1), captions), torch.randint(16, (4, 12))
    logits, sampling = model(codes, inputs), Sampling(guidance=2.0, temperature=0.0)
    drawn = generate(model, inputs, sampling)
    for i, length in enumerate(lengths):
        alone = some(inputs, [i])
        torch.testing.assert_close(model(codes[[i]], alone), logits[[i]])
        assert torch.equal(generate(model, alone, sampling), drawn[[i]])
        if not length:
            continue
        short = Transformer(partial(_shortened, length=length), **size).train()
        state = {n: t for n, t in model.state_dict().items() if "null_features" not in n}
        short.load_state_dict(state, strict=False)
        alone["1.text"] = alone["1.text"][:, 5 - length :]
        torch.testing.assert_close(short(codes[[i]], alone), logits[[i]])


def _shortened(dim: int, length: int) -> Conditions:
    return both(length)


# Dropping


@pytest.mark.parametrize("kind", ["class", "text", "own"])
def test_a_dropped_condition_is_the_null_one(kind: str) -> None:
    """Of a sample all of it or nothing."""
    torch.manual_seed(0)
    samples = 60
    condition, inputs = {
        "class": (ClassCondition(DIM, 5), labels(*(i % 5 for i in range(samples)))),
        "text": (TextCondition(DIM, 6, 5), text(torch.randn(samples, 5, 6))),
        "own": (MeanColours(DIM), {"colours": torch.rand(samples, 4, 3)}),
    }[kind]
    null = condition.eval()(condition.null(inputs)).embeddings
    kept = condition(inputs).embeddings
    condition.train().dropout = 1.0
    assert torch.equal(condition(inputs).embeddings, null)
    condition.dropout = 0.0
    assert torch.equal(condition(inputs).embeddings, kept)
    condition.dropout = 0.5
    x = condition(inputs).embeddings
    is_null, is_kept = ((x == one).flatten(1).all(1) for one in (null, kept))
    assert (is_null != is_kept).all() and 15 < is_null.sum() < 45
    assert torch.equal(condition.eval()(inputs).embeddings, kept)


# Captions


def test_captions_of_data_are_cut_where_prompts_are_refused(tmp_path: Path) -> None:
    export_tokenizer(tmp_path / "tokenizer")
    export_generator(tmp_path / "generator", MINILM)
    module = load_module(tmp_path / "generator", "generator")
    assert isinstance(module, GeneratorModule)
    condition, long = module.model.condition, "a very long caption " * 20
    for ask in (condition.parse, condition.check):
        with pytest.raises(UserError, match="tokens; the limit is 24"):
            ask(long)
    wanted = condition.inputs({"caption": [long]})
    found = join(condition.parse_each([long, "a cat"], cut=True))
    assert torch.equal(found["text"][:1], wanted["text"]) and found["text_lengths"][0] == 24
    alone = condition.parse("a cat")
    assert join([alone])["text"].equal(found["text"][1:])  # to the bit, whatever stands beside it
    requests = requests_for([long, "a cat"], Sampling(), 0)
    ((numbers, images),) = draw_in_turn(module, requests, 2)
    assert numbers == [0, 1] and images is not None and images.shape == (2, 3, 24, 20)


def test_nobody_asks_what_kind_a_condition_is() -> None:
    for path in (ROOT / "lgpl").rglob("*.py"):
        assert not re.search(r"isinstance\([^()]*Condition", path.read_text("utf-8")), path


def test_a_checkpoint_carries_the_names_themselves(tmp_path: Path) -> None:
    """Whoever gets it has no file of them."""
    names = [f"kind {i}" for i in range(10)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    condition = "--model.init_args.transformer.init_args.condition.init_args"
    line = ["-c", "configs/generator/cifar10.yaml", "--trainer.logger", "false"]
    line += [f"{condition}.names", str(tmp_path / "classes.txt"), "--trainer.accelerator", "cpu"]
    config = CommandLine(line, run=False).model.config
    (tmp_path / "classes.txt").unlink()
    with torch.device("meta"):
        module = build_module(config)
        module.configure_model()
    assert isinstance(module, GeneratorModule)
    assert isinstance(module.model.condition, ClassCondition)
    assert module.model.condition.names == names


class Nothing(MeanColours):
    """Reads nothing of a batch."""

    def inputs(self, batch: Any) -> Inputs:
        return {}


class Short(MeanColours):
    length = 0


def test_a_condition_of_ones_own_that_cannot_be() -> None:
    with pytest.raises(UserError, match="Short has a prefix of length 0; the first code is"):
        Transformer(Short, (1, 2, 8), 16, (2, 2))
    condition = Nothing(8)
    with pytest.raises(UserError, match="inputs and parse give at least one tensor"):
        condition(condition.inputs({}))
    several = Conditions(8, [partial(ClassCondition, num_classes=5), Nothing])
    with pytest.raises(UserError, match="inputs and parse give at least one tensor"):
        several(several.inputs({"class": torch.tensor([1, 2])}))
