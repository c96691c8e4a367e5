"""`lgpl export`: write the model of a checkpoint, its moving average where it was trained with one,
without optimizer and discriminator."""

from __future__ import annotations  # or they would import torch

from pathlib import Path
from typing import TYPE_CHECKING

from lgpl.atomic import atomic_file, remove_partials
from lgpl.checkpoints import add_trust
from lgpl.commands.parsing import ArgumentParser
from lgpl.errors import UserError, as_user_error
from lgpl.inference import DTYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lgpl.checkpoints import Checkpoint


FAMILIES = {"llamagen": "LlamaGen", "lpd": "LPD"}  # whose own code reads the other forms


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl export", description=__doc__)
    p.add_argument("checkpoint", help=".ckpt file, folder of a sharded run, or lgpl's own folder")
    p.add_argument("--out", required=True, help="folder, or .pt file for another's form")
    p.add_argument("--format", choices=["lgpl", *FAMILIES], default="lgpl", help="whose form")
    dtype = "of the weights; their own by default, and bf16 takes half of float32's place"
    p.add_argument("--dtype", choices=list(DTYPES), help=dtype)
    add_trust(p)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    out, family = Path(options.out), FAMILIES.get(options.format)
    if (family is not None) != (out.suffix in (".pt", ".pth")):
        wanted = f"a .pt file for --format {' or '.join(FAMILIES)} and a folder for lgpl"
        raise UserError(f"--out must be {wanted}, got {out}")
    if family and options.dtype:
        raise UserError(f"--dtype: {family}'s own code loads float32; leave it out.")
    import torch

    from lgpl.checkpoints import read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(options.checkpoint)
    dtype = options.dtype and getattr(torch, DTYPES[options.dtype])
    if family is None:
        described, weights = checkpoint.described(), _weights(checkpoint, dtype)
        write_checkpoint(out, checkpoint.kind, described, weights, provenance=checkpoint.provenance)
    else:
        if options.format == "lpd":
            from lgpl.checkpoints.released.lpd import to_lpd as to_theirs
        else:
            from lgpl.checkpoints.released.llamagen import to_llamagen as to_theirs
        content = to_theirs(checkpoint, options.trust)
        with as_user_error(f"--out: {out} cannot be written", OSError, RuntimeError):
            out.parent.mkdir(parents=True, exist_ok=True)
            remove_partials(out)
            with atomic_file(out) as file:
                torch.save(content, file)
    print(f"{out}: the {checkpoint.kind} of {checkpoint.path}")


def _weights(checkpoint: Checkpoint, dtype: torch.dtype | None) -> dict[str, Tensor]:
    import torch

    weights = checkpoint.weights()
    for name, tensor in weights.items() if dtype else ():
        if torch.is_tensor(tensor) and tensor.is_floating_point():
            weights[name] = tensor.to(dtype)
    return weights
