"""What `lgpl evaluate generation` does: the reports of its protocols, a setting of a sweep each."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse import Namespace
from torch import Tensor

from lgpl.codes import ImageSize
from lgpl.commands import parsing
from lgpl.commands.evaluate import SWEPT
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule
from lgpl.inference import Request, draw_in_turn, load_generator, requests_for
from lgpl.inference.drawing import NO_IMAGE
from lgpl.metrics import CLIPScore, Extractor, FeatureSummary, ImageSet, load_extractor, protocols
from lgpl.metrics.images import SampleFile, current_rank, open_images
from lgpl.metrics.protocols import Protocol, captions_of, report
from lgpl.metrics.reference import progress, reference, summarise

Watch = Callable[[Tensor, Tensor], None]  # of images, as they are compared, and their numbers


def generation(options: Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """The reports of a protocol, one for each setting of a sweep."""
    protocol = protocols.GENERATION[options.protocol]
    if protocol.size is not None and options.resize not in (None, protocol.size):
        only = f"{protocol.name} compares images of {' '.join(map(str, protocol.size))} pixels"
        raise UserError(f"--resize: {only}; leave it out.")
    options.resize = protocol.size or options.resize
    options.extractor = options.extractor or protocol.extractor
    clip = CLIPScore(options.clip, options.clip_prefix).to(device) if options.clip else None
    extractor = load_extractor(options.extractor).to(device)
    if options.samples is not None:
        yield _of_samples(options, protocol, extractor, clip)
    else:
        yield from _of_checkpoint(options, protocol, extractor, clip, device)


def _of_samples(
    options: Namespace, protocol: Protocol, extractor: Extractor, clip: CLIPScore | None
) -> dict[str, Any]:
    images = open_images(options.samples, options.resize, "--resize", protocol.crop)
    watch = None
    if clip is not None:
        watch = _scoring(clip, captions_of(images, options.prompts, options.prompt_column))
    side = options.resize or images.size or tuple(next(iter(images.batches(1))).shape[-2:])
    kept = (options.cache, options.batch_size, protocol.crop)
    real, source = reference(options.reference, extractor, side, *kept)
    drawn = (images, extractor, options.batch_size, "samples", options.resize)
    fake = summarise(*drawn, watch=watch)
    made = {"samples": options.samples, "resize": options.resize, "prompts": options.prompts}
    return _report(protocol, extractor, real, fake, source, clip, **made)


def _of_checkpoint(
    options: Namespace,
    protocol: Protocol,
    extractor: Extractor,
    clip: CLIPScore | None,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    images = protocol.images if options.images is None else options.images
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    where = (options.checkpoint, options.tokenizer, str(device))
    decoder = parsing.decoder_of(options)
    module = load_generator(*where, dtype, trust=options.trust, decoder=decoder)
    prompts = _prompts(options, module, protocol, clip is not None, images)
    side = options.resize or module.image_size
    kept = (options.cache, options.batch_size, protocol.crop)
    own = module.sampling
    sweep = list(itertools.product(*(options.get(n) or [getattr(own, n)] for n in SWEPT)))
    chosen = [dict(zip(SWEPT, values, strict=True)) for values in sweep]
    samplings = [parsing.sampling_of(options, own, **one) for one in chosen]
    for sampling in samplings:  # before the reference is read, which may take long
        module.check_sampling(sampling)
    real, source = reference(options.reference, extractor, side, *kept)
    for values, sampling in zip(sweep, samplings, strict=True):
        file = None
        if options.npz:
            path = Path(options.npz)
            if len(sweep) > 1:
                given = (str(value) for value in values if value is not None)
                path = path.with_stem("-".join([path.stem, *given]))
            more = ("batch_size", "precision", "decoder")
            drawn_by = parsing.settings(options, prompts, sampling, *more)
            file = SampleFile(path, drawn_by, images, side)
        requests = requests_for(prompts, sampling, options.seed)
        watch = None
        if clip is not None:
            clip.reset()
            watch = _scoring(clip, prompts)
        drawn = (requests, options.batch_size, side, protocol, file, watch)
        fake = _drawn(module, extractor, *drawn)
        yield _report(
            protocol, extractor, real, fake, source, clip,
            **asdict(sampling), seed=options.seed, checkpoint=options.checkpoint,
            image_size=module.image_size, resize=options.resize, prompts=options.prompts,
            precision=options.precision, decoder=options.decoder,
        )  # fmt: skip


def _prompts(
    options: Namespace, module: GeneratorModule, protocol: Protocol, captions: bool, images: int
) -> list[str]:
    """One for each image; what is to be scored as `captions` has to be text."""
    given, condition = [], module.model.condition
    if options.prompts:
        column, limits = options.prompt_column, condition.limits()
        given = protocols.read_prompts(options.prompts, column, limits)
    every = condition.prompts()
    if (every is None) != bool(given):
        mistake = "is class-conditional: leave --prompts out" if given else "needs --prompts"
        raise UserError(f"The checkpoint {mistake}.")
    if every is not None and (captions or protocol.each_once):
        wanting = "--clip" if captions else f"--protocol {protocol.name}"
        raise UserError(f"{wanting} needs captions, but the checkpoint is class-conditional.")
    if protocol.each_once:
        protocols.require_enough(given, images, options.prompts)
    return list(itertools.islice(itertools.cycle(every or given), images))


def _scoring(clip: CLIPScore, captions: Sequence[str]) -> Watch:
    def watch(images: Tensor, numbers: Tensor) -> None:
        clip.update(images, [captions[number] for number in numbers.tolist()])

    return watch


def _report(
    protocol: Protocol,
    extractor: Extractor,
    real: FeatureSummary,
    fake: FeatureSummary,
    source: dict[str, Any],
    clip: CLIPScore | None,
    **settings: Any,
) -> dict[str, Any]:
    more = None
    if clip is not None:
        more = {clip.name: clip.compute().item()}
        settings["clip"] = clip.provenance(fake.count)
    return report(protocol.name, extractor, real, fake, source, more, **settings)


def _drawn(
    module: GeneratorModule,
    extractor: Extractor,
    requests: list[Request],
    batch_size: int,
    side: ImageSize,
    protocol: Protocol,
    file: SampleFile | None,
    watch: Watch | None,
) -> FeatureSummary:
    """The summary of generated images; those that the file has already are not drawn again."""
    if file is not None and file.path.exists():
        whole = open_images(str(file.path))
        return summarise(whole, extractor, batch_size, str(file.path), watch=watch)
    rank, total, seen = current_rank(), len(requests), 0  # a bar that is disabled does not count
    made = ImageSet(extractor, total)
    done = 0 if file is None else file.done  # before any rank adds to it
    share = (batch_size, rank.index, rank.count)
    turns = draw_in_turn(module, requests, *share, lambda numbers: numbers[-1] < done)
    with progress("sampling", total) as bar:
        try:
            for numbers, drawn in turns:
                first, new, images = numbers[0], None, None
                if drawn is not None and first != NO_IMAGE:
                    images = new = protocol.resize(drawn, side)
                elif file is not None and first != NO_IMAGE:
                    images = file.read(first, numbers[-1] + 1)
                if images is not None:
                    made.update(images, torch.tensor(numbers))
                    if watch is not None:
                        watch(images, torch.tensor(numbers))
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
