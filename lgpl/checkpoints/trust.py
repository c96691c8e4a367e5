"""Whose classes a checkpoint's config may name: a file says what is built, and building runs code.

lgpl's own models are always built. Classes of other packages need the word of the user, who gives
`--trust PACKAGE`, the variable `LGPL_TRUST` or the argument `trust`. A config that the user writes
for a training is a program of the user's, and may name any class.
"""

import argparse
import importlib
import inspect
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jsonargparse
from jsonargparse import _common as settings  # nothing public gives settings back

from lgpl.errors import UserError, as_user_error

# What a checkpoint's config is made of. Not whole rooms: they hold functions, too, which would be
# called, and classes that compile or fetch.
OWN = {
    "lgpl.generator": (
        *("ClassCondition", "Conditions", "GeneratorModule", "Parallel", "ParallelTransformer"),
        *("RandomOrder", "Raster", "SpeculativeJacobi", "TextCondition", "Transformer"),
        "UncachedRaster",
    ),
    "lgpl.text": ("TextEncoder",),
    "lgpl.tokenizer": (
        *("BSQ", "FSQ", "IBQ", "LPIPS", "PatchGAN", "ResidualQuantizer", "TokenizerLoss"),
        *("TokenizerModule", "VQModel", "VectorQuantizer"),
    ),
    "lgpl.training": ("Schedule",),
}
VARIABLE = "LGPL_TRUST"  # packages with commas between
# Whose every class is anybody's: to trust one of them is to trust the file.
TOO_MUCH = {"lgpl", "lightning", "pytorch_lightning", "torch", "transformers", "jsonargparse"}
lock = threading.RLock()  # jsonargparse's settings are of the whole process


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--trust`."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="also build classes of this package where a checkpoint names them, which runs its "
        f"code; may be repeated; {VARIABLE} in the environment too",
    )


def split_trust(args: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The packages that a command line trusts, and the rest of it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_trust(parser)
    try:
        known, rest = parser.parse_known_args(args)
    except SystemExit as error:
        raise UserError("--trust: give the name of a package, such as my_models.") from error
    return tuple(known.trust), rest


@contextmanager
def only_trusted(trust: Iterable[str] = ()) -> Iterator[None]:
    """Within, jsonargparse imports and builds lgpl's own models and what is trusted, nothing else;
    raises UserError where `trust`, or the variable beside it, names anything but packages."""
    words = [*trust, *filter(None, os.environ.get(VARIABLE, "").split(","))]
    given = [word.strip() for word in words]
    if any(name.partition(".")[0] == "lgpl" for name in given):
        raise UserError("--trust: lgpl's own models need no word, and the rest of it gets none.")
    own = [f"{room}.{name}" for room, names in OWN.items() for name in names]
    defined = [f"{cls.__module__}.{cls.__qualname__}" for cls in map(imported, own)]
    with lock:
        before = dict(settings.parsing_settings)
        settings.parsing_settings["import_path_verdicts"] = {}  # what was allowed for other ends
        mistake = f"--trust, {VARIABLE}: {given} should be names of packages, such as my_models"
        try:
            with as_user_error(mistake, ValueError):
                jsonargparse.set_parsing_settings(
                    import_path_denylist=["*"],
                    import_path_allowlist=[*own, *defined, *given],
                    instantiate_subclass_spec_in_any=False,
                )
            yield
        finally:
            settings.parsing_settings.clear()
            settings.parsing_settings.update(before)


def refusal(error: BaseException, source: object) -> UserError | None:
    """What to say of an import that `only_trusted` has denied; None for another error."""
    denied = re.search(r"Importing '([\w.]+)' is not allowed", str(error))
    if denied is None:
        return None
    name, package = denied[1], denied[1].partition(".")[0]
    said = f"{source} names {name}, and a checkpoint's config builds nothing but lgpl's own models"
    if package in TOO_MUCH or package in sys.stdlib_module_names:
        return UserError(f"{said}.")
    ways = f'--trust {package}, {VARIABLE}={package} or trust=["{package}"]'
    return UserError(f"{said}; if you trust the package, give {ways}.")


def imported(class_path: Any) -> Any:
    """The object of a path that jsonargparse has let pass."""
    module, _, name = str(class_path).rpartition(".")
    return getattr(importlib.import_module(module), name)


def only_classes(value: Any) -> None:
    """Raises UserError where a parsed config of lgpl's own names anything but classes, or a file in
    place of its contents, whose lines a page would show to anybody."""
    if isinstance(value, jsonargparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        path = value.get("class_path")
        named = imported(path) if path else None
        if str(path).startswith("lgpl.") and not inspect.isclass(named):
            raise UserError(f"The config names {path}, which is no class.")
        arguments = dict(value.get("init_args") or {})
        for name in getattr(named, "files", ()) if inspect.isclass(named) else ():
            if isinstance(file := arguments.get(name), str):
                raise UserError(f"The config takes {name} from {file}; a checkpoint has its own.")
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            only_classes(part)
    elif inspect.isroutine(value):
        raise UserError(f"The config names {value.__qualname__}, which is no class.")
