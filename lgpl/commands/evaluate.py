"""`lgpl evaluate`: metrics of a checkpoint, or of images made elsewhere, by a named protocol, with
all they depend on; and scores of images by what their prompts ask for."""

import argparse
from pathlib import Path

from lgpl.checkpoints import add_trust
from lgpl.codes import to_image_size
from lgpl.commands import parsing
from lgpl.errors import UserError
from lgpl.metrics import CACHE, COCO30K, COMPOSED_EMOJI, GENEVAL, GFID, PARTIPROMPTS, RFID
from lgpl.text.prompts import COLUMN

# Options of `Sampling` that take several values.
SWEPT = {"guidance": float, "top_k": int, "top_p": float, "temperature": float, "steps": int}


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl evaluate", description=__doc__)
    commands = p.add_subcommands()
    commands.add_subcommand("generation", _generation(), help="N generated images")
    commands.add_subcommand("reconstruction", _reconstruction(), help="images through a tokenizer")
    commands.add_subcommand("prompts", _prompts(), help="images against what their prompts ask for")
    return p


def _common(description: str, protocols: list[str], of: str) -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(description=description)
    p.add_argument("--protocol", choices=protocols, default=protocols[0], help="see the README")
    p.add_argument("--checkpoint", help=f"checkpoint of a {of}")
    add_trust(p)
    p.add_argument("--samples", help="folder or npz of images made elsewhere, without a checkpoint")
    extractor = "inception, inception-clean, effnet-lite0, a class path; the protocol's by default"
    p.add_argument("--extractor", help=extractor)
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
    p = _common("Generated images against a reference.", [GFID, COCO30K], "generator")
    p.add_argument("--tokenizer", help="checkpoint of its tokenizer, where it has moved")
    parsing.add_decoder(p)
    real = "npz (ADM's batch, or statistics), folder or shards of real images"
    p.add_argument("--reference", required=True, help=real)
    p.add_argument("--images", type=int, help="N; 50000 of gfid, 30000 of coco30k by default")
    lines = "text file, one a line; .csv, .tsv or .jsonl; or shards whose captions are taken"
    p.add_argument("--prompts", help=lines)
    p.add_argument("--prompt-column", default=COLUMN, help="of the prompts in a .csv or .tsv")
    _add_clip(p, "adds the CLIP score")
    parsing.add_sampling(p, skip=SWEPT)
    sweep = "see `lgpl sample`; several values are a sweep"
    for name, kind in SWEPT.items():
        own = argparse.SUPPRESS  # the model's
        p.add_argument(parsing.flag(name), type=kind, nargs="+", default=own, help=sweep)
    p.add_argument("--seed", type=int, default=0, help="image i is drawn from seed + i")
    p.add_argument("--npz", help="file for the images, from which an interrupted run continues")
    return p


def _prompts() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(description="Images against what their prompts ask for.")
    benchmarks = [GENEVAL, COMPOSED_EMOJI, PARTIPROMPTS]
    p.add_argument("--benchmark", choices=benchmarks, required=True, help="see the README")
    samples = "folder that `lgpl sample --prompts` has filled; or shards of composed emoji"
    p.add_argument("--samples", required=True, help=samples)
    p.add_argument("--prompts", help="PartiPrompts' table")
    p.add_argument("--prompt-column", default=COLUMN, help="of the prompts in the table")
    p.add_argument("--detector", help="object detector of transformers, name or folder; of geneval")
    _add_clip(p, "names colours for geneval, scores partiprompts")
    p.add_argument("--batch-size", type=int, default=32, help="images at a time")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    p.add_argument("--out", required=True, help="JSON to write; .jsonl beside it lists the images")
    return p


def _add_clip(p: parsing.ArgumentParser, use: str) -> None:
    p.add_argument("--clip", help=f"CLIP of transformers, name or folder: {use}")
    before = "what stands before each caption for its score, such as 'A photo depicts '"
    p.add_argument("--clip-prefix", default="", help=before)


def _reconstruction() -> parsing.ArgumentParser:
    p = _common("Reconstructions against their originals.", [RFID], "tokenizer")
    p.add_argument("--data", required=True, help="shards, folder or npz of the originals")
    baseline = "autoencoder of diffusers in place of a checkpoint, a name on the hub or a folder"
    p.add_argument("--baseline", help=baseline)
    size = "side of the centre crop, or height and width, pixels"
    p.add_argument("--image-size", type=int, nargs="+", help=size)
    p.add_argument("--lpips", choices=["vgg", "alex", "none"], default="vgg", help="its net")
    p.add_argument("--images", metavar="FOLDER", help="for the reconstructions, by their numbers")
    p.add_argument("--npz", help="file for the reconstructions")
    return p


def main(args: list[str]) -> None:
    chosen = parser().parse_args(args)
    options = chosen[chosen.subcommand]
    for name in ("resize", "image_size"):
        if (given := options.get(name)) is not None:
            options[name] = to_image_size(given, parsing.flag(name))
    generated = chosen.subcommand == "generation"
    parsing.require_positive(options, *(["batch_size", "images"] if generated else ["batch_size"]))
    if (out := Path(options.out)).suffix != ".json":
        raise UserError(f"--out: {out} should end in .json.")
    if chosen.subcommand == "prompts":
        from lgpl.commands import benchmarks  # with torch

        benchmarks.evaluate(options, out)
        return
    sources = [name for name in ("checkpoint", "baseline", "samples") if options.get(name)]
    if len(sources) != 1:
        kinds = "one of --checkpoint, --baseline and --samples"
        raise UserError(f"Give {'either --checkpoint or --samples' if generated else kinds}.")
    from lgpl.commands import evaluation

    evaluation.evaluate(chosen.subcommand, options, out)
