"""`lgpl configs`: list the recipes that `-c` takes by name, with what each is for, or copy them."""

import shutil
from pathlib import Path

from lgpl import shipped
from lgpl.commands.parsing import ArgumentParser
from lgpl.errors import UserError, as_user_error


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl configs", description=__doc__)
    p.add_argument("--copy", metavar="DIR", help="a new folder for copies, to be changed")
    return p


def main(args: list[str]) -> None:
    copy = parser().parse_args(args).copy
    if copy is None:
        names = list(shipped.configs())
        width = max(map(len, names))
        for name in names:
            print(f"{name:<{width}}  {shipped.described(name)}")
        return
    if Path(copy).exists():
        raise UserError(f"--copy: {copy} exists; name a new folder.")
    with as_user_error(f"--copy: {copy} cannot be written", OSError):
        shutil.copytree(shipped.CONFIGS, copy)
    print(f"{copy}: {len(list(shipped.configs()))} recipes; `-c {copy}/...` names one.")
