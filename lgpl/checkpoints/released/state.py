"""What the files of all families share: where they keep weights, and what their shapes say."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lgpl.checkpoints.files import MODEL, check_weights, load_tensors
from lgpl.errors import UserError
from lgpl.generator.conditions.classes import IMAGENET, read_names
from lgpl.training.build import build_module

# Where a file keeps its weights, the averaged ones first; it may also be nothing but weights.
WEIGHTS = ("ema", "model_ema", "model", "module", "state_dict")
# Left in front of names by DDP and FSDP (module) and torch.compile (_orig_mod).
WRAPPERS = re.compile(r"(^|(?<=\.))(module|_fsdp_wrapped_module|_orig_mod)\.")

# Where LlamaGen's training keeps its discriminator, and before what names taming's has its loss.
DISCRIMINATOR, LOSS = "discriminator", "loss."
# What trainings save beside tensors, as data without behaviour: their arguments, and the class
# under which Lightning kept a callback's state until 1.5, here one that is empty.
DATA_CLASSES = (
    argparse.Namespace,
    type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"}),
)

IMAGENET_CLASSES = 1000
State = dict[str, Tensor]


class Released(NamedTuple):
    """What a file holds, in lgpl's terms."""

    kind: str  # `tokenizer` or `generator`
    config: dict[str, Any]  # `class_path` and `init_args` of its module
    weights: State  # state dict of the model itself
    summary: str  # one line for people
    discriminator: State = {}  # of a tokenizer that has it: the state dict of a `PatchGAN`


def read_state(path: Path) -> State:
    """The weights of a file, those of the loss behind `LOSS`; raises UserError where it holds none,
    or code."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a released file of weights (.pt, .pth, .ckpt)."
        )
    content = load_tensors(path, data_classes=DATA_CLASSES)
    held = content if isinstance(content, dict) else {}
    state = _tensors(next((held[key] for key in WEIGHTS if isinstance(held.get(key), dict)), held))
    if not state:
        raise UserError(f"{path} holds no weights, neither bare nor under {', '.join(WEIGHTS)}.")
    against = _tensors(held.get(DISCRIMINATOR))
    return state | {f"{LOSS}{DISCRIMINATOR}.{name}": t for name, t in against.items()}


def _tensors(named: Any) -> State:
    items = named.items() if isinstance(named, dict) else ()
    return {WRAPPERS.sub("", str(n)): t for n, t in items if isinstance(t, Tensor)}


def released(
    kind: str,
    config: dict[str, Any],
    state: State,
    path: Path,
    family: str,
    to_theirs: Callable[[Mapping[str, Tensor]], State],
    to_ours: Callable[[Mapping[str, Tensor], State], State],
) -> Released:
    """A file's weights in lgpl's names; a UserError where one is missing, unknown or of another
    shape. `to_ours` gets the model's own state dict, on the meta device, and the file's."""
    expected = model_state(config)
    check_weights(to_theirs(expected), state, str(path), f"{family}'s model")
    millions = sum(tensor.numel() for tensor in state.values()) / 1e6
    options = config["init_args"][MODEL[kind]]["init_args"]
    named = options | options.get("condition", {}).get("init_args", {})
    listed = {k: v for k, v in named.items() if k != "names" and not isinstance(v, dict)}
    plain = [f"{key} {value}" for key, value in listed.items()]
    summary = ", ".join([kind, f"{millions:.1f}M weights", *plain])
    return Released(kind, config, to_ours(expected, state), summary)


def model_state(config: dict[str, Any]) -> State:
    """The state dict of a config's model, on the meta device."""
    with torch.device("meta"):
        module = build_module(config)
        module.configure_model()
    return dict(getattr(module, MODEL[module.kind]).state_dict())


def shape_of(state: State, name: str, path: Path, family: str) -> list[int]:
    """Of a matrix (or a kernel) that says how large the model is."""
    if name not in state:
        raise UserError(f"{path} has no weight {name}: it is not whole, or no model of {family}.")
    if state[name].dim() < 2:
        raise UserError(f"{path} has {name} of {[*state[name].shape]}, which should be a matrix.")
    return [*state[name].shape]


def count(state: State, prefix: str) -> int:
    """How many of a numbered kind of layer there are."""
    found = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def entry(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def class_condition(classes: int) -> dict[str, Any]:
    """Of so many classes, which have names where they are ImageNet's."""
    names = {"names": read_names(IMAGENET)} if classes == IMAGENET_CLASSES else {}
    return entry("lgpl.generator.ClassCondition", num_classes=classes, **names)
