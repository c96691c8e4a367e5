"""Codes and captions of images -> the members of code shards, which `CodeShardWriter` writes."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from webdataset.writer import numpy_dumps

from lgpl.codes import CodeLayout
from lgpl.data.datamodule import CODE_TYPES, ShardDataModule
from lgpl.data.members import BadSample, features_name, read_caption
from lgpl.errors import UserError
from lgpl.text import TextEncoder

Members = dict[str, bytes]  # of a sample, by extension
# What `made_by` leaves unnamed, as older shards do.
UNNAMED = {"fit": "crop", "captions": "plain"}


def made_by(module: Any, data: ShardDataModule, encoder: TextEncoder | None) -> dict[str, Any]:
    """What the codes of these data depend on: plain values, which stand beside each code shard. A
    TokenizerModule or what has its `autoencoder` and `fingerprint` has encoded them."""
    tokenizer = module.autoencoder
    layout = tokenizer.layout(*data.image_size)
    named = {"fit": data.fit, "captions": encoder.captions if encoder else "plain"}
    return {
        "tokenizer": module.fingerprint(),
        "layout": [layout.rows, layout.columns, layout.depth],
        "views": 10 * len(data.ten_crop) or 1,
        "dtype": CODE_TYPES[tokenizer.codebook_size > 2**16],
        "image_size": list(data.image_size),
        "ten_crop": data.ten_crop,
        "text_encoder": encoder and encoder.name,
        "text_features": encoder and encoder.width,
        "text_length": encoder and encoder.max_length,
        **{name: value for name, value in named.items() if value != UNNAMED[name]},
    }


def code_members(codes: Tensor, texts: Sequence[Members], made_by: dict[str, Any]) -> list[Members]:
    """The members of each sample: `codes.npy` and its own texts; a UserError where codes are not
    [B, *layout.shape], or with ten crops [B, views, *layout.shape]."""
    views, layout = made_by["views"], CodeLayout(*made_by["layout"])
    expected = (views, *layout.shape) if made_by["ten_crop"] else layout.shape
    if codes.shape[1:] != expected:
        raise UserError(
            f"The tokenizer gives codes {[*codes.shape[1:]]} of an image; with {views} views "
            f"and its layout {layout} they should be {[*expected]}."
        )
    shape = (len(codes), views, layout.depth, layout.rows, layout.columns)
    arrays = codes.cpu().numpy().astype(made_by["dtype"]).reshape(shape)
    return [{"codes.npy": numpy_dumps(a)} | own for a, own in zip(arrays, texts, strict=True)]


def add_features(
    members: Sequence[Members], captions: Sequence[str], encoder: TextEncoder, device: torch.device
) -> tuple[int, int]:
    """Add the text features of those of these captions that a sample has; gives how many captions
    the encoder cuts, and how many there are."""
    cut = total = 0
    for name in captions:
        found = {}
        for index, own in enumerate(members):
            with suppress(BadSample):  # not every sample has every caption
                found[index] = read_caption(own, name, style=encoder.captions)
        if found:
            cut, total = cut + encoder.count_cut([*found.values()]), total + len(found)
            features = encoder.encode([*found.values()], device)
            for index, feature in zip(found, features, strict=True):
                array = feature.cpu().numpy().astype(np.float16)
                members[index][features_name(name)] = numpy_dumps(array)
    return cut, total
