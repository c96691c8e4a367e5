"""What `lgpl evaluate` does: the reports of its two protocols, on one rank or many, and the tables
and curves of a sweep."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse import Namespace

from lgpl.codes import ImageSize
from lgpl.commands import parsing
from lgpl.commands.evaluate import SWEPT
from lgpl.data.transforms import normalize
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule
from lgpl.generator.module import PERCEPTUAL
from lgpl.inference import Request, draw_in_turn, load_generator, requests_for, usable_device
from lgpl.inference.drawing import NO_IMAGE
from lgpl.metrics import (
    GFID,
    RFID,
    Extractor,
    FeatureSummary,
    ImageSet,
    Similarity,
    load_extractor,
    protocols,
)
from lgpl.metrics.extractors import resize
from lgpl.metrics.images import SampleFile, current_rank, open_images
from lgpl.metrics.protocols import report
from lgpl.metrics.reference import batches, progress, reference, summarise
from lgpl.plots import plot
from lgpl.tokenizer import TokenizerModule
from lgpl.tokenizer.module import CodebookUsage
from lgpl.training import load_module


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
        print(f"{out}: {found[0]['protocol']}, {found[0]['extractor']}, N = {found[0]['N']}")


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
    extractor = load_extractor(options.extractor).to(device)
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
        yield report(RFID, extractor, real, fake, source, **made)
        return
    module = load_module(options.checkpoint, "tokenizer", (PERCEPTUAL,), options.trust).to(device)
    assert isinstance(module, TokenizerModule)
    real_set, fake_set = (ImageSet(extractor, originals.count) for _ in range(2))
    pairs = Similarity(None if options.lpips == "none" else options.lpips).to(device)
    usage = CodebookUsage(module.autoencoder.codebook_size).to(device)
    for batch, number in batches(originals, options.batch_size, "reconstructions"):
        batch = batch.to(device)
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")
        with torch.inference_mode(), bf16:
            rebuilt, quantized = module.autoencoder(normalize(batch))
        usage.update(quantized.codes)
        batch, rebuilt = resize(batch, size), resize(rebuilt, size)
        if real is None:
            real_set.update(batch, number)
        fake_set.update(rebuilt, number)
        pairs.update(normalize(batch), normalize(rebuilt))
    real, fake = real or real_set.compute(), fake_set.compute()
    used = {f"codebook {name}": value.item() for name, value in usage.compute().items()}
    yield report(
        RFID, extractor, real, fake, source, pairs.compute() | used,
        checkpoint=options.checkpoint, image_size=originals.size, resize=size,
        lpips=options.lpips, precision=options.precision,
    )  # fmt: skip


def generation(options: Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """The reports of `gfid`, one for each setting of a sweep."""
    extractor = load_extractor(options.extractor).to(device)
    kept = (options.cache, options.batch_size)
    if options.samples is not None:
        images = open_images(options.samples, options.resize, "--resize")
        side = options.resize or images.size or tuple(next(iter(images.batches(1))).shape[-2:])
        real, source = reference(options.reference, extractor, side, *kept)
        fake = summarise(images, extractor, options.batch_size, "samples", options.resize)
        made = {"samples": options.samples, "resize": options.resize}
        yield report(GFID, extractor, real, fake, source, **made)
        return
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    where = (options.checkpoint, options.tokenizer, str(device))
    module = load_generator(*where, dtype, trust=options.trust)
    given = protocols.read_prompts(options.prompts) if options.prompts else []
    prompts = module.model.condition.prompts() or given
    if not prompts or (given and prompts is not given):
        mistake = "is class-conditional: leave --prompts out" if given else "needs --prompts"
        raise UserError(f"The checkpoint {mistake}.")
    prompts = list(itertools.islice(itertools.cycle(prompts), options.images))
    own = module.sampling
    sweep = list(itertools.product(*(options.get(n) or [getattr(own, n)] for n in SWEPT)))
    settings = [dict(zip(SWEPT, values, strict=True)) for values in sweep]
    samplings = [parsing.sampling_of(options, own, **one) for one in settings]
    for sampling in samplings:  # before the reference is read, which may take long
        module.check_sampling(sampling)
    side = options.resize or module.image_size
    real, source = reference(options.reference, extractor, side, *kept)
    for values, sampling in zip(sweep, samplings, strict=True):
        file = None
        if options.npz:
            path = Path(options.npz)
            if len(sweep) > 1:
                path = path.with_stem(
                    "-".join([path.stem, *(str(v) for v in values if v is not None)])
                )
            drawn_by = parsing.settings(options, prompts, sampling, "batch_size", "precision")
            file = SampleFile(path, drawn_by, options.images, side)
        requests = requests_for(prompts, sampling, options.seed)
        fake = _drawn(module, extractor, requests, options.batch_size, side, file)
        yield report(
            GFID, extractor, real, fake, source,
            **asdict(sampling), seed=options.seed, checkpoint=options.checkpoint,
            image_size=module.image_size, resize=options.resize, prompts=options.prompts,
            precision=options.precision,
        )  # fmt: skip


def _drawn(
    module: GeneratorModule,
    extractor: Extractor,
    requests: list[Request],
    batch_size: int,
    side: ImageSize,
    file: SampleFile | None,
) -> FeatureSummary:
    """The summary of generated images; those that the file has already are not drawn again."""
    if file is not None and file.path.exists():
        return summarise(open_images(str(file.path)), extractor, batch_size, str(file.path))
    rank, total, seen = current_rank(), len(requests), 0  # a bar that is disabled does not count
    made = ImageSet(extractor, total)
    done = 0 if file is None else file.done  # before any rank adds to it
    share = (batch_size, rank.index, rank.count)
    turns = draw_in_turn(module, requests, *share, lambda numbers: numbers[-1] < done)
    with progress("sampling", total) as bar:
        try:
            for numbers, images in turns:
                first, new = numbers[0], None
                if images is not None:
                    new = resize(images, side)
                    made.update(new, torch.tensor(numbers))
                elif file is not None and first != NO_IMAGE:
                    made.update(file.read(first, numbers[-1] + 1), torch.tensor(numbers))
                if file is not None:
                    parts = _gathered(None if new is None else (first, new.cpu()))
                    for part in filter(None, parts):  # in the order of their numbers
                        file.write(*part)
                seen = min(seen + batch_size * rank.count, total)
                bar.update(seen - bar.n)
        except KeyboardInterrupt:
            kept = f"the same command goes on with {file.path}" if file else "none are kept (--npz)"
            bar.close()
            if rank.index == 0:
                print(f"lgpl: {seen} of {total} images were drawn: no metric is given; {kept}.")
            raise
    if file is not None and rank.index == 0:
        file.finish()
    return made.compute()


def _gathered(value: Any) -> list[Any]:
    """The values of all ranks on the first one, an empty list on the others; all must call this."""
    rank = current_rank()
    values = [value] * rank.count if rank.index == 0 else None
    if rank.count > 1:
        dist.gather_object(value, values)
    return values or []


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
