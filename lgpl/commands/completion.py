"""`lgpl completion`: a script that completes commands, options, recipes and files in a shell.

bash loads it from ~/.local/share/bash-completion/completions/lgpl, and zsh from a file _lgpl in a
folder of its fpath.
"""

import argparse
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from lgpl import shipped
from lgpl.commands import parsing

# `-c` takes a recipe by its name, or a file.
RECIPES = {
    "bash": '_lgpl_recipes() {{ compgen -W "{0}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": "_lgpl_recipes() {{ _alternative 'recipes:recipe:({0})' 'files:file:_files' }}",
}


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl completion", description=__doc__)
    p.add_argument("shell", choices=list(RECIPES), help="whose script is printed")
    return p


def main(args: list[str]) -> None:
    shell = parser().parse_args(args).shell
    import shtab

    every = argparse.ArgumentParser(prog="lgpl")
    commands = every.add_subparsers()
    for name, own in parsers().items():
        for action in parsing.actions(own):
            _offer_values(action)
        help = own.description.partition("\n\n")[0] if own.description else None
        commands.add_parser(name, parents=[own], add_help=False, help=help)
    recipes = " ".join(shipped.configs())
    preamble: Any = {name: script.format(recipes) for name, script in RECIPES.items()}
    print(shtab.complete(every, shell, preamble=preamble))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """By the command; whatever takes the configs of a training has the options of lgpl's own two
    modules beside the parser's."""
    from lgpl import cli
    from lgpl.commands.training import training_parsers
    from lgpl.generator import GeneratorModule
    from lgpl.tokenizer import TokenizerModule

    plain = {name: cli.module_of(name).parser() for name in cli.COMMANDS}
    found = training_parsers() | plain
    modules = map(inspect.signature, (TokenizerModule, GeneratorModule))
    names = sorted({name for module in modules for name in module.parameters})
    of_fit = [option for option in parsing.known_options(found["fit"]) if "." in option]
    for command in (*cli.TRAINING, "plan"):
        own = found[command]
        known = {*parsing.known_options(own)}
        for option in (*of_fit, *(f"--model.init_args.{name}" for name in names)):
            if option not in known:
                own.add_argument(option)
    return found


def _offer_values(action: argparse.Action) -> None:
    """Tell shtab what the values of an option may be."""
    import shtab

    kind = getattr(action, "_typehint", action.type)
    if "--config" in action.option_strings:
        action.complete = dict.fromkeys(RECIPES, "_lgpl_recipes")  # type: ignore[attr-defined]
    elif action.choices is None and (named := list(values(kind))):
        action.choices = named
    elif action.choices is None and action.nargs != 0 and takes_text(kind):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def takes_text(kind: Any) -> bool:
    return kind in (None, str) or any(map(takes_text, set(typing.get_args(kind)) - {type(None)}))


def values(kind: Any) -> Iterator[str]:
    """The values of a type that has few."""
    if kind is bool:
        yield from ("true", "false")
    elif typing.get_origin(kind) is typing.Literal:
        yield from (str(value) for value in typing.get_args(kind) if isinstance(value, str))
    else:
        for part in typing.get_args(kind):
            yield from values(part)
