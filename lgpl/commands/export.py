"""`lgpl export`: write the model of a checkpoint, its moving average where it was trained with one,
without optimizer and discriminator."""

from pathlib import Path

import torch

from lgpl.atomic import atomic_file, remove_partials
from lgpl.checkpoints import add_trust, read_checkpoint, write_checkpoint
from lgpl.checkpoints.released.llamagen import to_llamagen
from lgpl.commands.parsing import ArgumentParser
from lgpl.errors import UserError, as_user_error


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl export", description=__doc__)
    p.add_argument("checkpoint", help=".ckpt file, folder of a sharded run, or lgpl's own folder")
    p.add_argument("--out", required=True, help="folder, or .pt file for LlamaGen")
    p.add_argument("--format", choices=["lgpl", "llamagen"], default="lgpl", help="whose form")
    add_trust(p)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    out, for_llamagen = Path(options.out), options.format == "llamagen"
    if for_llamagen != (out.suffix == ".pt"):
        wanted = "a .pt file for --format llamagen and a folder for lgpl"
        raise UserError(f"--out must be {wanted}, got {out}")
    checkpoint = read_checkpoint(options.checkpoint)
    if not for_llamagen:
        write_checkpoint(out, checkpoint.kind, checkpoint.described(), checkpoint.weights())
    else:
        content = to_llamagen(checkpoint, options.trust)
        with as_user_error(f"--out: {out} cannot be written", OSError, RuntimeError):
            out.parent.mkdir(parents=True, exist_ok=True)
            remove_partials(out)
            with atomic_file(out) as file:
                torch.save(content, file)
    print(f"{out}: the {checkpoint.kind} of {checkpoint.path}")
