"""Objects that remember how they were made, so that a checkpoint can say it."""

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any


class Described:
    """Remembers the arguments of its constructor; a base of whatever a checkpoint rebuilds."""

    # Arguments that may be the path of a file, and what reads it: a config holds what was read, as
    # only its writer has the file.
    files: Mapping[str, Callable[[str], Any]] = {}
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        object.__setattr__(self, "_arguments", (args, kwargs))
        return self


class Undescribable(Exception):
    """A value has no form in a config."""


def describe(value: Any) -> Any:
    """A value in plain types: `class_path` and `init_args` of objects, classes and partials, and of
    what a function, such as a lambda, has built in its place; raises Undescribable for others."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): describe(part) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, type):
        return _entry(value, {})
    if isinstance(value, functools.partial):
        if value.args or not isinstance(value.func, type):
            raise Undescribable(f"{value} is no class with named arguments")
        return _entry(value.func, {name: describe(part) for name, part in value.keywords.items()})
    if isinstance(value, Described):
        return _of_object(value)
    raise Undescribable(f"{type(value).__name__} does not remember its arguments")


def with_contents(config: Any) -> Any:
    """A config of classes that are imported, with the contents of their `files`."""
    if isinstance(config, list):
        return [with_contents(part) for part in config]
    if not isinstance(config, dict):
        return config
    found = {key: with_contents(part) for key, part in config.items()}
    module, _, name = str(found.get("class_path")).rpartition(".")
    cls, arguments = getattr(sys.modules.get(module), name, None), found.get("init_args", {})
    if isinstance(cls, type) and issubclass(cls, Described):
        for argument, read in cls.files.items():
            if isinstance(arguments.get(argument), str):
                arguments[argument] = read(arguments[argument])
    return found


def _of_object(value: Described) -> dict[str, Any]:
    args, kwargs = value._arguments
    signature = inspect.signature(type(value).__init__)
    _, *given = signature.bind(value, *args, **kwargs).arguments.items()  # without self
    hints = typing.get_type_hints(type(value).__init__)
    described = {}
    for name, argument in given:
        kind = signature.parameters[name].kind
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise Undescribable(f"{type(value).__name__} takes any arguments")
        try:
            described[name] = describe(argument)
        except Undescribable:
            built = getattr(value, name, None)
            is_builder = callable(argument) and not isinstance(argument, Described)
            if not is_builder or not isinstance(built, Described):
                raise
            described[name] = entry = describe(built)
            # Without what the whole gives, such as the width to a Callable[[int], Condition].
            _, *names = inspect.signature(type(built).__init__).parameters
            for by_whole in names[: len(typing.get_args(hints[name])[0])]:
                entry["init_args"].pop(by_whole, None)
    return _entry(type(value), described)


def _entry(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        raise Undescribable(f"{cls.__qualname__} has no path from which it can be imported")
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
