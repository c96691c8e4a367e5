"""How codes are drawn, as options of a command."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from jsonargparse import Namespace

from lgpl.commands.parser import ArgumentParser
from lgpl.errors import UserError
from lgpl.generator.sampling import Sampling


def add_sampling(parser: ArgumentParser, skip: Collection[str] = ()) -> None:
    """An option for each field of `Sampling`, with dashes as the others have."""
    for name in parser.add_class_arguments(Sampling, skip=set(skip)):
        (action,) = (a for a in parser._actions if a.dest == name)
        action.option_strings = [option := f"--{name.replace('_', '-')}"]
        parser._option_string_actions[option] = action


def sampling_of(options: Namespace, **others: Any) -> Sampling:
    """What was chosen, with other values for some fields; raises a UserError that names one."""
    if not 0 <= (seed := options.get("seed", 0)) < 2**63:
        raise UserError(f"--seed must be from 0 to 2**63 - 1, got {seed}")
    return Sampling(**{field.name: options[field.name] for field in fields(Sampling)} | others)
