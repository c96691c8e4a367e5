"""One rank of a distributed evaluation: every second batch, of unequal numbers or none at all."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist

from lgpl.metrics import ImageSet, compute_metrics
from lgpl.metrics.extractors import ModuleFeatures
from tests.metrics.pixels import Pixels


def main(out: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", os.environ["INIT"], rank=rank, world_size=world)
    rng = torch.Generator().manual_seed(0)
    sets = []
    for count, shift in ((301, 0), (301, 40), (60, 20)):
        images = torch.randint(200, (count, 3, 16, 16), generator=rng) + shift
        made = ImageSet(ModuleFeatures(Pixels()), len(images), keep=150)
        for index, part in enumerate(torch.arange(count).split(60)):
            if index % world == rank:
                made.update(images[part].byte(), part)
        sets.append(made.compute())
    found = [compute_metrics(sets[0], other, made.extractor) for other in sets[1:]]
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
