"""taming's VQGANs: the original's codes and pixels, what is kept of a file, and what is refused."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lgpl.checkpoints import read_checkpoint
from lgpl.checkpoints.released import vqgan
from lgpl.checkpoints.released.vqgan import taming_name
from lgpl.cli import main
from lgpl.tokenizer import TokenizerModule, VectorQuantizer, VQModel
from lgpl.training import load_module
from lgpl.training.build import build_module
from tests.golden import HERE, fill, schema
from tests.tokenizer.test_module import fit, module

NUMBERS: dict[str, Any] = json.loads((HERE / "golden_vqgan.json").read_text())["models"]
SCHEMAS = {"imagenet_f16_16384": "f16", "imagenet_f16_1024": "f16", "openimage_f8_16384": "f8"}
filled = functools.lru_cache(maxsize=None)(fill)  # two models have nearly all weights in common


@pytest.fixture(scope="module", autouse=True)
def forget() -> Any:
    yield
    filled.cache_clear()


@pytest.mark.parametrize("name", SCHEMAS)
@torch.inference_mode()
def test_codes_and_pixels_of_the_original(name: str) -> None:
    golden = NUMBERS[name]
    shapes = schema(f"vqgan_{SCHEMAS[name]}")
    shapes["quantize.embedding.weight"] = [golden["n_embed"], golden["embed_dim"]]
    scales = {"quantize.embedding.weight": 1.0}
    state = {n: filled(n, tuple(s), scales.get(n, golden["scale"])) for n, s in shapes.items()}
    assert sum(tensor.numel() for tensor in state.values()) == golden["parameters"]
    found = vqgan.read(state, Path("last.ckpt"))
    with torch.device("meta"):
        model = build_module(found.config).autoencoder
    model.load_state_dict(found.weights, assign=True)

    c, i, j = (torch.arange(n, dtype=torch.float64) for n in (3, 96, 96))
    rows = torch.sin(0.11 * (c + 1)[:, None] * i)[:, :, None]
    image = (rows * torch.cos(0.07 * (c + 2)[:, None] * j)[:, None])[None].float()
    codes = model.encode(image)
    assert codes.flatten().tolist() == golden["codes"]
    decoded = model.decode(codes)
    numbers = [decoded.mean(), decoded.std(), *decoded[0, 0, 0, :8], *decoded[0, 2, 95, -8:]]
    corners = golden["decoded_0_0_0_first8"] + golden["decoded_0_2_95_last8"]
    expected = [golden["decoded_mean"], golden["decoded_std"], *corners]
    assert torch.stack(numbers).tolist() == pytest.approx(expected, abs=1e-4)


def small(dim: int = 4) -> VQModel:
    """The autoencoder of tests/tokenizer/test_module.py, as taming has it."""
    torch.manual_seed(1)
    quantizer = VectorQuantizer(32, dim, l2_norm=False)
    return VQModel(quantizer, (1, 1), width=32, blocks=1, z_channels=32)


def tiny(model: VQModel) -> dict[str, Tensor]:
    """A VQGAN's weights under taming's names."""
    state = model.state_dict()
    return {taming_name(n, 2): t for n, t in state.items() if n != "quantizer.idle"}


def pix2pix(width: int, layers: int) -> nn.Sequential:
    """The `main` of pix2pix's discriminator, with its running statistics."""
    torch.manual_seed(2)
    widths = [width * min(2**i, 8) for i in range(layers + 1)]
    parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for index in range(layers):
        stride = 2 if index < layers - 1 else 1
        conv = nn.Conv2d(*widths[index : index + 2], 4, stride, 1, bias=False)
        parts += [conv, nn.BatchNorm2d(widths[index + 1]), nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def judge(net: nn.Sequential, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}main.{n}": t for n, t in net.state_dict().items()}


def test_names_are_those_of_the_schemas() -> None:
    """For an original's file and for every weight of the model."""
    for name, multipliers, levels in (("f16", "vq-16", 5), ("f8", "vq-8", 4)):
        with torch.device("meta"):
            state = VQModel(VectorQuantizer(), multipliers).state_dict()
        names = {taming_name(n, levels) for n in state if n != "quantizer.idle"}
        assert names == schema(f"vqgan_{name}").keys()


def test_a_checkpoint_of_lightning_with_discriminator_lpips_and_callbacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning kept the state of a callback under its class, which has a pickled name here."""
    place = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": place})
    own = ModuleType(place)
    own.ModelCheckpoint = callback  # type: ignore[attr-defined]
    net = pix2pix(8, 2)
    loss = {
        **judge(net, "loss.discriminator."),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 64, 1, 1),
    }
    content = {
        "epoch": 3,
        "state_dict": tiny(small()) | loss,
        "callbacks": {callback: {"monitor": "val/rec_loss", "best_model_score": torch.ones(())}},
        "optimizer_states": [{"state": {0: {"step": 7}}, "param_groups": []}],
    }
    with monkeypatch.context() as patched:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", place):
            patched.setitem(sys.modules, name, own)
        torch.save(content, tmp_path / "last.ckpt")
    main(["import", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "vqgan")])
    module = load_module(tmp_path / "vqgan")
    assert isinstance(module, TokenizerModule) and module.loss.discriminator is not None
    for name, tensor in small().state_dict().items():
        assert torch.equal(module.autoencoder.state_dict()[name], tensor)
    image = torch.rand(2, 3, 32, 32)
    assert torch.allclose(module.loss.discriminator(image), net(image), atol=1e-6)


def imported(folder: Path, loss: dict[str, Tensor]) -> str:
    torch.save(tiny(small()) | loss, folder / "a.ckpt")
    main(["import", str(folder / "a.ckpt"), "--out", str(folder / "a")])
    return str(folder / "a")


def test_training_starts_from_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = pix2pix(8, 1)
    start = imported(tmp_path, judge(net, "loss.discriminator."))
    assert "discriminator" not in caplog.text
    model = module(init_from=start, lr=0.0)
    fresh = {n: t.clone() for n, t in model.loss.discriminator.state_dict().items()}
    fit(model, tmp_path, 1)
    for name, tensor in model.loss.discriminator.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name.removeprefix("layers.")])
        assert "weight" not in name or not torch.equal(tensor, fresh[name])
    for name, tensor in small().state_dict().items():
        assert torch.equal(model.autoencoder.state_dict()[name], tensor)

    start = imported(tmp_path, judge(pix2pix(8, 2), "loss.discriminator."))
    model = module(init_from=start, lr=0.0)
    fit(model, tmp_path, 1)
    assert "has another discriminator: this one is fresh" in caplog.text
    for name, tensor in model.loss.discriminator.state_dict().items():
        assert torch.equal(tensor, fresh[name])


def test_another_kind_of_discriminator_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = imported(tmp_path, {"loss.discriminator.blocks.0.weight": torch.ones(3, 3, 1, 1)})
    assert "without its discriminator, which is no PatchGAN" in capsys.readouterr().out
    assert not read_checkpoint(start).discriminator()
    imported(tmp_path, judge(pix2pix(8, 1), "loss.discriminator."))
    assert "with its discriminator" in capsys.readouterr().out
    assert len(read_checkpoint(start).discriminator()) > 5


def test_what_is_no_vqgan_of_these_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    state = tiny(small())

    def run(content: dict[str, Tensor]) -> str:
        torch.save(content, tmp_path / "a.ckpt")
        return fails("import", str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "out"))

    kl = {n: t for n, t in state.items() if not n.startswith("quantize.")}
    assert "without quantize.embedding.weight, a codebook of vectors" in run(kl)
    attended = state | {n.replace("down.1", "down.0"): t for n, t in state.items() if "attn" in n}
    said = run(attended)
    assert "has attention at levels 0, 1 of 2, and lgpl's VQModel at the last one alone" in said
    assert "has no weight decoder.norm_out.bias" in run(
        {n: t for n, t in state.items() if n != "decoder.norm_out.bias"}
    )
    said = run(state | {"encoder.conv_in.weight": torch.zeros(32, 1, 3, 3)})
    assert "encoder.conv_in.weight of [32, 1, 3, 3]" in said
    assert not (tmp_path / "out").exists()
