"""Codes to images on a CPU: a tokenizer as it is trained, and as it is packed for drawing.

    python -m tests.benchmarks.detokenizer [--batch 8] [--rounds 5]

VQ-16 with random weights at 256 px, and the emoji tokenizer at 64 px with the codes of held-out
emoji, so many images at once as in drawing. Both ways take turns; a time is the median over the
rounds, a ratio the median of theirs. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial

from lgpl import cpus

cpus.prepare()  # as the command line does, before torch is loaded

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from lgpl.commands.quickstart import HELD_OUT  # noqa: E402
from lgpl.data.transforms import normalize  # noqa: E402
from lgpl.metrics.images import open_images  # noqa: E402
from lgpl.shipped import checkpoint  # noqa: E402
from lgpl.tokenizer import Autoencoder, TokenizerModule, VectorQuantizer, VQModel  # noqa: E402
from lgpl.training import load_module  # noqa: E402
from tests.benchmarks.train_step import seconds  # noqa: E402


def decode(tokenizer: Autoencoder, codes: Tensor) -> Tensor:
    """As `GeneratorModule.decode` does it on a CPU."""
    side = 16 * codes.shape[-1] if codes.dim() == 3 else 8 * codes.shape[-1]
    together = max(1, tokenizer.pixels_at_once // side**2)
    return torch.cat([tokenizer.decode(part) for part in codes.split(together)]).clamp(-1, 1)


def compare(name: str, tokenizer: Autoencoder, codes: Tensor, rounds: int) -> None:
    packed = copy.deepcopy(tokenizer)
    packed.pack()
    ways = {"plain": partial(decode, tokenizer, codes), "packed": partial(decode, packed, codes)}
    plain, fast = (((way() + 1) * 127.5).round() for way in ways.values())
    apart = (plain - fast).abs()
    same = f"{(apart == 0).float().mean():.2%} of values equal, {(apart <= 1).float().mean():.3%}"
    times = [[seconds(way, 1) for way in ways.values()] for _ in range(rounds)]
    slow, quick = (statistics.median(values) for values in zip(*times, strict=True))
    ratio = statistics.median(before / after for before, after in times)
    print(
        f"{name}, {len(codes)} images: plain {slow:.2f} s, packed {quick:.2f} s, {ratio:.2f}x; "
        f"{same} within 1, at most {apart.max():.0f} of 255 apart, "
        f"PSNR of one against the other {20 * (255 / apart.square().mean().sqrt()).log10():.1f} dB",
        flush=True,
    )


@torch.inference_mode()
def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rounds", type=int, default=5)
    options = p.parse_args()
    module = load_module(checkpoint("emoji", "tokenizer"), "tokenizer")
    assert isinstance(module, TokenizerModule)
    images = next(iter(open_images(HELD_OUT, (64, 64)).batches(93)))
    codes = module.autoencoder.encode(normalize(images))
    compare("emoji, 64 px", module.autoencoder, codes, options.rounds)
    torch.manual_seed(0)
    random = torch.randint(16384, (options.batch, 16, 16))
    compare("VQ-16, 256 px", VQModel(VectorQuantizer()).eval(), random, options.rounds)


if __name__ == "__main__":
    main()
