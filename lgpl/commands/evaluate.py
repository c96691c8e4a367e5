"""`lgpl evaluate`: metrics of a checkpoint, or of images made elsewhere, by a named protocol, with
all they depend on."""

import argparse
from pathlib import Path

from lgpl.checkpoints import add_trust
from lgpl.codes import to_image_size
from lgpl.commands import parsing
from lgpl.errors import UserError
from lgpl.metrics import CACHE, GFID, RFID

# Options of `Sampling` that take several values.
SWEPT = {"guidance": float, "top_k": int, "top_p": float, "temperature": float, "steps": int}


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl evaluate", description=__doc__)
    commands = p.add_subcommands()
    commands.add_subcommand("generation", _generation(), help="N generated images")
    commands.add_subcommand("reconstruction", _reconstruction(), help="images through a tokenizer")
    return p


def _common(description: str, protocol: str, of: str) -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(description=description)
    p.add_argument("--protocol", choices=[protocol], default=protocol, help="see the README")
    p.add_argument("--checkpoint", help=f"checkpoint of a {of}")
    add_trust(p)
    p.add_argument("--samples", help="folder or npz of images made elsewhere, without a checkpoint")
    p.add_argument("--extractor", default="inception", help="inception, effnet-lite0, a class path")
    size = "side, or height and width, at which images are compared; 256 of 384"
    p.add_argument("--resize", type=int, nargs="+", help=size)
    p.add_argument("--cache", default=CACHE, help="folder of reference statistics")
    p.add_argument("--batch-size", type=int, default=32, help="images at a time")
    precision = "of a tokenizer's products, or of a generator's weights"
    p.add_argument("--precision", choices=["32", "bf16"], default="32", help=precision)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    p.add_argument("--out", required=True, help="JSON to write")
    return p


def _generation() -> parsing.ArgumentParser:
    p = _common("Generated images against a reference.", GFID, "generator")
    p.add_argument("--tokenizer", help="checkpoint of its tokenizer, where it has moved")
    real = "npz (ADM's batch, or statistics), folder or shards of real images"
    p.add_argument("--reference", required=True, help=real)
    p.add_argument("--images", type=int, default=50_000, help="N")
    p.add_argument("--prompts", help="text file, one a line, or shards whose captions are taken")
    parsing.add_sampling(p, skip=SWEPT)
    sweep = "see `lgpl sample`; several values are a sweep"
    for name, kind in SWEPT.items():
        own = argparse.SUPPRESS  # the model's
        p.add_argument(parsing.flag(name), type=kind, nargs="+", default=own, help=sweep)
    p.add_argument("--seed", type=int, default=0, help="image i is drawn from seed + i")
    p.add_argument("--npz", help="file for the images, from which an interrupted run continues")
    return p


def _reconstruction() -> parsing.ArgumentParser:
    p = _common("Reconstructions against their originals.", RFID, "tokenizer")
    p.add_argument("--data", required=True, help="shards, folder or npz of the originals")
    size = "side of the centre crop, or height and width, pixels"
    p.add_argument("--image-size", type=int, nargs="+", help=size)
    p.add_argument("--lpips", choices=["vgg", "alex", "none"], default="vgg", help="its net")
    return p


def main(args: list[str]) -> None:
    chosen = parser().parse_args(args)
    options = chosen[chosen.subcommand]
    for name in ("resize", "image_size"):
        if (given := options.get(name)) is not None:
            options[name] = to_image_size(given, parsing.flag(name))
    parsing.require_positive(options, "batch_size", "images")
    if (options.checkpoint is None) == (options.samples is None):
        raise UserError("Give either --checkpoint or --samples.")
    if (out := Path(options.out)).suffix != ".json":
        raise UserError(f"--out: {out} should end in .json.")
    from lgpl.commands.evaluation import evaluate  # with torch

    evaluate(chosen.subcommand, options, out)
