"""Speculative Jacobi decoding against raster order, on the model that comes with lgpl.

    python -m tests.benchmarks.speculative [--batches 1 16] [--windows 4 8 16 32] [--rounds 5]
        [--temperatures 0 1]

Images of the first emoji captions, without the detokenizer. The decoders take turns; a time is the
median over the rounds. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

from lgpl import cpus

cpus.prepare()  # as the command line does, before torch is loaded

import torch  # noqa: E402

from lgpl.commands.quickstart import TRAIN  # noqa: E402
from lgpl.generator import Decoder, Raster, Sampling, SpeculativeJacobi  # noqa: E402
from lgpl.generator.conditions import join  # noqa: E402
from lgpl.inference import load_generator  # noqa: E402
from lgpl.metrics.protocols import read_prompts  # noqa: E402
from tests.benchmarks.train_step import seconds  # noqa: E402


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    p.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16, 32])
    p.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    p.add_argument("--rounds", type=int, default=5)
    options = p.parse_args()
    module = load_generator("emoji", None, "cpu")
    prompts = list(dict.fromkeys(read_prompts(TRAIN)))
    print("| temperature | images | decoder | codes a pass | seconds | raster / it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for temperature in options.temperatures:
        for batch in options.batches:
            inputs = join(
                module.model.condition.parse_each(prompts[:: len(prompts) // batch][:batch])
            )
            decoders: dict[str, Decoder] = {"raster": Raster()}
            for window in options.windows:
                decoders[f"speculative, window {window}"] = SpeculativeJacobi(window)
            seeds, sampling = list(range(batch)), Sampling(temperature=temperature)
            draws = {
                name: partial(module.sample_codes, inputs, sampling, seeds, decoder=decoder)
                for name, decoder in decoders.items()
            }
            times: dict[str, list[float]] = {name: [] for name in draws}
            for draw in draws.values():
                draw()
            for _ in range(options.rounds):
                for name, draw in draws.items():
                    times[name].append(seconds(draw, 1))
            for name, decoder in decoders.items():
                own = zip(times["raster"], times[name], strict=True)
                ratio = statistics.median(raster / it for raster, it in own)
                said = decoder.summary().split()[0] if decoder.summary() else "1"
                t = statistics.median(times[name])
                print(f"| {temperature:g} | {batch} | {name} | {said} | {t:.3f} | {ratio:.2f}x |")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
