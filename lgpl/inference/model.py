"""A checkpoint for Python: `lgpl.load(...)`, then `draw`, `encode` and `decode`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lgpl.checkpoints import read_checkpoint
from lgpl.data.transforms import normalize, to_image, to_uint8
from lgpl.errors import UserError
from lgpl.generator.module import PERCEPTUAL, GeneratorModule
from lgpl.generator.sampling import Sampling
from lgpl.inference import DTYPES
from lgpl.inference.drawing import Drawer, passed
from lgpl.inference.load import load_generator, usable_device
from lgpl.inference.request import Request, requests_for
from lgpl.tokenizer.module import TokenizerModule
from lgpl.training import load_module


def open_checkpoint(
    path: str | Path,
    tokenizer: str | Path | None,
    device: str,
    dtype: str,
    trust: Iterable[str],
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
    """Images to codes and back.

    Args:
        module: in evaluation mode.
    """

    def __init__(self, module: TokenizerModule) -> None:
        self.module = module

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """Codes [*layout.shape], int64, of an RGB image of a size that the tokenizer takes."""
        pixels = normalize(to_uint8(image.convert("RGB"))[None]).to(self.module.device)
        return self.module.autoencoder.encode(pixels)[0].cpu().clone()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Image.Image:
        """The image of codes [*layout.shape]."""
        images = self.module.autoencoder.decode(codes[None].to(self.module.device))
        return to_image(images[0].float().clamp(-1, 1))


class Generator:
    """A generator with its tokenizer, ready to draw.

    Args:
        module: see `load_generator`.
    """

    def __init__(self, module: GeneratorModule) -> None:
        self.module = module

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
            prompts: one or several.
            seed: image i is drawn from `seed` + i, and is the one that `lgpl sample` makes.
            batch_size: images drawn together.
            progress: called with the codes drawn so far and those of all images.
            sampling: fields of `Sampling`: guidance, temperature, top_k, top_p, ...

        Raises:
            UserError: a prompt says nothing that can be drawn, or an argument is out of range.
        """
        requests = self._requests(prompts, seed, sampling)
        for request in requests:
            self.module.model.condition.check(request.prompt)
        codes, total = self.module.model.layout.codes, len(requests)

        def watch(batch: Sequence[Request], _: Tensor, drawn: Tensor) -> None:
            if progress is not None:
                progress(batch[0].number * codes + int(drawn.sum()), total * codes)

        drawer = Drawer(self.module, batch_size)
        drawn = [codes for _, codes in drawer.batches(requests, watch)]
        return [to_image(image) for part in drawn for image in self.module.decode(part)]

    def stream(
        self, prompt: str, seed: int = 0, partial: int = 8, **sampling: Any
    ) -> Iterator[Image.Image]:
        """One image as it grows: so often before it is whole, and then whole.

        What is not drawn yet is grey. Leaving the loop ends the drawing.

        Args:
            prompt: see `draw`.
            seed: see `draw`.
            partial: images before the whole one, at the most.
            sampling: see `draw`.
        """
        requests = self._requests(prompt, seed, sampling)
        self.module.model.condition.check(prompt)
        layout = self.module.model.layout
        shown = layout.shown_at(partial)
        found: queue.Queue[tuple[Tensor, Tensor] | BaseException | None] = queue.Queue()
        left = threading.Event()

        def watch(_: Sequence[Request], codes: Tensor, drawn: Tensor) -> None:
            if left.is_set():
                raise _Left
            places = layout.places_of(drawn)
            if (count := int(places.sum())) < layout.places and passed(shown, count):
                found.put((layout.unflatten(codes.clone()), places))

        def work() -> None:
            try:
                for _, codes in Drawer(self.module, 1).batches(requests, watch):
                    found.put((codes, torch.ones(1, layout.rows, layout.columns, dtype=torch.bool)))
                found.put(None)
            except _Left:
                pass
            except BaseException as error:
                found.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (some := found.get()) is not None:
                if isinstance(some, BaseException):
                    raise some
                codes, places = some
                yield to_image(self.module.decode(codes, None if places.all() else places)[0])
        finally:
            left.set()
            thread.join()

    def _requests(
        self, prompts: str | Sequence[str], seed: int, sampling: dict[str, Any]
    ) -> list[Request]:
        wanted = [prompts] if isinstance(prompts, str) else list(prompts)
        return requests_for(wanted, Sampling(**sampling), seed)


class _Left(Exception):
    """Nobody looks at the image any more."""
