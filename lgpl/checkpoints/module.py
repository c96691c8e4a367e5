"""Modules that describe themselves in their checkpoints, and are built again from them."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lgpl.checkpoints.files import MODEL, Checkpoint, check_weights, read_checkpoint
from lgpl.checkpoints.trust import imported, lock, only_classes, only_trusted, refusal
from lgpl.codes import CodeLayout, ImageSize
from lgpl.data import ShardDataModule
from lgpl.errors import UserError, behind
from lgpl.optimizers import Schedule

MOST_VALUES = 100_000  # of a checkpoint's config, which may hold the names of classes
LONGEST_VALUE = 10_000  # characters of one
# A string may be read as YAML, where what is named once can stand again, and grow without end.
ANCHOR, ALIAS = (re.compile(rf"(^|[\s\[\]{{}},:-]){mark}\w") for mark in ("&", r"\*"))


class SelfDescribing(pl.LightningModule):
    """A LightningModule whose checkpoints say what they are.

    Attributes:
        kind: `tokenizer` or `generator`.
        config: `class_path` and `init_args` in plain types; the command line sets it.
        init_from: checkpoint whose weights training starts from.
        evaluated: checkpoint whose weights the other commands take, where it is none that the
            Trainer reads by itself; the command line sets it.
        trust: packages whose classes the checkpoints that it reads may name.
        from_checkpoint: whether the config in a checkpoint has built it.
    """

    kind: str
    config: dict[str, Any] | None = None
    init_from: str | None = None
    evaluated: str | None = None
    trust: tuple[str, ...] = ()
    from_checkpoint: bool = False

    def guard(self) -> AbstractContextManager[None]:
        """In which what the config left for later is built: all of a checkpoint's is held back."""
        return only_trusted(self.trust) if self.from_checkpoint else nullcontext()

    @property
    def accumulated(self) -> int:
        """Training batches of an optimizer step."""
        return self.trainer.accumulate_grad_batches

    def one_step(self, batch: dict[str, Any]) -> None:
        """Forward and backward of a training step at its heaviest, without a Trainer."""
        raise NotImplementedError

    def zeros(self, batch_size: int, size: ImageSize) -> dict[str, Any]:
        """A batch of zeros to plan with, of images of a size."""
        raise NotImplementedError

    def code_layout(self, size: ImageSize) -> CodeLayout:
        """Of the codes of an image of a size."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """Parts that a sharded strategy gathers one by one."""
        return ()

    def drawing_memory(self, images: int, dtype: torch.dtype) -> int:
        """Bytes beside the weights for drawing so many guided images."""
        return 0

    def peak_factor(self, schedule: Schedule) -> float:
        """What the config's peak learning rate is multiplied by for the run's global batch."""
        if schedule.batch_rule is None or self._trainer is None:  # planned, not trained
            return 1.0
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ShardDataModule):
            raise UserError(
                f"schedule.batch_rule: {schedule.batch_rule} takes the batch of a ShardDataModule, "
                "which there is none of; set it to null."
            )
        ranks = self.trainer.world_size
        batch = data.train_batch(ranks, self.accumulated) * ranks * self.accumulated
        return schedule.batch_factor(batch)

    def start_weights(self) -> None:
        """Load the weights that the command begins with, before they are sharded or resumed."""
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        path = self.init_from if fitting else self.evaluated
        if path is not None:
            self.load_weights(read_checkpoint(path, self.kind))

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take the model's weights from a checkpoint.

        Raises:
            UserError: they have other names or shapes.
        """
        model = getattr(self, MODEL[self.kind])
        weights = checkpoint.weights()
        check_weights(model.state_dict(), weights, str(checkpoint.path))
        model.load_state_dict(weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lgpl"] = {"kind": self.kind, "config": self.config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the checkpoint against this module before its weights are loaded.

        Raises:
            UserError: it is of another kind, or its weights have other names or shapes.
        """
        found = checkpoint.get("lgpl", {}).get("kind", "model of another program")
        if found != self.kind:
            raise UserError(f"The checkpoint holds a {found}, but a {self.kind} is wanted.")
        path = self._trainer and self.trainer.ckpt_path
        _forget_foreign_paths(checkpoint, Path(path) if path else None)
        if "state_dict" in checkpoint:  # a sharded strategy has loaded the weights by itself
            check_weights(self.state_dict(), checkpoint["state_dict"], "The checkpoint")


def build_module(config: dict[str, Any], without: tuple[str, ...] = ()) -> SelfDescribing:
    """The module of a config that is the user's own, with fresh weights; it may name any class.

    Args:
        config: `class_path` and `init_args`.
        without: keys that are set to None where the config has their parents, such as a loss that
            is not needed.
    """
    with lock:  # or another thread's loading would hold this back
        return _built(config, without, None)


def build_described(
    checkpoint: Checkpoint, without: tuple[str, ...] = (), trust: Iterable[str] = ()
) -> SelfDescribing:
    """The module that a checkpoint's config describes, with fresh weights.

    Args:
        checkpoint: whoever made it.
        without: see `build_module`.
        trust: packages whose classes it may name beside lgpl's own.

    Raises:
        UserError: it has no config, names a class of another package or of another kind of module,
            or cannot be built.
    """
    trust = tuple(trust)
    with told(checkpoint.path), only_trusted(trust):
        module = _built(checkpoint.described(), without, checkpoint.kind)
    module.trust, module.from_checkpoint = trust, True
    return module


def load_module(
    path: str | Path,
    kind: str | None = None,
    without: tuple[str, ...] = (),
    trust: Iterable[str] = (),
) -> SelfDescribing:
    """The module of a checkpoint in evaluation mode, built from the config inside.

    Args:
        path: see `read_checkpoint`.
        kind: what it must hold; None takes any.
        without: see `build_module`.
        trust: see `build_described`.

    Raises:
        UserError: see `read_checkpoint` and `build_described`.
    """
    checkpoint = read_checkpoint(path, kind)
    module = build_described(checkpoint, without, trust)
    with told(path):
        module.configure_model()
        module.load_weights(checkpoint)
    return module.eval().requires_grad_(False)


def _built(config: dict[str, Any], without: tuple[str, ...], kind: str | None) -> SelfDescribing:
    if kind is not None:
        _check_size(config)
    built = copy.deepcopy(config)
    for key in without:
        *parents, last = key.split(".")
        inner = functools.reduce(lambda part, name: part.get(name, {}), parents, built)
        inner[last] = None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--module", type=SelfDescribing)
    parsed = parser.parse_object({"module": built})  # nothing is built by that
    if kind is not None:
        named = parsed.module.class_path
        if getattr(imported(named), "kind", None) != kind:
            raise UserError(f"The config names {named}, which is no {kind}.")
        only_classes(parsed)
    module = parser.instantiate(parsed).module
    module.config = built
    return module


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
            if isinstance(value.get("names"), str):  # whose lines a page would show to anybody
                raise UserError(
                    f"The config takes names from {value['names']}; a checkpoint has them itself."
                )
            left += value.values()
        left += value if isinstance(value, (list, tuple)) else ()


def _forget_foreign_paths(checkpoint: dict[str, Any], resumed: Path | None) -> None:
    """Take out of the callbacks' states the paths that do not lie beside the checkpoint itself:
    ModelCheckpoint deletes the best one so far, wherever a file says that it is, once there is a
    better one."""

    def is_plain(path: object) -> bool:
        beside = resumed and resumed.absolute().parent
        return beside is not None and Path(str(path)).absolute().parent == beside

    states = checkpoint.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if not isinstance(state, dict):
            continue
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if name in state and not is_plain(state[name]):
                state[name] = ""
        if isinstance(best := state.get("best_k_models"), dict):
            state["best_k_models"] = {path: v for path, v in best.items() if is_plain(path)}


@contextmanager
def told(source: object) -> Iterator[None]:
    """Turn whatever a checkpoint's config leads to into one sentence: it can hold anything."""
    try:
        yield
    except Exception as error:
        mistake = behind(error) or refusal(error, source)
        if mistake is None:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            mistake = UserError(f"{source} has a config that cannot be built ({reason}).")
        raise mistake from error
