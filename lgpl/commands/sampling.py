"""Options of the commands that draw images."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lgpl.checkpoints.trust import add_trust
from lgpl.commands.parser import ArgumentParser, flag
from lgpl.errors import UserError
from lgpl.generator.sampling import Sampling


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
