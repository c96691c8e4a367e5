"""Checkpoints -> what draws, encodes and decodes; `lgpl.load` for Python."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lgpl.checkpoints import read_checkpoint
from lgpl.data.transforms import normalize, to_image, to_uint8
from lgpl.errors import UserError
from lgpl.generator import Decoder
from lgpl.generator.decoders.base import check_decoder
from lgpl.generator.module import PERCEPTUAL, GeneratorModule
from lgpl.generator.packing import int8_weights
from lgpl.inference import DTYPES
from lgpl.inference.drawing import Abandoned, Drawer, Request, passed, requests_for
from lgpl.tokenizer.module import TokenizerModule
from lgpl.training import load_module


def usable_device(name: str) -> str:
    """`auto` is the GPU where there is one; any other name is tried at once."""
    if name == "auto":
        local = os.environ.get("LOCAL_RANK", "0")
        return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device: {name} cannot be used here ({reason}).") from error
    return name


def load_generator(
    path: str,
    tokenizer: str | None,
    device: str,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    trust: Iterable[str] = (),
    decoder: Decoder | None = None,
) -> GeneratorModule:
    """The generator of a checkpoint with its tokenizer, ready to sample and for nothing else.

    `tokenizer` is the tokenizer's checkpoint, where it is not the one that the config names;
    `trust` are packages whose classes the checkpoints may name beside lgpl's own; `decoder` draws
    in place of the model's own.
    """
    module = load_module(path, "generator", trust=trust)
    assert isinstance(module, GeneratorModule)
    module.use_tokenizer(tokenizer, path)
    module.own_decoder = decoder or module.own_decoder
    module.to(device)
    module.check_tokenizer()
    check_decoder(module.model, module.decoder)
    module.model.to(dtype)
    if int8:
        int8_weights(module.model)
    module.model.pack()
    module.tokenizer.autoencoder.pack()
    return module


def open_checkpoint(
    path: str | Path, tokenizer: str | Path | None, device: str, dtype: str, trust: Iterable[str]
) -> Generator | Tokenizer:
    """`lgpl.load`."""
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    trust, device = tuple(trust), usable_device(device)
    if read_checkpoint(path).kind == "generator":
        own = None if tokenizer is None else str(tokenizer)
        precision = getattr(torch, DTYPES[dtype])
        return Generator(load_generator(str(path), own, device, precision, trust=trust))
    module = load_module(path, "tokenizer", (PERCEPTUAL,), trust)
    assert isinstance(module, TokenizerModule)
    return Tokenizer(module.to(device))


class Tokenizer:
    """Images to codes and back."""

    def __init__(self, module: TokenizerModule) -> None:
        self.module = module  # in evaluation mode

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """Codes [*layout.shape], int64, of an RGB image of a size that the tokenizer takes."""
        pixels = normalize(to_uint8(image.convert("RGB"))).to(self.module.device)
        return self.module.autoencoder.encode(pixels[None])[0].cpu().clone()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Image.Image:
        """The image of codes [*layout.shape]."""
        images = self.module.autoencoder.decode(codes[None].to(self.module.device))
        return to_image(images[0].float().clamp(-1, 1))


class Generator:
    """A generator with its tokenizer, ready to draw."""

    def __init__(self, module: GeneratorModule) -> None:
        self.module = module  # as `load_generator` returns it

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.module.tokenizer)

    def draw(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
        **sampling: Any,
    ) -> list[Image.Image]:
        """An image for each prompt: a text, or a class by number or name.

        Args:
            seed: image i is drawn from `seed` + i, and is the one that `lgpl sample` makes.
            progress: called with the codes drawn so far and those of all images.
            sampling: fields of `Sampling`: guidance, temperature, top_k, top_p, ...; what is not
                given is the model's own, `GeneratorModule.sampling`.

        Raises UserError where a prompt cannot be drawn, or an argument is out of range.
        """
        wanted = [prompts] if isinstance(prompts, str) else list(prompts)
        requests = requests_for(wanted, replace(self.module.sampling, **sampling), seed)
        for prompt in wanted:
            self.module.model.condition.check(prompt)
        codes, total = self.module.model.layout.codes, len(requests)

        def watch(batch: Sequence[Request], _: Tensor, drawn: Tensor) -> None:
            if progress is not None:
                progress(batch[0].number * codes + int(drawn.sum()), total * codes)

        drawn = [*Drawer(self.module, batch_size).batches(requests, watch)]
        return [to_image(image) for _, part in drawn for image in self.module.decode(part)]

    def stream(
        self, prompt: str, seed: int = 0, partial: int = 8, **sampling: Any
    ) -> Iterator[Image.Image]:
        """One image as it grows, at most `partial` times before it is whole; see `draw`.

        What is not drawn yet is grey. Leaving the loop ends the drawing.
        """
        requests = requests_for([prompt], replace(self.module.sampling, **sampling), seed)
        self.module.model.condition.check(prompt)
        layout, left = self.module.model.layout, threading.Event()
        shown = layout.shown_at(partial)
        # Codes, and which places are drawn; None at the end.
        found: queue.Queue[tuple[Tensor, Tensor] | None] = queue.Queue()

        def watch(_: Sequence[Request], codes: Tensor, drawn: Tensor) -> None:
            if left.is_set():
                raise Abandoned
            places = layout.places_of(drawn)
            if (count := int(places.sum())) < layout.places and passed(shown, count):
                found.put((layout.unflatten(codes.clone()), places))

        with ThreadPoolExecutor(1) as pool:
            drawing = pool.submit(lambda: [*Drawer(self.module, 1).batches(requests, watch)])
            drawing.add_done_callback(lambda _: found.put(None))
            try:
                for codes, places in iter(found.get, None):
                    yield to_image(self.module.decode(codes, places)[0])
            finally:
                left.set()
            ((_, codes),) = drawing.result()
        yield to_image(self.module.decode(codes)[0])
