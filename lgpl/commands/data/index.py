"""`lgpl data index`: count the samples of shards into an index file, once for all runs. Damaged
shards are named, and exit status 1 says that there are some."""

import sys
from pathlib import Path

from jsonargparse import Namespace

from lgpl.commands.parsing import ArgumentParser
from lgpl.data.index import counted, named, write_index
from lgpl.data.store import Store
from lgpl.errors import UserError, as_user_error


def add_arguments(p: ArgumentParser) -> None:
    p.add_argument("--out", required=True, help="index to write, such as data/own/train.json")


def run(options: Namespace) -> None:
    out = Path(options.out)
    if out.suffix != ".json":
        raise UserError(f"--out: {out} must end in .json, by which an index is known.")
    store = Store(**options.store.as_dict())
    counts, faults = counted(named(options.shards, "SHARDS", store), "SHARDS", store)
    usable = {path: number for path, number in counts.items() if number}
    if not usable:
        raise UserError(f"SHARDS: no sample to count: {'; '.join(faults)}.")
    with as_user_error(f"--out: {out} cannot be written", OSError):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_index(out, usable)
    print(f"{out}: {len(usable)} shards, {sum(usable.values())} samples")
    if faults:
        sys.exit(1)
