"""lgpl: train, evaluate and sample autoregressive image generators (LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lgpl.inference import Generator, Tokenizer

__all__ = ["load"]
__version__ = "0.1.0"


def load(
    path: str | Path,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust: Iterable[str] = (),
) -> Generator | Tokenizer:
    """What a checkpoint holds, ready to be used: a generator as a `Generator`, or a `Tokenizer`.

    Args:
        path: a .ckpt file, the folder of a sharded run, an exported one, or hf:OWNER/NAME on a hub,
            with @REVISION and /FILE behind it where they are wanted.
        tokenizer: checkpoint of a generator's tokenizer, where it is not the one that it names.
        device: auto, cpu, cuda, cuda:1, ...
        dtype: float32 or bf16, of a generator's weights.
        trust: packages whose classes the checkpoints may name beside lgpl's own; building runs
            their code.

    Raises UserError where there is no such checkpoint, it names a class that is not trusted, or an
    argument is none of the above.
    """
    from lgpl.inference.model import open_checkpoint  # not for who wants the version alone

    return open_checkpoint(path, tokenizer, device, dtype, trust)
