"""Code shards by layout: what is written, and what training refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lgpl.callbacks import CodeShardWriter
from lgpl.codes import CodeLayout
from lgpl.data import ShardDataModule
from lgpl.data.shards import read_shard
from lgpl.errors import UserError
from lgpl.text import TextEncoder
from tests.shards import samples, write_shard, write_shards

SIZE = (64, 96)


class Tokenizer(nn.Module):
    """One code for 16 x 16 px and step of the depth: brightness, far apart from step to step."""

    def __init__(self, depth: int, codebook_size: int) -> None:
        super().__init__()
        self.depth, self.codebook_size = depth, codebook_size

    def layout(self, height: int, width: int) -> CodeLayout:
        return CodeLayout(height // 16, width // 16, self.depth)

    def encode(self, image: Tensor) -> Tensor:
        mean = nn.functional.avg_pool2d(image.mean(1, keepdim=True), 16)  # [B, 1, rows, columns]
        codes = (mean.add(1) * 127).long() + self.codebook_size - 2000
        steps = torch.arange(self.depth).view(1, -1, 1, 1)
        return (codes + 300 * steps).view(len(image), *self.layout(*image.shape[-2:]).shape)


class Encoding(pl.LightningModule):
    def __init__(self, depth: int = 1, codebook_size: int = 4096) -> None:
        super().__init__()
        self.autoencoder = Tokenizer(depth, codebook_size)

    def fingerprint(self) -> str:
        return "abc"

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        image = batch["image"]
        if image.ndim == 4:
            return self.autoencoder.encode(image)
        return torch.stack([self.autoencoder.encode(view) for view in image.unbind(1)], 1)


def encode(
    out: Path,
    shards: list[str],
    model: Encoding,
    text_encoder: TextEncoder | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """The arrays of the code shards."""
    data = ShardDataModule(predict=shards, batch_size=4, **{"image_size": SIZE, **options})
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[CodeShardWriter(str(out), text_encoder)],
    )  # fmt: skip
    trainer.predict(model, data, return_predictions=False)
    raws = [raw for path in sorted(out.glob("*.tar")) for raw in read_shard(str(path))]
    return [np.load(io.BytesIO(raw["codes.npy"])) for raw in raws]


@pytest.mark.parametrize(
    ("depth", "codebook_size", "ten_crop", "views"),
    [(1, 4096, (), 1), (2, 2**16, (1.1, 1.05), 20), (2, 2**16 + 1, (), 1), (1, 2**18, (1.1,), 10)],
)
def test_codes_are_written_and_read_by_their_layout(
    tmp_path: Path, depth: int, codebook_size: int, ten_crop: tuple[float, ...], views: int
) -> None:
    layout = CodeLayout(4, 6, depth)
    shards = write_shards(tmp_path / "images", [5, 3])
    out, model = tmp_path / "codes", Encoding(depth, codebook_size)
    arrays = encode(out, shards, model, ten_crop=ten_crop)
    dtype = "uint16" if codebook_size <= 2**16 else "uint32"
    assert len(arrays) == 8
    assert all(a.shape == (views, depth, 4, 6) and a.dtype == dtype for a in arrays)
    made_by = {
        "tokenizer": "abc", "layout": [4, 6, depth], "views": views, "dtype": dtype,
        "image_size": [64, 96], "ten_crop": [*ten_crop], "text_encoder": None,
        "text_features": None, "text_length": None,
    }  # fmt: skip
    assert json.loads((out / "0000_stats.json").read_text())["made_by"] == made_by
    assert json.loads((out / "index.json").read_text())["made_by"] == made_by

    data = ShardDataModule(val=str(out / "index.json"), fields=("codes",), batch_size=8)
    data.expect(layout=layout, codebook_size=codebook_size, tokenizer="abc")
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch["codes"].shape == (8, *layout.shape) and batch["codes"].dtype == torch.int64
    first = np.stack([array[0].reshape(layout.shape) for array in arrays]).astype(np.int64)
    assert np.array_equal(batch["codes"], first) and first.min() > codebook_size - 2001


@pytest.mark.parametrize(
    ("layout", "tokenizer", "dtype", "says"),
    [
        (CodeLayout(4, 4), "abc", None, r"layout \[4, 6, 1\], but the model's .* is \[4, 4, 1\]"),
        (CodeLayout(4, 6, 2), "abc", None, r"layout \[4, 6, 1\], but .* is \[4, 6, 2\]"),
        (CodeLayout(4, 6), "xyz", None, "tokenizer abc, but model.tokenizer is xyz"),
        (CodeLayout(4, 6), "abc", "int8", "dtype int8, but what lgpl reads is uint16 or uint32"),
    ],
)
def test_codes_of_another_model_are_refused(
    tmp_path: Path, layout: CodeLayout, tokenizer: str, dtype: str | None, says: str
) -> None:
    encode(tmp_path, write_shards(tmp_path / "images", [3]), Encoding())
    if dtype is not None:
        statistics = tmp_path / "0000_stats.json"
        statistics.write_text(statistics.read_text().replace("uint16", dtype))
    data = ShardDataModule(train=str(tmp_path / "0000.tar"), fields=("codes",), batch_size=2)
    data.expect(layout=layout, tokenizer=tokenizer)
    data.setup("fit")
    with pytest.raises(UserError, match=f"^data.train: .*0000.tar holds codes of the {says}"):
        data.train_dataloader()


def test_a_depth_without_statistics_is_not_taken_for_views(tmp_path: Path) -> None:
    encode(tmp_path, write_shards(tmp_path / "images", [3]), Encoding(depth=4))
    (tmp_path / "0000_stats.json").unlink()
    data = ShardDataModule(val=str(tmp_path / "0000.tar"), fields=("codes",))
    data.expect(layout=CodeLayout(4, 6))
    data.setup("validate")
    with pytest.raises(UserError, match="codes of layout 4x6x4 where the model's is 4x6"):
        list(data.val_dataloader())


def test_other_settings_do_not_go_on_with_a_folder(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "images", [3, 3])
    encode(tmp_path / "codes", shards[:1], Encoding())
    for model, options, says in (
        (Encoding(), {"image_size": 64}, r"layout \[4, 6, 1\], not \[4, 4, 1\]"),
        (Encoding(codebook_size=2**17), {}, "dtype uint16, not uint32"),
        (Encoding(), {"ten_crop": (1.1,)}, "views 1, not 10"),
    ):
        with pytest.raises(UserError, match=f"0000.tar was made with {says}: give another folder"):
            encode(tmp_path / "codes", shards, model, **options)
    (tmp_path / "codes/0000.tar").unlink()
    broken = Encoding()
    broken.autoencoder.encode = lambda image: torch.zeros(len(image), 6, 4)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"gives codes \[6, 4\] .* should be \[4, 6\]"):
        encode(tmp_path / "codes", shards[:1], broken)


def test_captions_of_another_style_do_not_go_on_with_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("ftfy"), pytest.importorskip("bs4")
    shards = write_shards(tmp_path / "images", [3, 3])
    plain, llamagen = TextEncoder(max_length=8), TextEncoder(max_length=8, captions="llamagen")
    for encoder, other, named, says in (
        (plain, llamagen, None, "captions plain, not llamagen"),
        (llamagen, plain, "llamagen", "captions llamagen, not plain"),
    ):
        out = tmp_path / encoder.captions
        encode(out, shards[:1], Encoding(), encoder)
        made_by = json.loads((out / "0000_stats.json").read_text())["made_by"]
        assert made_by.get("captions") == named  # shards from before the styles name none
        with pytest.raises(UserError, match=f"0000.tar was made with {says}: give another"):
            encode(out, shards, Encoding(), other)


def test_features_are_those_of_the_caption_in_the_encoders_style(tmp_path: Path) -> None:
    """Of the caption as it stands: cleaned by another style first, it would be another text."""
    pytest.importorskip("ftfy"), pytest.importorskip("bs4")
    texts = ["https://shop.example.com/item?id=3 Red SHOES for men", "IMG_1.jpg", "a fox"]
    content = [{**samples(1)[0], "__key__": str(i), "txt": t.encode()} for i, t in enumerate(texts)]
    encoder = TextEncoder(max_length=16, captions="llamagen")
    path = write_shard(tmp_path / "images.tar", content)
    encode(tmp_path / "codes", [path], Encoding(), encoder)
    found = {raw["__key__"]: raw for raw in read_shard(str(tmp_path / "codes/images.tar"))}
    assert found.keys() == {"0", "2"}  # the second is cleaned to nothing: skipped and counted
    assert found["0"]["txt"].decode() == texts[0]
    features = np.load(io.BytesIO(found["0"]["text.npy"]))
    (expected,) = TextEncoder(max_length=16).encode(["?id=3 red shoes for men"])
    assert np.abs(features - expected.numpy()).max() < 1e-2
