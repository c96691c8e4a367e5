"""`lgpl data`: shards made, counted, shown and checked."""

from lgpl.commands.data import check, index, pack, show
from lgpl.commands.parsing import ArgumentParser
from lgpl.data.store import Store

COMMANDS = {
    "pack": (pack, "make shards of a folder of images"),
    "index": (index, "count the samples of shards once for all runs"),
    "show": (show, "what shards hold, in numbers and on a contact sheet"),
    "check": (check, "read everything and list what is damaged"),
}


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl data", description="Make shards and look into them.")
    commands = p.add_subcommands()
    for name, (command, purpose) in COMMANDS.items():
        own = ArgumentParser(description=command.__doc__)
        command.add_arguments(own)
        if command is not pack:
            help = "paths, braces, globs, URLs or index files"
            own.add_argument("shards", nargs="+", metavar="SHARDS", help=help)
            own.add_class_arguments(Store, "store")
        commands.add_subcommand(name, own, help=purpose)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    command, _ = COMMANDS[options.subcommand]
    command.run(options[options.subcommand])
