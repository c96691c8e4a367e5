"""The numbers of a generator's config that follow from its data and its tokenizer.

They are filled in before anything is built, so that the checkpoint's config holds them. What the
config names stays; where the data contradict it, the run ends with a sentence before its first
step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from lgpl.checkpoints import read_checkpoint
from lgpl.checkpoints.trust import imported
from lgpl.codes import to_image_size
from lgpl.data.classes import names_beside, shards_and_indexes
from lgpl.data.index import statistics
from lgpl.data.shards import shards_with
from lgpl.data.store import Store
from lgpl.data.transfer import is_url
from lgpl.errors import UserError
from lgpl.generator import ClassCondition, TextCondition
from lgpl.generator.conditions.classes import read_names
from lgpl.generator.module import PERCEPTUAL
from lgpl.text import TextEncoder
from lgpl.tokenizer import TokenizerModule
from lgpl.training import build_described
from lgpl.training.encoding import UNNAMED

OF_TOKENIZER = ("codebook_size", "grid", "depth")


@dataclass
class Known:
    """What the data of a config say about themselves."""

    split: str = "data"
    classes: tuple[str, list[str]] | None = None  # the file, and its names
    shard: str = ""  # the first one
    made_by: dict[str, Any] = field(default_factory=dict)  # its codes and features


@dataclass
class Data:
    """The `data` of a config."""

    config: Namespace

    @cached_property
    def known(self) -> Known:
        """Raises a UserError where the shards are not there."""
        for split in ("train", "val", "test"):
            if patterns := self.config.get(split):
                store = Store(**vars(self.config.store))
                with shards_with(self.config.fields):
                    shards, indexes = shards_and_indexes(patterns, f"data.{split}", store)
                found = names_beside([*shards, *indexes], store)
                made_by = statistics(shards[0], store).get("made_by", {})
                return Known(f"data.{split}", found, shards[0], made_by)
        return Known()

    def if_there(self) -> Known:
        """What a named number is held against: of data elsewhere nothing, as another part of the
        run says so, and of remote ones nothing, as this is not worth the wait."""
        patterns = self.config.get("train") or self.config.get("val") or []
        if any(map(is_url, [patterns] if isinstance(patterns, str) else patterns)):
            return Known()
        try:
            return self.known
        except UserError:
            return Known()


def fill_in(config: Namespace, trust: tuple[str, ...]) -> None:
    """Fill in what a command's config leaves out; a UserError where the sources are missing, or say
    something else than the config."""
    model = config.get("model")
    own = model and model.get("init_args")
    transformer = own.get("transformer") if own else None
    if not isinstance(transformer, Namespace) or "init_args" not in transformer:
        return
    data, sizes = Data(config.data), transformer.init_args
    left_out = [name for name in OF_TOKENIZER if name in sizes and sizes[name] is None]
    if "grid" not in left_out:  # a layout that is named has the depth 1 where it names no other
        left_out = [name for name in left_out if name != "depth"]
    if own.get("tokenizer") and left_out:
        for name, value in _of_tokenizer(own.tokenizer, data, trust).items():
            if name in left_out:
                sizes[name] = value
    for cls, arguments in _conditions(sizes.get("condition")):
        if issubclass(cls, ClassCondition):
            _fill_classes(arguments, data)
        elif issubclass(cls, TextCondition):
            _fill_text(arguments, data)


def _of_tokenizer(path: str, data: Data, trust: tuple[str, ...]) -> dict[str, Any]:
    checkpoint = read_checkpoint(path, "tokenizer")
    with torch.device("meta"):  # to ask it for sizes alone
        module = build_described(checkpoint, (PERCEPTUAL,), trust)
    assert isinstance(module, TokenizerModule)
    tokenizer = module.autoencoder
    found: dict[str, Any] = {"codebook_size": tokenizer.codebook_size}
    if "codes" not in data.config.fields:
        layout = tokenizer.layout(*to_image_size(data.config.image_size, "data.image_size"))
        return found | {"grid": (layout.rows, layout.columns), "depth": layout.depth}
    made_by = data.known.made_by
    if made_by.get("layout"):
        rows, columns, depth = made_by["layout"]
        found |= {"grid": (rows, columns), "depth": depth}
    return found


def _conditions(condition: Any) -> Iterator[tuple[type, Namespace]]:
    """The classes of a condition and of its parts, each with its arguments."""
    if isinstance(condition, list):
        yield from itertools.chain.from_iterable(map(_conditions, condition))
    elif isinstance(condition, Namespace) and "init_args" in condition:
        cls = imported(condition.class_path)
        if isinstance(cls, type):
            yield cls, condition.init_args
        yield from _conditions(condition.init_args.get("parts"))


def _fill_classes(arguments: Namespace, data: Data) -> None:
    number, names = arguments.get("num_classes"), arguments.get("names")
    known = data.known if number is None and names is None else data.if_there()
    if known.classes is None:
        return
    path, found = known.classes
    listed = read_names(names) if isinstance(names, str) else names
    count = number if listed is None else len(listed)
    if count not in (None, len(found)):
        what = "num_classes is" if listed is None else "names are"
        said = f"condition.{what} {count}, but {path} names {len(found)} classes"
        raise UserError(f"{said}; give as many, or leave them out.")
    arguments.num_classes = len(found)
    if listed is None:
        arguments.names = found


def _fill_text(arguments: Namespace, data: Data) -> None:
    encoder = _encoder(arguments.get("encoder"))
    stored = "text" in data.config.fields  # the shards bring features, instead of captions
    known = data.if_there() if stored else Known()
    if arguments.get("length") is None and (encoder or known.made_by.get("text_length")):
        length = encoder.max_length if encoder else known.made_by["text_length"]
        arguments.length = length
    if arguments.get("features") is None:
        if stored and known.made_by.get("text_features"):
            arguments.features = known.made_by["text_features"]
        elif encoder is not None:
            arguments.features = encoder.width
    for name in ("features", "length"):
        theirs, ours = known.made_by.get(f"text_{name}"), arguments.get(name)
        fits = theirs == ours or (name == "length" and theirs and ours and theirs < ours)
        if theirs and ours and not fits:
            has = f"{known.shard} holds text features of the {name} {theirs}"
            raise UserError(f"{known.split}: {has}, but condition.{name} is {ours}.")
    theirs = known.made_by.get("text_encoder")
    # A folder and a name of the hub are the same model where their last parts are.
    if theirs and encoder and _last(theirs) != _last(encoder.name):
        has = f"{known.shard} holds features of the text encoder {theirs}"
        raise UserError(f"{known.split}: {has}, but condition.encoder is {encoder.name}.")
    style = known.made_by.get("captions", UNNAMED["captions"])
    if theirs and encoder and style != encoder.captions:
        has = f"{known.shard} holds features of captions cleaned as {style}"
        ours = f"condition.encoder.captions is {encoder.captions}"
        raise UserError(f"{known.split}: {has}, but {ours}; make both equal.")


def _last(name: str) -> str:
    return Path(name).name.partition("@")[0]


def _encoder(config: Any) -> TextEncoder | None:
    """The encoder of a condition, which loads nothing; None for none, or somebody's own."""
    is_own = isinstance(config, Namespace) and imported(config.class_path) is TextEncoder
    return TextEncoder(**vars(config.init_args)) if is_own else None
