"""Filters and the choice among captions, on real samples through the whole stream."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lgpl.cli import main
from lgpl.data.decode import BadSample, SampleDecoder
from lgpl.data.filters import Filter, JsonCondition, Unwanted
from lgpl.data.members import features_name
from lgpl.errors import UserError
from tests.data.test_datamodule import module, take, train
from tests.data.test_decode import npy
from tests.shards import image_bytes, write_shard


def sample(i: int, **values: Any) -> dict[str, Any]:
    size = values.pop("size", (40, 32))
    return {
        "__key__": f"{i:05d}",
        "jpg": image_bytes(i, size),
        "txt": values.pop("txt", f"image {i}").encode(),
        "json": json.dumps(values).encode(),
    }


def test_the_stream_gives_the_wanted_and_counts_the_others(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "a.tar",
        [
            sample(0, aesthetic=6.5, NSFW="UNLIKELY"),
            sample(1, aesthetic=4.0, NSFW="UNLIKELY"),
            sample(2, aesthetic=7.0, NSFW="NSFW"),
            sample(3, NSFW="UNLIKELY"),
            sample(4, aesthetic=6.0, NSFW="UNLIKELY", size=(20, 60)),
            sample(5, aesthetic=6.0, NSFW="UNLIKELY", size=(100, 40)),
            sample(6, aesthetic=6.0, NSFW="UNLIKELY", txt="x"),
            sample(7, aesthetic=6.0, NSFW="UNLIKELY"),
        ],
    )
    wanted = Filter(
        min_side=32,
        max_aspect_ratio=2.0,
        caption_length=(3, 20),
        json={"aesthetic": JsonCondition(min=6.0), "NSFW": JsonCondition(only=["UNLIKELY"])},
    )
    loader = train(module(train=shard, filter=wanted, batch_size=2, epoch_samples=100))
    assert set(take(loader, 4)) == {"00000", "00007"}
    causes = {cause for cause, count in loader.skipped.items() if count >= 3}
    assert causes == {
        "'aesthetic' in the JSON is not wanted",
        "'NSFW' in the JSON is not wanted",
        "no 'aesthetic' in the JSON",
        "side below 32 px",
        "aspect ratio above 2",
        "caption not of 3 to 20 characters",
    }
    assert loader.skipped_counts.bad == 0  # left out is not bad: data.max_bad does not count it


def test_filters_that_leave_nothing_end_with_a_sentence(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [sample(i, score=1) for i in range(4)])
    wanted = Filter(json={"scoer": JsonCondition(min=0)})
    with pytest.raises(UserError, match=r"No usable sample .* no 'scoer' in the JSON"):
        take(train(module(train=shard, filter=wanted)), 1)


def test_code_shards_are_filtered_by_the_size_in_the_json() -> None:
    decoder = SampleDecoder(["codes"], (16, 16), filter=Filter(min_side=500))
    codes = npy(np.zeros((2, 2), np.uint16))

    def decode(text: str) -> Any:
        raw = {"__key__": "k", "codes.npy": codes, "json": text.encode()}
        return decoder(raw, random.Random(0))

    assert decode('{"width": 512, "height": 600}')["codes"].shape == (2, 2)
    with pytest.raises(Unwanted, match="side below 500 px"):
        decode('{"width": 512, "height": 300}')
    for text, cause in (("{}", "width and height"), ("[1]", "no object"), ("{", "not parse")):
        with pytest.raises(BadSample, match=cause):
            decode(text)


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        (JsonCondition(min=1), 1, True),
        (JsonCondition(min=1), 0.5, False),
        (JsonCondition(max=1), 2, False),
        (JsonCondition(min=1), "2", False),
        (JsonCondition(only=["en", "de"]), "de", True),
        (JsonCondition(only=["en"]), "fr", False),
        (JsonCondition(only=[False]), False, True),
    ],
)
def test_conditions(condition: JsonCondition, value: Any, holds: bool) -> None:
    assert condition.holds(value) is holds


def test_captions_are_drawn_by_weight_and_fixed_in_evaluation() -> None:
    raw = {
        "__key__": "k",
        "txt": b"a long caption",
        "short.txt": b"short",
        "json": b'{"alt": "from the web"}',
        "text.npy": npy(np.zeros((3, 4), np.float16)),
        "short.text.npy": npy(np.ones((1, 4), np.float16)),
        "alt.text.npy": npy(np.ones((2, 4), np.float16)),
    }
    weights = {"txt": 0.5, "short.txt": 0.3, "json:alt": 0.2}
    fields = ["caption", "text"]
    decoder = SampleDecoder(fields, (16, 16), augment=True, captions=weights)  # type: ignore[arg-type]
    assert {"txt", "short.txt", "json", "text.npy", "short.text.npy"} <= decoder.members
    drawn = [decoder(raw, random.Random(seed)) for seed in range(2000)]
    counts = Counter(sample["caption"] for sample in drawn)
    assert counts["a long caption"] == pytest.approx(1000, abs=100)
    assert counts["short"] == pytest.approx(600, abs=100)
    assert counts["from the web"] == pytest.approx(400, abs=100)
    lengths = {"a long caption": 3, "short": 1, "from the web": 2}
    assert all(len(s["text"]) == lengths[s["caption"]] for s in drawn)  # they belong together
    still = SampleDecoder(fields, (16, 16), captions=weights)  # type: ignore[arg-type]
    assert {still(raw, random.Random(s))["caption"] for s in range(20)} == {"a long caption"}
    del raw["short.txt"], raw["short.text.npy"]
    drawn = [decoder(raw, random.Random(seed)) for seed in range(200)]
    assert {sample["caption"] for sample in drawn} == {"a long caption", "from the web"}


def test_names_of_features() -> None:
    names = [features_name(caption) for caption in ("txt", "short.txt", "json:alt")]
    assert names == ["text.npy", "short.text.npy", "alt.text.npy"]


def test_one_of_several_crops_codes_in_training_and_the_first_in_evaluation() -> None:
    codes = np.arange(20, dtype=np.uint16)[:, None, None, None].repeat(2, 2).repeat(2, 3)
    raw = {"__key__": "k", "codes.npy": npy(codes)}
    training = SampleDecoder(["codes"], (16, 16), augment=True)
    seen = {int(training(raw, random.Random(s))["codes"][0, 0]) for s in range(300)}
    assert seen == set(range(20))
    still = SampleDecoder(["codes"], (16, 16))
    assert {int(still(raw, random.Random(s))["codes"][0, 0]) for s in range(20)} == {0}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"data.filter.json.score: give min, max or only"):
        Filter(json={"score": JsonCondition()})
    with pytest.raises(UserError, match=r"max_aspect_ratio: 0.5 is below 1"):
        Filter(max_aspect_ratio=0.5)
    with pytest.raises(UserError, match=r"data.captions: weights are at least 0"):
        module(train="a.tar", captions={"txt": 0.0})
    with pytest.raises(UserError, match=r"data.train: weights of data sets are above 0"):
        module(train={"a.tar": 0.0})


@pytest.mark.parametrize("by", ["file", "option"])
def test_text_stays_text(tmp_path: Path, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the list of Norway's and other languages, and of postal codes."""
    values = ("no", "en", False, 7, "007", "7", "null", 1, True)
    shard = write_shard(tmp_path / "a.tar", [sample(i, x=x) for i, x in enumerate(values)])
    given = '{x: {only: ["no", "007", "null", 1]}}'
    file = tmp_path / "filter.yaml"
    file.write_text(f"data: {{filter: {{json: {given}}}}}")
    option = ("-c", str(file)) if by == "file" else ("--data.filter.json", given)
    with pytest.raises(SystemExit):
        main(["fit", "-c", "tokenizer/emoji.yaml", *option, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["data"]["filter"]["json"]["x"]["only"]
    assert printed == ["no", "007", "null", 1] and type(printed[3]) is int
    wanted = Filter(json={"x": JsonCondition(only=printed)})
    loader = train(module(train=shard, filter=wanted, batch_size=4, epoch_samples=100))
    assert set(take(loader, 3)) == {"00000", "00004", "00006", "00007"}


def test_a_text_that_yaml_takes_for_false_is_told() -> None:
    with pytest.raises(UserError, match=r"x.only: \['en', False\] mixes texts and truth values"):
        Filter(json={"x": JsonCondition(only=yaml.safe_load("[en, no]"))})


def test_one_of_a_list_of_captions_in_training_and_the_first_in_evaluation() -> None:
    """As COCO's, several texts for an image."""
    texts = ["", "one <b>cat</b>", None, "two cats", "  ", "http://a.b/c", "three cats", 4]

    def raw(value: Any) -> dict[str, Any]:
        return {"__key__": "k", "json": json.dumps({"captions": value}).encode()}

    options: dict[str, Any] = {"captions": {"json:captions": 1.0}}
    training = SampleDecoder(["caption"], (16, 16), augment=True, **options)
    counts = Counter(training(raw(texts), random.Random(s))["caption"] for s in range(600))
    assert counts.keys() == {"one cat", "two cats", "three cats"} and min(counts.values()) > 140
    still = SampleDecoder(["caption"], (16, 16), **options)
    assert {still(raw(texts), random.Random(s))["caption"] for s in range(20)} == {"one cat"}
    for decoder in (training, still):
        assert decoder(raw("a text"), random.Random(0))["caption"] == "a text"
        for nothing in ([], ["", " "], [None, 3], [["nested"]]):
            with pytest.raises(
                BadSample, match="without a text in the list of captions 'captions'"
            ):
                decoder(raw(nothing), random.Random(0))
        with pytest.raises(BadSample, match="JSON without the caption 'captions'"):
            decoder(raw(None), random.Random(0))
        for other in ({"a": "b"}, 4, True):
            with pytest.raises(BadSample, match="'captions' is neither a text nor a list of texts"):
                decoder(raw(other), random.Random(0))
    # What the filter has looked at is what is given.
    long = SampleDecoder(
        ["caption"], (16, 16), augment=True, filter=Filter(caption_length=(8, 9)), **options
    )
    for seed in range(40):
        try:
            assert long(raw(texts), random.Random(seed))["caption"] == "two cats"
        except Unwanted:
            continue


def test_features_belong_to_the_first_of_a_list_of_captions() -> None:
    features = {"captions.text.npy": npy(np.zeros((3, 4), np.float16))}
    raw = {"__key__": "k", "json": b'{"captions": ["one", "two"]}', **features}
    fields, captions = ["caption", "text"], {"json:captions": 1.0}
    decoder = SampleDecoder(fields, (16, 16), augment=True, captions=captions)  # type: ignore[arg-type]
    assert {decoder(raw, random.Random(s))["caption"] for s in range(20)} == {"one"}


def test_a_part_of_a_caption_is_a_caption_of_its_own() -> None:
    raw = {
        "__key__": "k",
        "__shard__": "s",
        "txt": b"A red fox. It sits in the snow,\nand looks up.",
        "json": b'{"alt": ["A fox. Snow."]}',
        "first-sentence.text.npy": npy(np.ones((2, 4), np.float16)),
    }
    for name, expected in (
        ("txt", "A red fox. It sits in the snow, and looks up."),
        ("first-sentence:txt", "A red fox."),
        ("first-line:txt", "A red fox. It sits in the snow,"),
        ("first-sentence:json:alt", "A fox."),
    ):
        decoder = SampleDecoder(["caption"], (8, 8), captions={name: 1.0})
        assert decoder(raw, random.Random(0))["caption"] == expected
        assert decoder.members == {"json" if "json" in name else "txt"}
    names = [features_name(f"first-line:{name}") for name in ("txt", "short.txt", "json:alt")]
    parts = ["", "short.", "alt."]
    assert names == [f"first-line.{part}text.npy" for part in parts]
    both = SampleDecoder(["caption", "text"], (8, 8), captions={"first-sentence:txt": 1.0})
    assert both(raw, random.Random(0))["text"].shape == (2, 4)


@pytest.mark.parametrize("name", ["first-word:txt", "first-line:first-sentence:txt", "JSON:alt"])
def test_a_caption_by_an_unknown_rule_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"data.captions: '{name}' is none of txt, NAME.txt or"):
        module(captions={name: 1.0})


def test_captions_of_another_style_are_left_to_the_encoder() -> None:
    pytest.importorskip("ftfy"), pytest.importorskip("bs4")
    decoder = SampleDecoder(["caption"], (8, 8), caption_style="llamagen")
    raw = {"__key__": "k", "__shard__": "s", "txt": b" A <b>RED</b> fox \n"}
    assert decoder(raw, random.Random(0))["caption"] == "A <b>RED</b> fox"
    with pytest.raises(BadSample, match="empty caption"):  # as it is cleaned
        decoder(raw | {"txt": b"IMG_2041.jpg"}, random.Random(0))
    short = SampleDecoder(["caption"], (8, 8), caption_style="llamagen",
                          filter=Filter(caption_length=(9, 9)))  # fmt: skip
    assert short(raw, random.Random(0))["caption"] == "A <b>RED</b> fox"
