"""What 8-bit weights (`lgpl sample --int8`) change on real codes.

    python -m tests.benchmarks.int8 [--checkpoint runs/emoji/stage2/checkpoints/last.ckpt]
        [--codes "runs/emoji/codes64/val-*.tar"] [--dtype float32]

The held-out loss with and without, how often the likeliest next code is the same where both read
the same codes before it, and how many codes of greedily drawn images are the same: after the
first that is another, an image goes its own way.
"""

from __future__ import annotations

import argparse
import copy

import torch
from tqdm import tqdm

from lgpl.data import ShardDataModule
from lgpl.generator import Sampling, generate
from lgpl.generator.loss import cross_entropy
from lgpl.generator.module import GeneratorModule
from lgpl.generator.packing import int8_weights
from lgpl.inference import DTYPES
from lgpl.training import load_module
from tests.models import on, some

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    p.add_argument("--checkpoint", default="runs/emoji/stage2/checkpoints/last.ckpt")
    p.add_argument("--codes", default="runs/emoji/codes64/val-*.tar")
    p.add_argument("--dtype", default="float32", choices=list(DTYPES))
    p.add_argument("--batch-size", type=int, default=31)
    options = p.parse_args()
    module = load_module(options.checkpoint, "generator")
    assert isinstance(module, GeneratorModule)
    model = module.model.to(DEVICE, getattr(torch, DTYPES[options.dtype]))
    rounded = copy.deepcopy(model)
    int8_weights(rounded)
    limits = model.condition.limits()
    data = ShardDataModule(
        val=options.codes,
        fields=("codes", "text" if "text_length" in limits else "class"),
        batch_size=options.batch_size,
    )
    data.expect(text_length=limits.get("text_length"))
    data.setup("validate")
    losses, alike, drawn, count = torch.zeros(2), 0.0, 0.0, 0
    for batch in tqdm(data.val_dataloader(), desc="int8", unit="batch"):
        real = batch["valid"].bool()
        codes = module.codes(batch)[real].to(DEVICE)
        inputs = on(some(model.condition.inputs(batch), real), DEVICE)
        both = [m(codes, inputs).float() for m in (model, rounded)]
        for i, logits in enumerate(both):
            losses[i] += cross_entropy(logits.flatten(0, 1), codes.flatten()).sum().cpu()
        alike += (both[0].argmax(-1) == both[1].argmax(-1)).sum().item()
        greedy = Sampling(guidance=2.0, temperature=0.0)
        one, other = (generate(m, inputs, greedy) for m in (model, rounded))
        drawn += (one == other).sum().item()
        count += codes.numel()
    before, after = (losses / count).tolist()
    print(
        f"{count} codes, {options.dtype}: held-out loss {before:.4f}, with int8 {after:.4f}; "
        f"likeliest code the same {alike / count:.1%}, drawn code {drawn / count:.1%}"
    )


if __name__ == "__main__":
    main()
