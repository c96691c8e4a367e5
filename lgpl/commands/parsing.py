"""A parser whose errors are one sentence, and the options of the commands that draw images."""

from __future__ import annotations  # or torch would be imported

import argparse
import hashlib
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn

import jsonargparse
from jsonargparse import Namespace

from lgpl import hub, shipped
from lgpl.checkpoints.trust import add_trust
from lgpl.errors import UserError, nearest
from lgpl.generator.sampling import Sampling

if TYPE_CHECKING:
    from lgpl.generator import Decoder

LONGEST = 400  # characters of a sentence; a value may be a whole config


class SentenceErrors(jsonargparse.ArgumentParser):
    """Errors are one sentence, without the usage of all options."""

    options_are_keys = True  # `trainer.max_epochs`, as in a config

    def __init__(self, *args: Any, **options: Any) -> None:
        # A part of a name would be taken for one, and misspelled ones for several.
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            raise UserError(unrecognized(unknown[1], list(known_options(self)))) from ex
        if choice := re.match(r"argument subcommand: invalid choice: '(.*?)' \((.*)\)", message):
            near = nearest(choice[1], re.findall(r"[\w-]+", choice[2].partition("from")[2]))
            raise UserError(f"{choice[1]!r} is no command{near or f' ({choice[2]})'}") from ex
        if choice := re.match(r"argument ([\w-]+): invalid choice: '(.*?)' \((.*)\)", message):
            names = re.findall(r"[\w.-]+", choice[3].partition("from")[2])
            what = choice[1] if choice[1].startswith("-") else self.option_of(choice[1])
            said = f"{choice[2]} is none of {', '.join(names)}{nearest(choice[2], names)}"
            raise UserError(f"{what}: {said}") from ex
        if wanted := re.match(r"expected \"subcommand\" to be one of {(.*?)}", message):
            raise UserError(f"`{self.prog}` needs one of {wanted[1].replace(',', ', ')}.") from ex
        message = re.sub(r"^argument (?=-)", "", message)
        if re.match(r"the following arguments are required: (\w+\.)?model$", message):
            ways = "-c tokenizer/emoji.yaml; `lgpl configs` lists the recipes"
            raise UserError(f"No config says what is built; give one, such as {ways}.") from ex
        if missing := re.match(r"the following arguments are required: (.+)", message):
            raise UserError(self.missing(missing[1].split(", "))) from ex
        if not self.options_are_keys:
            named = lambda key: f"{self.option_of(key[1])}:"  # noqa: E731
            message = re.sub(r'^\s*Parser key "([\w.]+)":?', named, message)
        raise UserError(innermost(message)) from ex

    def option_of(self, key: str) -> str:
        """The option, or the name of the argument, whose value a key is."""
        for action in actions(self):
            if action.dest == key and not action.option_strings:
                return str(action.metavar or key.upper())
        return flag(key)

    def missing(self, keys: Sequence[str]) -> str:
        """What to say where these keys, each perhaps behind its command, have no value."""
        command, _, _ = keys[0].rpartition(".")
        *names, last = (self.option_of(key.rpartition(".")[2]) for key in keys)
        listed = f"{', '.join(names)} and {last}" if names else last
        help = " ".join(filter(None, (self.prog, command, "--help")))
        return f"{listed} must be given; `{help}` says what it is."


class ArgumentParser(SentenceErrors):
    """Of a command, whose options have dashes; descriptions keep their paragraphs."""

    options_are_keys = False

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", Paragraphs)
        super().__init__(*args, **options)


class Paragraphs(jsonargparse.DefaultHelpFormatter):
    """Fills each paragraph of a description by itself; the first line says what a command does."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = re.split(r"\n\s*\n", inspect.cleandoc(text))
        return "\n\n".join(super(Paragraphs, self)._fill_text(p, width, indent) for p in parts)


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)
        else:
            yield action


def known_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option of a parser; those of its commands have parsers of their own."""
    for action in parser._actions:
        yield from action.option_strings


def unrecognized(given: str, known: Sequence[str]) -> str:
    """What to say of an argument that no parameter takes."""
    option = given.partition("=")[0]
    if not option.startswith("-"):
        return f"{given!r} is one argument too many"
    return f"{option}: no such option{nearest(option, known) or '; --help lists them.'}"


def require_positive(options: Namespace, *names: str) -> None:
    """Raises a UserError that names the first of these options that is given and below 1."""
    for name in names:
        if (value := options.get(name)) is not None and value < 1:
            raise UserError(f"{flag(name)} must be >= 1, got {value}")


def innermost(message: str) -> str:
    """What is wrong at the innermost of nested keys, in one line; the parser's message has all
    levels, each with its value."""
    said = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", " ".join(message.split()))
    given = re.search(r"(?:Got|Given) value: ([^\s{(]+)$", said)
    keys = re.findall(r'Parser key "([\w.]+)":?', said)
    if keys:
        said = f"{'.'.join(keys)}: {said[said.rindex('Parser key') :].partition(':')[2].strip()}"
    said = re.sub(r"Type \S+Callable\[.*?\] expects a function or a callable class: ", "", said)
    said = re.sub(r"Does not validate against any of the Union subtypes .*?Errors: - ", "", said)
    said = re.sub(r" - Expected a NoneType.*", "", said)
    said = re.split(r"\.? (?:Got value: (?:Namespace|\{)|Given value)", said)[0]
    choices = re.findall(r"'([^']+)'", " ".join(re.findall(r"Literal\[(.*?)\]", said)))
    if given and choices:
        near = nearest(given[1], choices)
        return f"{said.partition(': ')[0]}: {given[1]} is none of {', '.join(choices)}{near}"
    said = re.sub(r"Expected a (int|Iter)", r"Expected an \1", said).replace(" - Expected", " or")
    said = said.replace(". Got value: ", ", got ")
    if given and ", got " not in said:
        said = f"{said}, got {given[1]}"
    if path := re.match(r"((?:[\w.]+: )+)(?=Expected|Option)", said):
        said = f"{path[1].replace(': ', '.')[:-1]}: {said[path.end() :]}"
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def flag(key: str) -> str:
    """The option of a key: `--top-k` of `top_k`."""
    return f"--{key.replace('_', '-')}"


def add_generator(parser: ArgumentParser, default: str | None = None) -> None:
    """The checkpoint, and where it runs."""
    own = f"or {shipped.EMOJI}: the one that comes with lgpl"
    what = f"checkpoint of a generator, also hf:OWNER/NAME on a hub, {own}"
    parser.add_argument("--checkpoint", required=default is None, default=default, help=what)
    parser.add_argument("--tokenizer", help="checkpoint of its tokenizer, where it has moved")
    add_trust(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add_decoder(parser)


def add_decoder(parser: ArgumentParser) -> None:
    """How codes are drawn; see `decoder_of`."""
    how = "class that draws codes, such as lgpl.generator.SpeculativeJacobi, or JSON with its "
    how += "class_path and init_args; the model's own by default"
    parser.add_argument("--decoder", type=str, metavar="CLASS", help=how)


def decoder_of(options: Namespace) -> Decoder | None:
    """What --decoder names, None for the model's own; raises a UserError."""
    if options.decoder is None:
        return None
    from lgpl.generator import Decoder

    parser = ArgumentParser()
    parser.add_subclass_arguments(Decoder, "decoder", fail_untyped=False)
    return parser.instantiate(parser.parse_args(["--decoder", options.decoder])).decoder


def add_ways(parser: ArgumentParser, prompt: str, count: int, ways: str) -> None:
    """What a given image is to show, and how often the rest of it is drawn; the texts are help."""
    parser.add_argument("--prompt", nargs=1, default=[], help=prompt)
    label = "its class, by number or name"
    parser.add_argument("--label", nargs=1, type=str, default=[], help=label)
    parser.add_argument("--count", type=int, default=count, help=ways)
    parser.add_argument("--seed", type=int, default=0, help="way i is drawn from seed + i")


def add_sampling(parser: ArgumentParser, skip: Collection[str] = ()) -> None:
    """An option for each field of `Sampling`, with dashes as the others have; what is not given is
    the model's own."""
    for name in parser.add_class_arguments(Sampling, skip=set(skip)):
        (action,) = (a for a in parser._actions if a.dest == name)
        action.default = argparse.SUPPRESS
        action.option_strings = [flag(name)]
        parser._option_string_actions[flag(name)] = action


def sampling_of(options: Namespace, own: Sampling = Sampling(), **others: Any) -> Sampling:
    """The `Sampling` of a model's `own` and the given options, with other values for some fields;
    raises a UserError."""
    if not 0 <= (seed := options.get("seed", 0)) < 2**63:
        raise UserError(f"--seed must be from 0 to 2**63 - 1, got {seed}")
    given = {f.name: options[f.name] for f in fields(Sampling) if f.name in options}
    return replace(own, **given | others)


def settings(
    options: Namespace, prompts: Sequence[str], sampling: Sampling, *more: str
) -> dict[str, Any]:
    """What drawn images depend on, `more` options among it, in plain values."""
    from lgpl.checkpoints import read_checkpoint
    from lgpl.inference.sinks import newest

    path = read_checkpoint(options.checkpoint, "generator").path
    return {
        "checkpoint": options.checkpoint,
        "modified": hub.commit_of(path) or newest(path),
        "tokenizer": options.tokenizer,
        "images": len(prompts),
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "seed": options.seed,
        **asdict(sampling),
        **{name: options[name] for name in more},
    }


def in_words(images: int, first_seed: int, sampling: Sampling, summary: str = "") -> str:
    """What was drawn, such as `2 images, seeds 0 and 1, guidance 1.5`, and a decoder's summary."""
    last = first_seed + images - 1
    seeds = f"seeds {first_seed} {'and' if images == 2 else 'to'} {last}"
    seeds = seeds if images > 1 else f"seed {first_seed}"
    return ", ".join(filter(None, (counted(images, "image"), seeds, str(sampling), summary)))


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
