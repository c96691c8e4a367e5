"""`lgpl plan`: memory, tokens and FLOPs of a training step, before it is queued.

Takes the configs and options of `lgpl fit`, such as --data.batch_size 8, and two of its own.
"""

import argparse

from lgpl.checkpoints import add_trust
from lgpl.commands.parsing import ArgumentParser


def add_devices(p: argparse.ArgumentParser) -> None:
    p.add_argument("--gpus", type=int, default=1, help="devices of all nodes together")
    p.add_argument("--memory", type=float, default=80.0, help="GiB of one device")


def parser() -> ArgumentParser:
    """The options that `--help` lists; a run's own are read by `planning.Plan`."""
    p = ArgumentParser(prog="lgpl plan", description=__doc__)
    p.add_argument("-c", "--config", action="append", help="of a run; configs stack")
    add_devices(p)
    add_trust(p)
    return p


def main(args: list[str]) -> None:
    if {"-h", "--help"} & {*args}:
        parser().print_help()
        return
    from lgpl.commands.planning import plan  # with torch

    print(plan(args))
