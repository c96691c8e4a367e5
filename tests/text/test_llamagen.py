"""Captions as LlamaGen's text models know them: the original's strings, in linear time."""

from __future__ import annotations

import json
import random
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lightning_utilities.core.imports import RequirementCache

from lgpl.errors import UserError
from lgpl.text import TextEncoder
from lgpl.text.captions import clean
from lgpl.text.llamagen import SCHEMES, without_addresses

CASES = json.loads(Path(__file__).with_name("llamagen_captions.json").read_text())["cases"]
has_packages = RequirementCache("ftfy") and RequirementCache("beautifulsoup4")
needs_packages = pytest.mark.skipif(not has_packages, reason="needs ftfy and beautifulsoup4")


@needs_packages
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["caption"][:20])
def test_the_original_makes_the_same_of_a_caption(case: dict[str, str]) -> None:
    assert clean(case["caption"], "llamagen") == case["clean"]


def test_addresses_are_what_one_expression_would_find() -> None:
    """By a regular expression that says it in one line, and takes the square of the length."""
    rng = random.Random(0)
    parts = ["a", "-", ".", "/", ":", "@", " ", "_", "é", "com", ".com", ".co", "http", "www", "1"]
    for scheme in SCHEMES:
        start = scheme.pattern.removeprefix(r"\b")
        end = r"\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
        address = re.compile(rf"\b(?:{start}|[a-zA-Z0-9.\-]+{end})")
        changed = 0
        for _ in range(10_000):
            text = "".join(rng.choices(parts, k=rng.randint(1, 12)))
            changed += (expected := address.sub("", text)) != text
            assert without_addresses(text, scheme) == expected, text
        assert changed > 1000


@needs_packages
@pytest.mark.parametrize(
    "unit",
    ["a", "1", " ", ".", "a.", "a.com", "a.com/", "http:", "www.a-", "<", "<b>", "<!--", "<a b='",
     "\n<a", "</", "&", "&amp;", "&#1;", "%20", "-", "1x", "a1b1", "1.1", "free ", ". ", "é1", "@",
     "#1", '"', "Ã©", "download ", "\u0301", "page 1", "a:", "<![", "<?"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", "é"])
def test_long_captions_take_no_longer_by_the_letter(unit: str, end: str) -> None:
    clean("a caption", "llamagen")
    begin = time.process_time()
    with suppress(ValueError):  # of what is no HTML
        clean((unit * 10_000)[: 10_000 - len(end)] + end, "llamagen")  # the longest of a shard
    assert time.process_time() - begin < 1.0


def test_a_style_is_one_of_two_and_kept() -> None:
    with pytest.raises(UserError, match="captions must be plain or llamagen, got 'shouted'"):
        TextEncoder(captions="shouted")  # type: ignore[arg-type]
    assert clean("A <b>Red</b> Fox") == clean("A <b>Red</b> Fox", "plain") == "A Red Fox"


@needs_packages
def test_an_encoder_reads_captions_in_its_style() -> None:
    encoder = TextEncoder(max_length=16, captions="llamagen")
    shouted, plain = encoder.encode(["A RED+FOX, 12x18cm AB1234567", "a red fox, 12x18cm"])
    assert shouted.shape == plain.shape and (shouted - plain).abs().max() < 1e-5
    with pytest.raises(UserError, match="is empty"):
        encoder.encode(["IMG_2041.jpg"])
    with pytest.raises(UserError, match=r"^The prompt .* cannot be cleaned \("):
        encoder.encode(["&#" + "1" * 5000 + ";"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from lgpl.text import llamagen

    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda _: False)
    llamagen._packages.cache_clear()
    with pytest.raises(UserError, match=r"llamagen needs ftfy: pip install 'lgpl\[text\]'"):
        clean("a caption", "llamagen")
