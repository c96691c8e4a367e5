"""A parallel generator against a raster one of the same size, trained on the same samples.

    python -m tests.benchmarks.parallel --raster CKPT --parallel CKPT --codes "CODES/val-*.tar"
        [--steps 64 16 12 8 4] [--batches 1 16] [--rounds 5] [--guidance 1] [--images 1000]

The first table is of time: seconds for each image, codes and pixels, medians of alternating rounds.
The machine should do nothing else. The second is of in-painting: some codes of held-out images are
hidden, or all, and both generators say what the true ones are. The parallel one knows all others
from the start and its own groups as it goes; the raster one knows those above and to the left. A
number is the mean negative log-likelihood of a hidden code, in nats. Distances to real images are
those of `lgpl evaluate generation --steps 64 16 12 8 4`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial

from lgpl import cpus

cpus.prepare()  # as the command line does, before torch is loaded

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lgpl.codes import CodeLayout  # noqa: E402
from lgpl.data import ShardDataModule  # noqa: E402
from lgpl.generator import GeneratorModule, ParallelTransformer, Sampling  # noqa: E402
from lgpl.generator.conditions import Inputs  # noqa: E402
from lgpl.generator.decoders.groups import group_sizes, numbered  # noqa: E402
from lgpl.inference import load_generator  # noqa: E402
from tests.benchmarks.train_step import seconds  # noqa: E402

Batch = tuple[Tensor, Inputs]  # codes [B, N] and what they are conditioned on


def batches(module: GeneratorModule, shards: str, images: int) -> Iterator[Batch]:
    """The first images of code shards."""
    condition = module.model.condition
    data = ShardDataModule(test=shards, fields=("codes", condition.fields[0]), eval_batch_size=100)
    data.expect(layout=module.model.layout, **condition.limits())
    data.setup("test")
    for batch in data.test_dataloader():
        count = min(images, int(batch["valid"].sum()))
        inputs = {name: value[:count] for name, value in condition.inputs(batch).items()}
        yield module.codes(batch)[:count], inputs
        images -= count
        if not images:
            return


def masks(layout: CodeLayout) -> dict[str, Tensor]:
    """Hidden codes [N] by what is hidden."""
    hidden = torch.zeros(4, layout.rows, layout.columns, layout.depth, dtype=torch.bool)
    rows, columns = layout.rows // 4, layout.columns // 4
    hidden[0, rows:-rows, columns:-columns] = True
    hidden[1, :, layout.columns // 2 :] = True
    hidden[2, layout.rows // 2 :] = True
    hidden[3] = True
    names = ("the middle quarter", "the right half", "the lower half", "all")
    return dict(zip(names, hidden.flatten(1), strict=True))


def raster_loss(module: GeneratorModule, batch: Batch, hidden: Tensor) -> Tensor:
    """Nats of the hidden codes [B, n]."""
    codes, inputs = batch
    logits = module.model(codes, inputs)
    return F.cross_entropy(logits.mT.float(), codes, reduction="none")[:, hidden]


def parallel_loss(module: GeneratorModule, batch: Batch, hidden: Tensor, steps: int) -> Tensor:
    """Nats of the hidden codes [B, n], in groups as the decoder draws them."""
    model, (codes, inputs) = module.model, batch
    assert isinstance(model, ParallelTransformer)
    count = int(hidden.sum())
    sizes, known = group_sizes(model.layout, count, min(steps, count)), (~hidden)[None]
    choices = torch.rand(1, len(hidden), generator=torch.Generator().manual_seed(0))
    order = module.decoder.plan(model.layout, known, [sizes], choices).order.expand_as(codes)
    group = torch.tensor(numbered([len(hidden) - count, *sizes]))
    ordered = codes.gather(1, order)
    logits = model(ordered, inputs, order, group)
    return F.cross_entropy(logits.mT.float(), ordered, reduction="none")[:, -count:]


def likelihood(raster: GeneratorModule, parallel: GeneratorModule, o: argparse.Namespace) -> None:
    layout = raster.model.layout
    ways = {"raster": partial(raster_loss, raster)}
    for steps in o.steps:
        ways[f"{steps} steps"] = partial(parallel_loss, parallel, steps=steps)
    found: dict[tuple[str, str], list[Tensor]] = {}
    for batch in tqdm([*batches(raster, o.codes, o.images)], unit="batch"):
        for name, hidden in masks(layout).items():
            for way, loss in ways.items():
                found.setdefault((name, way), []).append(loss(batch, hidden))
    print(f"\n| hidden codes | {' | '.join(ways)} |")
    print(f"| --- |{' --: |' * len(ways)}")
    for name, hidden in masks(layout).items():
        nats = " | ".join(f"{torch.cat(found[name, way]).mean():.3f}" for way in ways)
        print(f"| {name}, {int(hidden.sum())} | {nats} |")


def times(raster: GeneratorModule, parallel: GeneratorModule, o: argparse.Namespace) -> None:
    print("| images | generator | seconds an image | raster / it |")
    print("| --: | --- | --: | --: |")
    for batch in o.batches:
        (_, inputs), seeds = next(batches(raster, o.codes, batch)), list(range(batch))
        plain = Sampling(guidance=o.guidance)
        draws = {"raster": partial(raster.sample, inputs, plain, seeds)}
        for steps in o.steps:
            sampling = Sampling(guidance=o.guidance, steps=steps)
            draws[f"parallel, {steps} steps"] = partial(parallel.sample, inputs, sampling, seeds)
        taken: dict[str, list[float]] = {name: [] for name in draws}
        for turn in range(o.rounds + 1):
            for name, draw in draws.items():
                passed = seconds(draw, 1)
                if turn:  # the first warms up
                    taken[name].append(passed)
        of_raster = statistics.median(taken["raster"])
        for name, values in taken.items():
            t = statistics.median(values)
            print(f"| {batch} | {name} | {t / batch:.4f} | {of_raster / t:.2f}x |")


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--raster", required=True)
    p.add_argument("--parallel", required=True)
    p.add_argument("--codes", required=True)
    p.add_argument("--steps", type=int, nargs="+", default=[64, 16, 12, 8, 4])
    p.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--guidance", type=float, default=1.0)
    p.add_argument("--images", type=int, default=1000)
    options = p.parse_args()
    raster, parallel = (load_generator(x, None, "cpu") for x in (options.raster, options.parallel))
    times(raster, parallel, options)
    likelihood(raster, parallel, options)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
