"""The decoder as it is laid out for drawing."""

from __future__ import annotations

import pytest
import torch

from lgpl.commands import quickstart
from lgpl.data.transforms import normalize
from lgpl.metrics.images import open_images
from lgpl.shipped import checkpoint
from lgpl.tokenizer import Autoencoder, TokenizerModule, packing
from lgpl.training import load_module


def emoji() -> Autoencoder:
    module = load_module(checkpoint("emoji", "tokenizer"), "tokenizer")
    assert isinstance(module, TokenizerModule)
    return module.autoencoder


@pytest.mark.parametrize("has_bf16", [True, False])
@torch.inference_mode()
def test_packed_weights_decode_what_plain_ones_decode(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a value of 255, of held-out emoji by their own tokenizer; and encode as before."""
    monkeypatch.setattr(packing, "_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(packing, "WIDE", 1)
    model = emoji()
    image = normalize(next(iter(open_images(quickstart.HELD_OUT, (64, 64)).batches(16))))
    codes = model.encode(image)
    plain = model.decode(codes).clamp(-1, 1)
    model.pack()
    assert torch.equal(model.encode(image), codes)
    packed = model.decode(codes).clamp(-1, 1)
    assert packed.dtype == torch.float32
    apart = (packed - plain).abs() * 127.5
    assert apart.max() < (3 if has_bf16 else 0.01)
    assert (apart < 1).float().mean() > 0.9999
    assert (apart.mean() > 0.01) == has_bf16


@pytest.mark.parametrize("wide", [1, 128])
@torch.inference_mode()
def test_an_image_is_the_same_beside_any_others(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WIDE", wide)
    model = emoji()
    model.pack()
    assert model.pixels_at_once == 16 * 64 * 64
    codes = torch.randint(1024, (16, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([model.decode(one) for one in codes.split(1)])
    for batch in (2, 3, 8, 16):
        assert torch.equal(model.decode(codes[:batch]), alone[:batch])
