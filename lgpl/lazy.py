"""Names of a package that are imported when they are asked for: a model is used with torch alone;
Lightning and its like come with the modules that train it."""

import importlib
from collections.abc import Callable
from typing import Any

from lgpl.errors import UserError


def lazily(package: str, **modules: tuple[str, ...]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose modules have these names."""
    places = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    find.places = places  # type: ignore[attr-defined]  # what dir() does not list
    return find


def needs(what: str, package: str, extra: str, otherwise: str = "") -> None:
    """Raise UserError where the PyPI package that `what` needs, and lgpl's `extra` brings, is
    missing; `otherwise` ends the sentence with what else could be done."""
    from lightning_utilities.core.imports import RequirementCache

    if not RequirementCache(package):
        raise UserError(f"{what} needs {package}: pip install 'lgpl[{extra}]'{otherwise}.")
