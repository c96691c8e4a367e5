"""CLIP on small models of the real architecture: features, and the score of pairs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.errors import UserError
from lgpl.metrics import CLIPScore
from lgpl.metrics.extractors import to_bytes
from tests.metrics.pretrained import clip
from tests.metrics.test_pairs import smooth

CAPTIONS = ["a cat", "a dog", "a cat and a dog", "dog " * 50]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return clip(tmp_path_factory.mktemp("models") / "tiny-clip")


def photographs() -> torch.Tensor:
    """uint8 [4, 3, 240, 200]."""
    found = []
    for name in ("astronaut", "coffee"):
        image = Image.open(Path("tests/data/photographs") / f"{name}.jpg").convert("RGB")
        for left in (0, 60):
            found.append(np.asarray(image.crop((left, 0, left + 200, 240))).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found).copy())


def by_hand(folder: str, images: torch.Tensor, captions: list[str]) -> float:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cosines = []
    for pixel, caption in zip(pixels["pixel_values"], captions, strict=True):
        ids = tokenizer(caption, return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            out = model(**ids, pixel_values=pixel[None])
        cosines.append((out.logits_per_image / model.logit_scale.exp()).item())
    return max(0.0, 100 * sum(cosines) / len(cosines))


def test_the_score_is_that_of_the_model_by_hand(folder: str) -> None:
    """Of photographs in batches, of pixels in [-1, 1], and with a prefix."""
    images = photographs()
    for prefix in ("", "A photo depicts "):
        score = CLIPScore(folder, prefix)
        score.update(images[:3], CAPTIONS[:3])
        score.update(images[3:], CAPTIONS[3:])
        score.update(images[:0], [])  # a rank whose last batch is padding
        expected = by_hand(folder, images, [prefix + caption for caption in CAPTIONS])
        assert score.compute().item() == pytest.approx(expected, abs=1e-4) and expected > 0
    assert score.name == "CLIP score[tiny-clip]"
    made = {"model": folder, "prefix": "A photo depicts ", "N": 4}
    assert score.provenance(4) == made
    score.reset()
    floats = smooth(4, 0)
    score.update(floats, CAPTIONS)
    expected = by_hand(folder, to_bytes(floats), [f"A photo depicts {c}" for c in CAPTIONS])
    assert score.compute().item() == pytest.approx(expected, abs=1e-4)


def test_the_score_is_that_of_torchmetrics(folder: str) -> None:
    from torchmetrics.functional.multimodal import clip_score
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    class Features(CLIPModel):
        """torchmetrics takes the features themselves, as transformers 4 gave them."""

        def get_image_features(self, *args: Any) -> torch.Tensor:
            return super().get_image_features(*args).pooler_output

        def get_text_features(self, *args: Any) -> torch.Tensor:
            return super().get_text_features(*args).pooler_output

    images, tokens = (
        AutoImageProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )

    def processor(text: Any = None, images_: Any = None, **options: Any) -> Any:
        shown = options.pop("images", None)
        if text is not None:
            return tokens(text, **options)
        options.pop("padding")
        return images([image.permute(1, 2, 0).numpy() for image in shown], **options)

    pictures, captions = photographs(), [*CAPTIONS[:3], "a dog and a dog"]
    model = Features.from_pretrained(folder).eval()
    expected = clip_score(pictures, captions, lambda: (model, processor)).item()
    score = CLIPScore(folder)
    score.update(pictures, captions)
    assert score.compute().item() == pytest.approx(expected, abs=1e-4) and expected > 0


def test_a_folder_without_an_image_processor_takes_every_clips(folder: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "preprocessor_config.json").unlink()
    images = [Image.new("RGB", (50, 40), "red")]
    assert torch.equal(
        CLIPScore(str(bare)).scores(images, ["a cat"]), CLIPScore(folder).scores(images, ["a cat"])
    )


def test_what_is_no_clip_or_no_whole_one_is_told(folder: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel

    with pytest.raises(UserError, match=r"The CLIP model: .*none' cannot be loaded"):
        CLIPScore(str(tmp_path / "none"))
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    weights = load_file(part / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    lacks = "it lacks 1 of its weights, such as text_projection.weight"
    with pytest.raises(UserError, match=lacks):
        CLIPScore(str(part))
    other = tmp_path / "bert"
    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                         intermediate_size=8)).save_pretrained(other)  # fmt: skip
    with pytest.raises(UserError, match="it is a model of the type bert, not clip"):
        CLIPScore(str(other))
