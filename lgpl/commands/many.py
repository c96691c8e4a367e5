"""Many pictures into a folder: split over ranks, and gone on with after a stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor
from tqdm import tqdm

from lgpl.atomic import write_text
from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator import CompiledDecoder, GeneratorModule, Sampling
from lgpl.pictures import save

MANIFEST = "sampling.json"
PENDING = 2  # batches that wait for the detokenizer before the generator does
COMPILED = 8  # batches from which on compiling the decoder pays on a GPU
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}, {rate_fmt}]"


def settings(options: Namespace, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
    """All that the pictures depend on.

    Args:
        options: of `lgpl sample`.
        prompts: of each picture.
    """
    return {
        "checkpoint": options.checkpoint,
        "modified": _modified(Path(options.checkpoint)),
        "tokenizer": options.tokenizer,
        "images": len(prompts),
        "conditions": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "seed": options.seed,
        "dtype": options.dtype,
        "int8": options.int8,
        **asdict(sampling),
    }


def _modified(checkpoint: Path) -> float:
    """When the newest of its files was written; a folder does not change with its files."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max(path.stat().st_mtime for path in files or [checkpoint])


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Write the manifest of a new folder.

    Raises:
        UserError: the folder holds pictures of other settings, or cannot be written.
    """
    path = folder / MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            held = dict(json.loads(path.read_text(encoding="utf-8")))
            other = [name for name in wanted if held.get(name) != wanted[name]]
            if other:
                raise UserError(
                    f"--out: {folder} holds pictures of another {other[0]} "
                    f"({held.get(other[0])}, not {wanted[other[0]]}); give another folder."
                )
            return
        if any(folder.glob("[0-9]*.png")):
            raise UserError(
                f"--out: {folder} holds pictures, but no {MANIFEST} that says how they were drawn; "
                "give another folder."
            )
        write_text(path, json.dumps(wanted, indent=2))
    except UserError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--out: {folder} cannot be used ({error}).") from error


def write_many(
    module: GeneratorModule,
    prompts: Sequence[str],
    sampling: Sampling,
    seed: int,
    batch_size: int,
    folder: Path,
) -> int:
    """Draw what this rank's share of the folder lacks; gives the number of pictures drawn.

    Picture i has seed + i, whatever the number of ranks. A thread decodes and writes one batch
    while the next is drawn. A batch that does not fit into the device's memory is halved, and so
    are all after it.
    """
    rank, world = (int(os.environ.get(key, d)) for key, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    share = range(rank, len(prompts), world)
    missing = [i for i in share if not _path(folder, i).exists()]
    for prompt in dict.fromkeys(prompts[i] for i in missing):
        module.model.condition.check(prompt)  # mistakes are told before hours of work
    bar = tqdm(total=len(share), initial=len(share) - len(missing), unit="image",
               desc="sampling", disable=rank > 0, bar_format=BAR)  # fmt: skip
    compiles = module.device.type == "cuda" and len(missing) >= COMPILED * batch_size
    decoder = CompiledDecoder() if compiles else None
    waiting: list[Future[None]] = []
    with bar, ThreadPoolExecutor(1) as writer:
        start = 0
        while start < len(missing):
            numbers, before = missing[start : start + batch_size], bar.n

            def advance(count: int, codes: Tensor, before: float = before) -> None:
                bar.update(before + len(codes) * count / codes.shape[1] - bar.n)

            try:
                codes = module.sample_codes(
                    module.model.condition.parse_each([prompts[i] for i in numbers]),
                    sampling,
                    [seed + i for i in numbers],
                    advance,
                    decoder=decoder if len(numbers) == batch_size else None,
                )
            except torch.OutOfMemoryError as error:
                bar.n = before
                batch_size = halved(len(numbers), error)
                decoder = CompiledDecoder() if compiles else None
                continue
            start += len(numbers)
            waiting.append(writer.submit(_write, module, codes.cpu(), folder, numbers))
            if len(waiting) > PENDING:
                waiting.pop(0).result()
        for last in waiting:
            last.result()
    return len(missing)


def halved(pictures: int, error: torch.OutOfMemoryError) -> int:
    """Half a batch that the device's memory did not hold.

    Raises:
        UserError: it was of one picture.
    """
    if pictures == 1:
        raise UserError(
            "--batch-size: not even one picture fits into the device's memory; free some, or take "
            "--dtype bf16."
        ) from error
    tqdm.write(f"The device's memory is full: {pictures // 2} pictures at a time from now")
    return pictures // 2


def _write(module: GeneratorModule, codes: Tensor, folder: Path, numbers: list[int]) -> None:
    """On a GPU in a stream of its own, beside the next batch's."""
    gpu = module.device.type == "cuda"
    with torch.cuda.stream(torch.cuda.Stream(module.device)) if gpu else contextlib.nullcontext():
        images = _decode(module, codes.to(module.device))
    for i, image in zip(numbers, images, strict=True):
        save(to_image(image), _path(folder, i))


def _decode(module: GeneratorModule, codes: Tensor) -> Tensor:
    """Images on the CPU; in halves where the device's memory does not hold them at once."""
    try:
        return module.decode(codes).cpu()
    except torch.OutOfMemoryError:
        if len(codes) == 1:
            raise
    return torch.cat([_decode(module, half) for half in codes.chunk(2)])


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"
