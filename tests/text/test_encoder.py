"""Text encoders: the real MiniLM, a real T5 of random weights, and captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lgpl.errors import UserError
from lgpl.text import TextEncoder, clean


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder("minilm", max_length=16)


def test_minilm_knows_meaning(minilm: TextEncoder) -> None:
    pizza, slice_, car = (
        f.mean(0) for f in minilm.encode(["pizza", "a slice of pizza", "a fast red car"])
    )
    similar = torch.nn.functional.cosine_similarity
    assert similar(pizza, slice_, dim=0) > similar(pizza, car, dim=0) + 0.2


def test_features_do_not_depend_on_the_batch(minilm: TextEncoder) -> None:
    captions = ["cat", "a long caption about a very red house"]
    together = minilm.encode(captions)
    assert [f.shape[1] for f in together] == [384, 384] and len(together[0]) < len(together[1])
    for alone, caption in zip(together, captions, strict=True):
        assert torch.allclose(alone, minilm.encode([caption])[0], atol=1e-5)


def test_long_captions_are_cut_or_refused(minilm: TextEncoder) -> None:
    long = "word " * 50
    assert len(minilm.encode([long])[0]) == 16
    with pytest.raises(UserError, match="52 tokens; the limit is 16"):
        minilm.encode([long], refuse_long=True)


@pytest.mark.parametrize("empty", ["", "  ", "<br>"])
def test_empty_prompt(minilm: TextEncoder, empty: str) -> None:
    with pytest.raises(UserError, match="is empty"):
        minilm.encode([empty])


def test_unknown_encoder() -> None:
    with pytest.raises(UserError, match="'/nowhere/at-all' cannot be loaded"):
        TextEncoder("/nowhere/at-all").encode(["cat"])


def test_t5_family_by_path(tmp_path: Path) -> None:
    """A T5 in a folder is read by its encoder alone; its vocabulary is one that is at hand."""
    import transformers

    from lgpl.text.encoder import _minilm_folder

    config = transformers.T5Config(
        vocab_size=30522, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(_minilm_folder()).save_pretrained(tmp_path)
    encoder = TextEncoder(str(tmp_path), max_length=8)
    features = encoder.encode(["a cat", "a cat and a dog"])
    assert [tuple(f.shape) for f in features] == [(4, 16), (7, 16)]
    assert type(encoder._load()[1]).__name__ == "T5EncoderModel"


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  A   cat\n on a mat ", "A cat on a mat"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("<b>red</b> car", "red car"),
        ("see https://a.b/c?d=e now", "see now"),
        ("IMG_0042.JPG beach", "beach"),
        ("price < 5 and > 3", "price < 5 and > 3"),
        ("ﬁne café", "fine café"),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
