"""Codes in shards, seen through their tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from PIL import Image

from lgpl.commands.data.members import CODES
from lgpl.data.decode import SampleDecoder
from lgpl.data.index import statistics
from lgpl.data.members import BadSample, Raw
from lgpl.data.store import Store
from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator.module import PERCEPTUAL
from lgpl.tokenizer import TokenizerModule
from lgpl.tokenizer.module import CodebookUsage
from lgpl.training import load_module


class CodeViewer:
    """Decodes the first view of samples' codes, and counts which codes occur; a UserError where the
    checkpoint is no tokenizer's."""

    def __init__(self, checkpoint: str, trust: Iterable[str]) -> None:
        module = load_module(checkpoint, "tokenizer", (PERCEPTUAL,), trust)
        assert isinstance(module, TokenizerModule)
        self.checkpoint, self.module = checkpoint, module
        self.usage = CodebookUsage(module.autoencoder.codebook_size)
        self.samples = 0
        size = module.autoencoder.codebook_size
        self._decoder = SampleDecoder(("codes",), image_size=(1, 1), codebook_size=size)

    def check(self, shards: Iterable[str], store: Store) -> None:
        """Raises a UserError for a shard whose statistics name another tokenizer."""
        own = self.module.fingerprint()
        for path in shards:
            theirs = statistics(path, store).get("made_by", {}).get("tokenizer")
            if theirs not in (None, own):
                said = (
                    f"{path} holds codes of the tokenizer {theirs}, but {self.checkpoint} is {own}"
                )
                raise UserError(f"--tokenizer: {said}; give that one.")

    def add(self, raw: Raw, shown: bool) -> Image.Image | None:
        """Count a sample's codes, if it has any, and give their image where it is to be shown; a
        BadSample where the tokenizer has no such codes."""
        if CODES not in raw:
            return None
        codes = self._decoder(raw, random.Random(0))["codes"][None]
        self.usage.update(codes)
        self.samples += 1
        if not shown:
            return None
        tokenizer = self.module.autoencoder
        try:
            with torch.inference_mode():
                (image,) = tokenizer.decode(codes).float().clamp(-1, 1)
        except (UserError, RuntimeError, IndexError) as error:
            raise BadSample("codes that the tokenizer does not decode") from error
        return to_image(image)

    def line(self) -> str:
        """How much of the codebook occurs; a UserError where no sample has codes."""
        if not self.samples:
            raise UserError("--tokenizer: no codes in the samples that were looked at.")
        found = self.usage.compute()
        part, perplexity = found["usage"].item(), found["perplexity"].item()
        of = f"{part:.1%} of {self.usage.codebook_size} codes in {self.samples} samples"
        return f"{of}, perplexity {perplexity:.1f}"
