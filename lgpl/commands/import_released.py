"""`lgpl import`: read a released checkpoint, of LlamaGen or LPD, find out which model it is, write
lgpl's form."""

from lgpl.commands.parsing import ArgumentParser, require_positive


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl import", description=__doc__)
    p.add_argument("file", help=".pt or .pth file: a tokenizer or a generator, released or trained")
    p.add_argument("--out", required=True, help="folder for config.json and model.safetensors")
    p.add_argument("--grid", type=int, help="codes on a side, where the file does not say")
    p.add_argument("--heads", type=int, help="heads of a size that is not a paper's")
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    require_positive(options, "grid", "heads")
    from lgpl.checkpoints import write_checkpoint
    from lgpl.checkpoints.released.reading import read_released

    released = read_released(options.file, options.grid, options.heads)
    write_checkpoint(options.out, released.kind, released.config, released.weights)
    print(f"{options.out}: {released.summary}")
