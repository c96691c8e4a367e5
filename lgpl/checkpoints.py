"""Checkpoints: Lightning's files that say what they hold, and LlamaGen's names under lgpl's.

A checkpoint of lgpl is Lightning's with one entry more, `lgpl`: the kind of module and the config
it was built from, in plain types. It is read with `weights_only`, so nothing in it is executed.
"""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lgpl.errors import UserError

# (pattern in LlamaGen's names, lgpl's); first match wins
RENAMED = (
    (r"^cls_embedding\.embedding_table\.", "condition.embedding."),
    (r"^cls_embedding\.cap_proj\.", "condition."),
    (r"^cls_embedding\.uncond_embedding$", "condition.null_features"),
    (r"^quantize\.embedding\.", "quantizer.codebook."),
    (r"^((?:en|de)coder\.conv_blocks\.\d+)\.(?:down|up)sample\.", r"\1.resample."),
)
# Tables and statistics that the released files may hold, which are computed here.
COMPUTED = ("freqs_cis", "quantize.codebook_used")


def from_llamagen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with LlamaGen's parameter names under lgpl's."""
    renamed = {}
    for name, tensor in state.items():
        if name in COMPUTED:
            continue
        for pattern, ours in RENAMED:
            new, count = re.subn(pattern, ours, name)
            if count:
                name = new
                break
        renamed[name] = tensor
    return renamed


class SelfDescribing(pl.LightningModule):
    """A LightningModule whose checkpoints say what they are.

    Attributes:
        kind: `tokenizer` or `generator`.
        config: `class_path` and `init_args` in plain types; the command line sets it.
    """

    kind: str
    config: dict[str, Any] | None = None

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
        if "state_dict" in checkpoint:  # a sharded strategy has loaded the weights by itself
            check_weights(self, checkpoint["state_dict"], "The checkpoint")


def check_weights(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Names and shapes of a state dict against a module's.

    Raises:
        UserError: a weight is missing or of another shape.
    """
    for name, tensor in module.state_dict().items():
        if name not in state:
            raise UserError(f"{source} has no weight {name}: it holds another kind of model.")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{source} has {name} of {[*state[name].shape]}, the config {[*tensor.shape]}: "
                "they are of different sizes."
            )


def read_checkpoint(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """A checkpoint of lgpl, its tensors mapped from the file.

    Args:
        path: the .ckpt file.
        kind: what it must hold; None takes any.

    Raises:
        UserError: there is no such file, it is no checkpoint, or one of another kind.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; give the .ckpt file of a {kind or 'run'}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = checkpoint["lgpl"]["kind"]
    except Exception as error:  # torch.load raises many kinds for a file that is none of its own
        raise UserError(f"{path} is no checkpoint of lgpl, or a damaged one.") from error
    if kind is not None and found != kind:
        raise UserError(f"{path} holds a {found}, but a {kind} is wanted.")
    return checkpoint


def load_module(path: str | Path, kind: str, without: tuple[str, ...] = ()) -> SelfDescribing:
    """The module of a checkpoint in evaluation mode, built from the config inside.

    Args:
        path: the .ckpt file.
        kind: what it must hold.
        without: keys of the config that are set to None, such as a loss that is not needed.

    Raises:
        UserError: see `read_checkpoint`; or the checkpoint was made without a config.
    """
    checkpoint = read_checkpoint(path, kind)
    config = checkpoint["lgpl"]["config"]
    if config is None:
        raise UserError(
            f"{path} was saved without the command line and does not say how it was built; build "
            "the module yourself and call load_state_dict."
        )
    config = copy.deepcopy(config)
    for key in without:
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, config)[last] = None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SelfDescribing, "module")
    module = parser.instantiate_classes(parser.parse_object({"module": config})).module
    module.config = config
    module.configure_model()
    check_weights(module, checkpoint["state_dict"], str(path))
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval().requires_grad_(False)
