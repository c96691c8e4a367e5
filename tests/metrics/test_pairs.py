"""Similarity of pairs against the definitions, and CLIP on a model of the real architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from lgpl.errors import UserError
from lgpl.metrics import CLIPScore, Similarity
from lgpl.metrics.extractors import to_bytes


def smooth(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=rng) * 2 - 1
    return F.interpolate(small, (64, 64), mode="bicubic").clamp(-1, 1)


def test_means_over_images_of_the_bytes() -> None:
    a = smooth(5, 0)
    b = (a + 0.1 * smooth(5, 1)).clamp(-1, 1)
    metric = Similarity("alex")
    metric.update(a[:3], b[:3])
    metric.update(a[3:], b[3:])
    metric.update(a[:0], b[:0])  # a rank whose last batch is padding
    found = metric.compute()
    x, y = (to_bytes(pixels).double() for pixels in (a, b))
    psnr = 10 * (255**2 / (x - y).square().mean((1, 2, 3))).log10()
    ssim = [
        structural_similarity_index_measure(p[None], q[None], data_range=255.0).item()
        for p, q in zip(x, y, strict=True)
    ]
    assert found["PSNR"] == pytest.approx(psnr.mean().item(), rel=1e-6)
    assert found["SSIM"] == pytest.approx(sum(ssim) / 5, rel=1e-4)
    metric.reset()
    metric.update(a, a)
    assert metric.compute()["SSIM"] == pytest.approx(1) and metric.compute()["LPIPS"] == 0


def test_lpips_of_the_real_weights_grows_with_the_damage() -> None:
    a, noise = smooth(4, 0), smooth(4, 7)
    found = []
    for strength in (0.0, 0.1, 0.3, 0.6):
        metric = Similarity("vgg")
        metric.update(a, (a + strength * noise).clamp(-1, 1))
        found.append(metric.compute()["LPIPS"])
    assert found[0] == 0 and found == sorted(found) and found[3] > 0.05


def clip(folder: Path) -> str:
    """A small CLIP in the form in which they are published, untrained."""
    from transformers import CLIPConfig, CLIPModel

    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "cat</w>", "dog</w>"]
    letters = [f"{letter}{end}" for letter in "abcdefgot" for end in ("", "</w>")]
    words += [letter for letter in letters if letter not in words]
    merges = ["#version: 0.2", "c a", "ca t</w>", "d o", "do g</w>"]
    words += ["ca", "do"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": words[0],
                "eos_token": words[1],
                "pad_token": words[1],
                "unk_token": words[1],
            }
        )
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).save_pretrained(folder)
    return str(folder)


def test_clip_score_is_the_mean_cosine_of_the_models_features(tmp_path: Path) -> None:
    metric = CLIPScore(clip(tmp_path))
    images, captions = smooth(4, 0), ["a cat", "a dog", "a cat a dog", "dog " * 50]
    metric.update(images[:3], captions[:3])
    metric.update(images[3:], captions[3:])
    out = [
        metric.clip(
            **metric.tokenizer(text, return_tensors="pt", truncation=True, max_length=16),
            pixel_values=(
                (to_bytes(F.interpolate(image[None], (32, 32), mode="bicubic", antialias=True)))
                / 255 - metric.pixel_mean
            ) / metric.pixel_std,
        ).logits_per_image.item()
        for image, text in zip(images, captions, strict=True)
    ]  # fmt: skip
    cosines = torch.tensor(out) / metric.clip.logit_scale.exp()
    expected = 100 * cosines.clamp(min=0).mean().item()
    assert metric.compute().item() == pytest.approx(expected, abs=0.1)


def test_missing_clip_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The CLIP model: .* cannot be loaded"):
        CLIPScore(str(tmp_path / "none"))
