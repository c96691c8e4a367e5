"""Names of a package that are imported when they are asked for: what they need is not everybody's.

A model is used with torch alone; Lightning and its like come with the modules that train it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lgpl.errors import UserError


def lazily(package: str, names: Mapping[str, Collection[str]]) -> Callable[[str], Any]:
    """A package's `__getattr__`.

    Args:
        package: its name.
        names: module of the package -> what is to be had of it.
    """
    places = {name: module for module, its in names.items() for name in its}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return find


def needs(what: str, package: str, extra: str, otherwise: str = "") -> None:
    """What an optional part does before it imports its package.

    Args:
        what: the part, as the message names it.
        package: its name on PyPI.
        extra: of lgpl, that brings the package.
        otherwise: what else the user could do, as the end of the sentence.

    Raises:
        UserError: the package is not installed.
    """
    from lightning_utilities.core.imports import RequirementCache

    if not RequirementCache(package):
        raise UserError(f"{what} needs {package}: pip install 'lgpl[{extra}]'{otherwise}.")
