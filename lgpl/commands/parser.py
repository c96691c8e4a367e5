"""An argument parser whose errors are one sentence."""

from __future__ import annotations

import re
from typing import NoReturn

import jsonargparse

from lgpl.errors import UserError

LONGEST = 400  # characters of a sentence; a value may be a whole config


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's, without the usage of all options in an error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        said = " ".join(message.split())
        said = re.sub(r'^Parser key "([\w.]+)":?', lambda key: f"{flag(key[1])}:", said)
        raise UserError(innermost(said)) from ex


def require_positive(options: jsonargparse.Namespace, *names: str) -> None:
    """Raises a UserError that names the first of these options that is given and below 1."""
    for name in names:
        value = options.get(name)
        if value is not None and value < 1:
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
