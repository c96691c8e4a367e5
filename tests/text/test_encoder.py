"""Text encoders: the real MiniLM, a real T5 of random weights, and captions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lgpl.errors import UserError
from lgpl.text import TextEncoder, clean
from lgpl.training.encoding import add_features


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
    assert minilm.count_cut([long, "short", long]) == 2
    with pytest.raises(UserError, match="52 tokens; the limit is 16"):
        minilm.encode([long], refuse_long=True)


def test_captions_that_are_cut_are_counted_where_features_are_made(minilm: TextEncoder) -> None:
    texts = {"txt": b"a red car " * 20, "json": b'{"alt": ["short", "not this one"]}'}
    members = [texts, {"txt": b"a cat"}, {}]
    assert add_features(members, ["txt", "json:alt"], minilm, torch.device("cpu")) == (1, 3)
    assert {"text.npy", "alt.text.npy"} <= members[0].keys() and "text.npy" in members[1]


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
    assert type(encoder._loaded[1]).__name__ == "T5EncoderModel"


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


def folder_of(path: Path, **config: Any) -> str:
    """A T5 in a folder that is sound but for what its config says."""
    import transformers

    from lgpl.text.encoder import _minilm_folder

    sizes = {"vocab_size": 30522, "d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    made = transformers.T5EncoderModel(transformers.T5Config(**sizes, d_kv=8))
    made.save_pretrained(path)
    transformers.AutoTokenizer.from_pretrained(_minilm_folder()).save_pretrained(path)
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(known | config))
    return str(path)


@pytest.mark.parametrize("whose", ["model", "tokenizer"])
def test_code_of_a_folder_is_not_run_whatever_the_answer(tmp_path: Path, whose: str) -> None:
    """transformers would ask on standard input, and take a `y`."""
    name = folder_of(tmp_path / "own")
    own = {"auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoTokenizer": ["own.T", 0]}}
    file = Path(name, "config.json" if whose == "model" else "tokenizer_config.json")
    named = {"model_type": "own"} if whose == "model" else {"tokenizer_class": "T"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own | named))
    Path(name, "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    script = f"from lgpl.text import TextEncoder\nTextEncoder({name!r}).encode(['cat'])\n"
    done = subprocess.run(
        [sys.executable, "-c", script], input="y\n" * 9, capture_output=True, text=True
    )
    if whose == "model":  # of a tokenizer of its own transformers takes a known one's place
        assert "UserError: The text encoder: " in done.stderr and "custom code" in done.stderr
    assert "[y/N]" not in done.stdout and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("inner", ["pix2struct", "own"])
def test_code_of_a_model_in_a_model_is_not_run(tmp_path: Path, inner: str) -> None:
    name = folder_of(tmp_path / "own")
    text = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "vocab_size": 100,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    code = {"model_type": inner, "name_or_path": name, "_name_or_path": name,
            "auto_map": {"AutoModel": "own.M", "AutoConfig": "own.C"}}  # fmt: skip
    config = {"model_type": "llava", "text_config": text, "vision_config": code}
    Path(name, "config.json").write_text(json.dumps(config))
    Path(name, "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    script = f"from lgpl.text import TextEncoder\nTextEncoder({name!r}).encode(['cat'])\n"
    done = subprocess.run(
        [sys.executable, "-c", script], input="y\n" * 9, capture_output=True, text=True
    )
    assert "UserError: The text encoder: " in done.stderr and "[y/N]" not in done.stdout
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_does_not_choose_the_attention(tmp_path: Path, key: str) -> None:
    """Kernels are fetched from the hub and run where it does."""
    encoder = TextEncoder(folder_of(tmp_path, **{key: "somebody/kernel"}), max_length=8)
    plain = TextEncoder(folder_of(tmp_path / "plain"), max_length=8)
    for made in (encoder, plain):
        assert made.encode(["a cat"])[0].shape == (4, 16)
        assert made._loaded[1].config._attn_implementation == "sdpa"


def test_pickled_code_for_weights_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    name = folder_of(tmp_path / "model")
    torch.save({"shared.weight": Code()}, f"{name}/pytorch_model.bin")
    assert TextEncoder(name, max_length=8).encode(["cat"])  # safetensors go first
    Path(name, "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled code, which is never run here"):
        TextEncoder(name).encode(["cat"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "t5", "quantization_config": {"quant_method": "fp8"}}'),
        ("config.json", "{" * 100000),
        ("tokenizer.json", "{}"),
        ("model.safetensors", "x"),
    ],
)
def test_a_damaged_folder_is_told_in_a_sentence(tmp_path: Path, file: str, content: str) -> None:
    name = folder_of(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=r"^The text encoder: '.*' cannot be loaded: [^\n]+$"):
        TextEncoder(name).encode(["cat"])
