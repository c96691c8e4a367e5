"""lgpl: train, evaluate and sample autoregressive image generators (LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lgpl.checkpoints import SelfDescribing

__all__ = ["load"]
__version__ = "0.1.0"


def load(path: str | Path, trust: Iterable[str] = ()) -> SelfDescribing:
    """The LightningModule of a checkpoint, on the CPU and in evaluation mode.

    A tokenizer comes without its perceptual loss, which only training needs.

    Args:
        path: a .ckpt file, the folder of a sharded run, or an exported one.
        trust: packages whose classes its config may name beside lgpl's own; building runs their
            code.

    Raises:
        UserError: there is no such checkpoint, or it names a class that is not trusted.
    """
    from lgpl.checkpoints import load_module  # not for who wants the version alone
    from lgpl.generator.module import PERCEPTUAL

    return load_module(path, without=(PERCEPTUAL,), trust=trust)
