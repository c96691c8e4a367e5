"""`lgpl data`: shards made, counted, shown and checked."""

from jsonargparse import ArgumentParser

from lgpl.commands.data import check, index, pack, show

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
        commands.add_subcommand(name, command.parser(), help=purpose)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    command, _ = COMMANDS[options.subcommand]
    command.run(options[options.subcommand])
