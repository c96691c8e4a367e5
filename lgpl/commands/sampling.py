"""How codes are drawn, as options of a command."""

from __future__ import annotations

from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace

from lgpl.errors import UserError
from lgpl.generator import Sampling
from lgpl.generator.sampling import RISES


def add_sampling(parser: ArgumentParser, title: str = "how codes are drawn") -> None:
    """An option for each field of `Sampling`."""
    p = parser.add_argument_group(title)
    p.add_argument("--guidance", type=float, default=1.0, help="scale of guidance; 1 is off")
    p.add_argument(
        "--guidance-schedule", default="constant", choices=list(RISES),
        help="how the scale rises from 1 at the first code to --guidance at the last",
    )  # fmt: skip
    p.add_argument("--guidance-power", type=float, default=2.0, help="of power-cosine")
    p.add_argument("--guidance-start", type=int, default=0, help="codes before guidance sets in")
    p.add_argument("--guidance-steps", type=int, help="codes after which guidance ends")
    p.add_argument("--temperature", type=float, default=1.0, help="0 takes the most likely code")
    p.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest codes; 0 all")
    p.add_argument("--top-p", type=float, default=1.0, help="draw among codes of this probability")


def sampling_of(options: Namespace) -> Sampling:
    """Raises a UserError that names the option."""
    if not 0 <= (seed := options.get("seed", 0)) < 2**63:
        raise UserError(f"--seed: {seed} is not from 0 to 2**63 - 1.")
    steps = options.guidance_steps
    if steps is not None and steps < 0:
        raise UserError(f"--guidance-steps: {steps} is not at least 0.")
    return Sampling(**{field.name: options[field.name] for field in fields(Sampling)})
