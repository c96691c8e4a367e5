"""What `lgpl evaluate generation` and `reconstruction` share: one rank or many, tables and curves
of a sweep; and the report of `rfid`."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse import Namespace
from torch import Tensor

from lgpl.commands.evaluate import SWEPT
from lgpl.commands.generation import generation
from lgpl.data.transforms import normalize
from lgpl.errors import UserError
from lgpl.generator.module import PERCEPTUAL
from lgpl.inference import usable_device
from lgpl.metrics import RFID, ImageSet, Similarity, load_extractor, protocols
from lgpl.metrics.extractors import INCEPTION, resize
from lgpl.metrics.images import current_rank, open_images
from lgpl.metrics.protocols import report
from lgpl.metrics.reference import batches, summarise
from lgpl.metrics.written import FolderWriter, NpzWriter
from lgpl.plots import plot
from lgpl.tokenizer import TokenizerModule
from lgpl.tokenizer.baseline import load_baseline
from lgpl.tokenizer.module import CodebookUsage
from lgpl.training import load_module

# Images [B, 3, H, W] in [-1, 1] and their numbers [B] -> reconstructions, and codes if any.
Rebuild = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def evaluate(what: str, options: Namespace, out: Path) -> None:
    """Evaluate `generation` or `reconstruction`: print the metrics and write them to `out`."""
    protocols.commit()
    with _joined(torch.device(usable_device(options.device))) as device:
        found, first = [], current_rank().index == 0
        if first:
            protocols.require_writable(out)  # before the hours that it may take
        run = reconstruction if what == "reconstruction" else generation
        begin = time.perf_counter()
        for one in run(options, device):  # each setting of a sweep is kept as soon as it is whole
            end = time.perf_counter()
            found.append({**one, "seconds": round(end - begin)})
            begin = end
            if first:
                protocols.write_json(out, found if len(found) > 1 else found[0])
    if first:
        print(table(found))
        for name, why in found[0].get("left_out", {}).items():
            print(f"no {name}: it {why}")
        if len(found) > 1 and found[0]["metrics"]:
            _plot(out.with_suffix(".png"), found)
            print(f"{out.with_suffix('.png')}: the sweep")
        print(f"{out}: {_depends_on(found[0])}")


@contextlib.contextmanager
def _joined(device: torch.device) -> Iterator[torch.device]:
    """Join the ranks that torchrun has started, if it has; yields this rank's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield device
    dist.destroy_process_group()  # not after an error, when the others may be waiting


def reconstruction(options: Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """The report of `rfid`. Where a model for 384 px is compared at 256, its reconstructions are
    resized, and the originals cropped at 256 as they would be for any other model."""
    with _written(options) as writers:
        yield _reconstruction(options, device, writers)


def _reconstruction(
    options: Namespace, device: torch.device, writers: Sequence[FolderWriter | NpzWriter]
) -> dict[str, Any]:
    extractor = load_extractor(options.extractor or INCEPTION).to(device)
    originals = open_images(options.data, options.image_size)
    source = {"source": options.data, "images": originals.count, "crop": originals.crop}
    size, real = options.resize, None
    if size not in (None, originals.size) or options.samples is not None:
        compared = open_images(options.data, options.image_size and (size or options.image_size))
        real = summarise(compared, extractor, options.batch_size, "originals", size)
    if options.samples is not None:
        assert real is not None
        others = open_images(options.samples, options.image_size)
        fake = summarise(others, extractor, options.batch_size, "reconstructions", size)
        made = {"samples": options.samples, "image_size": others.size, "resize": size}
        return report(RFID, extractor, real, fake, source, **made)
    rebuild, codebook, made = _rebuilder(options, device)
    real_set, fake_set = (ImageSet(extractor, originals.count) for _ in range(2))
    pairs = Similarity(None if options.lpips == "none" else options.lpips).to(device)
    usage = CodebookUsage(codebook).to(device)
    for batch, number in batches(originals, options.batch_size, "reconstructions"):
        batch = batch.to(device)
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")
        with torch.inference_mode(), bf16:
            rebuilt, codes = rebuild(normalize(batch), number)
        if codes is not None:
            usage.update(codes)
        batch, rebuilt = resize(batch, size), resize(rebuilt, size)
        if real is None:
            real_set.update(batch, number)
        fake_set.update(rebuilt, number)
        pairs.update(normalize(batch), normalize(rebuilt))
        for writer in writers:
            writer.write(rebuilt, number)
    for writer in writers:
        writer.finish()
    real, fake = real or real_set.compute(), fake_set.compute()
    used = usage.compute() if codebook else {}
    found = pairs.compute() | {f"codebook {name}": value.item() for name, value in used.items()}
    return report(
        RFID, extractor, real, fake, source, found, **made, image_size=originals.size,
        resize=size, lpips=options.lpips, precision=options.precision,
    )  # fmt: skip


def _rebuilder(options: Namespace, device: torch.device) -> tuple[Rebuild, int, dict[str, Any]]:
    """What reconstructs, how many codes it has (0 where it has none), and what the report says."""
    if options.baseline is not None:
        baseline = load_baseline(options.baseline).to(device)
        kind = f"{type(baseline.model).__name__} of diffusers {version('diffusers')}"
        drawn = "of the posterior, drawn for image i from seed i"
        made = {"baseline": options.baseline, "model": kind, "latents": drawn}
        return lambda images, numbers: (baseline(images, numbers), None), 0, made
    module = load_module(options.checkpoint, "tokenizer", (PERCEPTUAL,), options.trust).to(device)
    assert isinstance(module, TokenizerModule)
    autoencoder = module.autoencoder

    def rebuild(images: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        rebuilt, quantized = autoencoder(images)
        return rebuilt, quantized.codes

    return rebuild, autoencoder.codebook_size, {"checkpoint": options.checkpoint}


@contextlib.contextmanager
def _written(options: Namespace) -> Iterator[list[FolderWriter | NpzWriter]]:
    """What takes the reconstructions, where they are asked for."""
    writers: list[FolderWriter | NpzWriter] = []
    for name, kind in (("images", FolderWriter), ("npz", NpzWriter)):
        if (path := options[name]) is not None:
            if options.samples is not None:
                raise UserError(f"--{name}: the reconstructions of --samples are made already.")
            writers.append(kind(path))
    try:
        yield writers
    finally:
        for writer in writers:
            writer.discard()


def _depends_on(report: dict[str, Any]) -> str:
    """What no metric is printed without."""
    said = f"{report['protocol']}, {report['extractor']}, N = {report['N']}"
    if clip := report.get("clip"):
        before = f" with {clip['prefix']!r} before the captions" if clip["prefix"] else ""
        said += f"; CLIP {clip['model']}{before}"
    return said


def table(reports: list[dict[str, Any]]) -> str:
    """Metrics for people: a line for each metric, or of a sweep a line for each setting."""
    names = list(reports[0]["metrics"])
    if len(reports) == 1:
        return "\n".join(f"{name:<28}{reports[0]['metrics'][name]:>12.4f}" for name in names)
    varied = _varied(reports)
    rows = [[*varied, *names]]
    for one in reports:
        numbers = [f"{one['metrics'][name]:.4f}" for name in names]
        rows.append([*(f"{one[name]:g}" for name in varied), *numbers])
    widths = [max(12, len(name) + 2) for name in rows[0]]
    lines = ["".join(map(str.rjust, row, widths)) for row in rows]
    if names:
        lines[1 + reports.index(_best(reports))] += "  <- best"
    return "\n".join(lines)


def _varied(reports: list[dict[str, Any]]) -> list[str]:
    return [name for name in SWEPT if len({one[name] for one in reports}) > 1]


def _best(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The one with the lowest main metric."""
    main = _main(reports[0]["metrics"])
    return min(reports, key=lambda one: one["metrics"][main])


def _main(metrics: Iterable[str]) -> str:
    """FID or, of sets too small for it, KID; else the first."""
    names = list(metrics)
    return next((name for name in names if name.startswith(("FID", "KID"))), names[0])


def _plot(path: Path, reports: list[dict[str, Any]]) -> None:
    """Every metric over the first varied setting, a curve for each combination of the others; the
    main metric's title names the best setting."""
    along, *others = varied = _varied(reports) or [next(iter(SWEPT))]
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in reports:
        name = ", ".join(f"{other} {one[other]:g}" for other in others) or along
        for metric, value in one["metrics"].items():
            panels.setdefault(metric, {}).setdefault(name, []).append((one[along], value))
    main, best = _main(panels), _best(reports)
    optimum = ", ".join(f"{key} {best[key]:g}" for key in varied)
    panels = {f"{main}: {best['metrics'][main]:.4g} at {optimum}": panels.pop(main), **panels}
    plot(path, panels, along)
