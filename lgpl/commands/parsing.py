"""A parser whose errors are one sentence, and the options of the commands that draw images."""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
from jsonargparse import Namespace

from lgpl.checkpoints.trust import add_trust
from lgpl.errors import UserError
from lgpl.generator.sampling import Sampling

LONGEST = 400  # characters of a sentence; a value may be a whole config


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's, without the usage of all options in an error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        said = re.sub(r'^\s*Parser key "([\w.]+)":?', lambda key: f"{flag(key[1])}:", message)
        raise UserError(innermost(said)) from ex


def require_positive(options: Namespace, *names: str) -> None:
    """Raises a UserError that names the first of these options that is given and below 1."""
    for name in names:
        if (value := options.get(name)) is not None and value < 1:
            raise UserError(f"{flag(name)} must be >= 1, got {value}")


def innermost(message: str) -> str:
    """What is wrong at the innermost of nested keys, in one line; the parser's message has all
    levels, each with its value."""
    said = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", " ".join(message.split()))
    keys = re.findall(r'Parser key "([\w.]+)":?', said)
    if keys:
        said = f"{'.'.join(keys)}: {said[said.rindex('Parser key') :].partition(':')[2].strip()}"
    said = re.sub(r"Type \S+Callable\[.*?\] expects a function or a callable class: ", "", said)
    said = re.sub(r"Does not validate against any of the Union subtypes .*?Errors: - ", "", said)
    said = re.sub(r" - Expected a NoneType.*", "", said)
    said = re.split(r"\.? (?:Got value: (?:Namespace|\{)|Given value)", said)[0]
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def flag(key: str) -> str:
    """The option of a key: `--top-k` of `top_k`."""
    return f"--{key.replace('_', '-')}"


def add_generator(parser: ArgumentParser) -> None:
    """The checkpoint, and where it runs."""
    parser.add_argument("--checkpoint", required=True, help="checkpoint of a generator")
    parser.add_argument("--tokenizer", help="checkpoint of its tokenizer, where it has moved")
    add_trust(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def add_sampling(parser: ArgumentParser, skip: Collection[str] = ()) -> None:
    """An option for each field of `Sampling`, with dashes as the others have."""
    for name in parser.add_class_arguments(Sampling, skip=set(skip)):
        (action,) = (a for a in parser._actions if a.dest == name)
        action.option_strings = [flag(name)]
        parser._option_string_actions[flag(name)] = action


def sampling_of(options: Namespace, **others: Any) -> Sampling:
    """The chosen `Sampling`, with other values for some fields; raises a UserError."""
    if not 0 <= (seed := options.get("seed", 0)) < 2**63:
        raise UserError(f"--seed must be from 0 to 2**63 - 1, got {seed}")
    return Sampling(**{field.name: options[field.name] for field in fields(Sampling)} | others)


def settings(
    options: Namespace, prompts: Sequence[str], sampling: Sampling, *more: str
) -> dict[str, Any]:
    """What drawn images depend on, `more` options among it, in plain values."""
    from lgpl.inference.sinks import newest

    return {
        "checkpoint": options.checkpoint,
        "modified": newest(Path(options.checkpoint)),
        "tokenizer": options.tokenizer,
        "images": len(prompts),
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "seed": options.seed,
        **asdict(sampling),
        **{name: options[name] for name in more},
    }
