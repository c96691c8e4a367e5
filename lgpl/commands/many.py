"""Many pictures into a folder: split over ranks, and gone on with after a stop."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling

MANIFEST = "sampling.json"
PENDING = 2  # batches that wait for the detokenizer before the generator does


def settings(
    checkpoint: str, tokenizer: str | None, captions: list[str], sampling: Sampling, seed: int
) -> dict[str, Any]:
    """All that the pictures depend on."""
    return {
        "checkpoint": checkpoint,
        "modified": os.stat(checkpoint).st_mtime,
        "tokenizer": tokenizer,
        "images": len(captions),
        "conditions": hashlib.sha256("\n".join(captions).encode()).hexdigest(),
        "seed": seed,
        **asdict(sampling),
    }


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Write the manifest of a new folder.

    Raises:
        UserError: the folder holds pictures of other settings, or cannot be written.
    """
    path = folder / MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in wanted if held.get(name) != wanted[name]]
            if other:
                raise UserError(
                    f"--out: {folder} holds pictures of another {other[0]} "
                    f"({held.get(other[0])}, not {wanted[other[0]]}); give another folder."
                )
            return
        part = folder / f".{MANIFEST}.{os.getpid()}"
        part.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise UserError(f"--out: {folder} cannot be used ({error}).") from error


def write_many(
    module: GeneratorModule,
    condition: torch.Tensor,
    lengths: torch.Tensor | None,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    folder: Path,
) -> int:
    """Draw what this rank's share of the folder lacks; gives the number of pictures drawn.

    Picture i has seed + i, whatever the number of ranks. A thread decodes and writes one batch
    while the next is drawn.
    """
    rank, world = (int(os.environ.get(key, d)) for key, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    share = range(rank, len(condition), world)
    missing = [i for i in share if not _path(folder, i).exists()]
    bar = tqdm(total=len(share), initial=len(share) - len(missing), unit="image",
               desc="sampling", disable=rank > 0)  # fmt: skip
    waiting: list[Future[None]] = []
    with bar, ThreadPoolExecutor(1) as writer:
        for start in range(0, len(missing), batch_size):
            numbers = missing[start : start + batch_size]
            codes = module.sample_codes(
                condition[numbers],
                None if lengths is None else lengths[numbers],
                sampling,
                [seed + i for i in numbers],
            )
            waiting.append(writer.submit(_write, module, codes, folder, numbers))
            if len(waiting) > PENDING:
                waiting.pop(0).result()
            bar.update(len(numbers))
        for last in waiting:
            last.result()
    return len(missing)


def _write(module: GeneratorModule, codes: torch.Tensor, folder: Path, numbers: list[int]) -> None:
    for i, image in zip(numbers, module.decode(codes).cpu(), strict=True):
        path = _path(folder, i)
        part = path.with_suffix(".part")
        try:
            to_image(image).save(part, format="PNG")
            os.replace(part, path)
        except OSError as error:
            raise UserError(f"--out: {path} cannot be written ({error}).") from error


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"
