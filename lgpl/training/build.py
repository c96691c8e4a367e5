"""Configs -> modules: a checkpoint's, which builds what is trusted alone, and the user's own."""

import copy
import functools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lgpl.checkpoints.files import Checkpoint, read_checkpoint
from lgpl.checkpoints.trust import imported, lock, only_classes, only_trusted, refusal
from lgpl.errors import UserError, behind
from lgpl.training.module import TrainingModule

MOST_VALUES = 100_000  # of a checkpoint's config, which may hold the names of classes
LONGEST_VALUE = 10_000  # characters of one
# A string may be read as YAML, where what is named once can stand again, and grow without end.
ANCHOR, ALIAS = (re.compile(rf"(^|[\s\[\]{{}},:-]){mark}\w") for mark in ("&", r"\*"))


def build_module(config: dict[str, Any], without: tuple[str, ...] = ()) -> TrainingModule:
    """The module of the user's own config, which may name any class, with fresh weights; keys
    `without` are set to None where the config has their parents."""
    with lock:  # or another thread's loading would hold this back
        return _built(config, without, None)


def build_described(
    checkpoint: Checkpoint, without: tuple[str, ...] = (), trust: Iterable[str] = ()
) -> TrainingModule:
    """The module that a checkpoint's config describes, whoever made it, with fresh weights. Raises
    a UserError where it has no config, names a class of another kind of module or of a package that
    is neither lgpl nor in `trust`, or cannot be built."""
    trust = tuple(trust)
    with one_sentence(checkpoint.path), only_trusted(trust):
        module = _built(checkpoint.described(), without, checkpoint.kind)
    module.trust, module.checkpoint = trust, checkpoint.path
    return module


def load_module(
    path: str | Path,
    kind: str | None = None,
    without: tuple[str, ...] = (),
    trust: Iterable[str] = (),
) -> TrainingModule:
    """The module of a checkpoint in evaluation mode; see `read_checkpoint`, `build_described`."""
    checkpoint = read_checkpoint(path, kind)
    module = build_described(checkpoint, without, trust)
    with one_sentence(path):
        module.configure_model()
        module.load_weights(checkpoint)
    return module.eval().requires_grad_(False)


def _built(config: dict[str, Any], without: tuple[str, ...], kind: str | None) -> TrainingModule:
    if kind is not None:
        _check_size(config)
    built = copy.deepcopy(config)
    for key in without:
        *parents, last = key.split(".")
        inner = functools.reduce(lambda part, name: part.get(name, {}), parents, built)
        inner[last] = None
    parser = ArgumentParser(exit_on_error=False)
    # As on the command line, a class of somebody's own need not have its arguments typed.
    parser.add_function_arguments(_whole, fail_untyped=False)
    parsed = parser.parse_object({"module": built})  # nothing is built by that
    if kind is not None:
        named = parsed.module.class_path
        if getattr(imported(named), "kind", None) != kind:
            raise UserError(f"The config names {named}, which is no {kind}.")
        only_classes(parsed)
    module = parser.instantiate(parsed).module
    module.config = built
    return module


def _whole(module: TrainingModule) -> None:
    """What a config holds."""


def _check_size(config: Any) -> None:
    """Raises UserError for a config larger than any model's, or one that holds itself."""
    left, seen = [config], 0
    while left:
        value, seen = left.pop(), seen + 1
        grows = isinstance(value, str) and (
            len(value) > LONGEST_VALUE or (ANCHOR.search(value) and ALIAS.search(value))
        )
        if seen > MOST_VALUES or grows:
            raise UserError("The config is larger than that of any model.")
        if isinstance(value, dict):
            value = list(value.values())
        left += value if isinstance(value, (list, tuple)) else ()


@contextmanager
def one_sentence(source: object) -> Iterator[None]:
    """Turn whatever a checkpoint's config leads to into one sentence: it can hold anything."""
    try:
        yield
    except Exception as error:
        mistake = behind(error) or refusal(error, source)
        if mistake is None:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            mistake = UserError(f"{source} has a config that cannot be built ({reason}).")
        raise mistake from error
