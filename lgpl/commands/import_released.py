"""`lgpl import`: read a checkpoint of LlamaGen or LPD or a VQGAN of taming, find out which model
it is, write lgpl's form."""

from lgpl import hub
from lgpl.commands.parsing import ArgumentParser, require_positive


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl import", description=__doc__)
    file = ".pt, .pth or .ckpt file, or hf:OWNER/NAME/FILE: a tokenizer or a generator"
    p.add_argument("file", help=file)
    p.add_argument("--out", required=True, help="folder for config.json and model.safetensors")
    p.add_argument("--grid", type=int, help="codes on a side, where the file does not say")
    p.add_argument("--heads", type=int, help="heads of a size that is not a paper's")
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    require_positive(options, "grid", "heads")
    from lgpl.checkpoints import write_checkpoint
    from lgpl.checkpoints.released.reading import read_released

    file = hub.fetched(options.file)
    released = read_released(file, options.grid, options.heads)
    made = {"imported": options.file if hub.is_name(options.file) else file.name}
    parts = released.weights, released.discriminator, made
    write_checkpoint(options.out, released.kind, released.config, *parts)
    print(f"{options.out}: {released.summary}")
