"""Errors of Lightning that a user can mend, as one sentence that names the option."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lgpl.errors import UserError, nearest

DEVICES = "--trainer.devices must be auto, or a number >= 1 of devices that are there."
# What to say where a message of Lightning holds these words.
MENDED = {
    "val_check_interval (": "--trainer.val_check_interval is above the training batches of an "
    "epoch; give a smaller one.",
    "barebones=True": "--trainer.barebones: true leaves out the logger, checkpoints and callbacks "
    "that the config asks for; leave it false.",
    'ckpt_path="best"': "--ckpt_path: there is no best checkpoint; give last, or a path.",
    "is not in bounds, numpy accepts": "--seed_everything must be from 0 to 4294967295.",
    "devices=": DEVICES,
    "devices selected with": DEVICES,
}
# What these refuse are values of this part of a config.
PACKAGES = {
    Path(lightning.__file__).parent: "trainer",
    Path(torch.optim.__file__).parent: "model.init_args",
}


@contextmanager
def mended() -> Iterator[None]:
    """Turns what Lightning itself raises about its options into a UserError; errors of other code
    stay what they are."""
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        for package, what in PACKAGES.items():
            if package in last.parents:
                raise UserError(sentence(what, str(error))) from error
        raise


def sentence(what: str, message: str) -> str:
    """A message about a part of the config in one line, with the options of the Trainer as the
    command line names them."""
    said = " ".join(message.replace("`", "").split())
    for mark, mended_by in MENDED.items():
        if mark in said:
            return mended_by
    return f"{what}: {said}"


def check_names(trainer: Any) -> None:
    """Raises a UserError for the name of a strategy or an accelerator that there is not, and for
    intervals that are none."""
    known = {
        "strategy": {"auto", *StrategyRegistry.available_strategies()},
        "accelerator": {"auto", "gpu", *AcceleratorRegistry.available_accelerators()},
        "profiler": {"simple", "advanced", "pytorch", "xla"},
    }
    for name, names in known.items():
        if isinstance(value := trainer.get(name), str) and value not in names:
            near = nearest(value, names) or f", which are {', '.join(sorted(names))}."
            raise UserError(f"--trainer.{name}: {value} is none that Lightning has{near}")
    for name in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches"):
        if trainer.get(name) == 0:
            raise UserError(f"--trainer.{name} must be > 0, got 0")


def check_fp16(trainer: Any, fitting: bool) -> None:
    """Raises a UserError where the Trainer cannot compute in fp16: Lightning would warn and take
    another precision, or name a class of its own."""
    precision, strategy = str(trainer.get("precision")), str(trainer.get("strategy"))
    accelerator = trainer.get("accelerator")
    if precision not in ("16", "16-mixed", "16-true"):
        return
    is_scaled, cause = precision != "16-true", ""
    has_none = accelerator in (None, "auto") and not torch.accelerator.is_available()
    if accelerator == "cpu" or has_none:
        cause = "needs a GPU"
    elif is_scaled and ("ShardedStrategy" in strategy or "ModelParallelStrategy" in strategy):
        cause = "scales gradients, which a sharded model (FSDP2) does not take"
    elif fitting and not is_scaled:
        cause = "keeps the weights in fp16, where most steps of an optimizer round to nothing"
    if cause:
        raise UserError(f"--trainer.precision: {precision} {cause}; give bf16-mixed or 32-true.")


def check_trainer(trainer: Any, is_manual: bool) -> None:
    """Raises a UserError for options of the Trainer that a module with steps of its own does not
    follow, with the one to give instead."""
    wrong = {
        "gradient_clip_val": ("gradient_clip", trainer.get("gradient_clip_val")),
        "accumulate_grad_batches": ("accumulate", trainer.get("accumulate_grad_batches")),
    }
    for name, (instead, value) in wrong.items():
        if is_manual and value not in (None, 0, 1 if name.startswith("acc") else None):
            said = f"--trainer.{name}: the tokenizer's steps are its own"
            raise UserError(f"{said}; give --model.init_args.{instead} {value} instead.")


def check_run_is_new(trainer: Any) -> None:
    """Raises a UserError where the folder of the logs holds checkpoints of another run."""
    folder = getattr(trainer.logger, "log_dir", None) if trainer.logger else None
    if isinstance(folder, str) and (there := sorted(Path(folder, "checkpoints").glob("*.ckpt"))):
        last = next((path for path in there if path.stem == "last"), there[-1])
        said = f"{folder} holds the checkpoints of another run; go on with it by --ckpt_path {last}"
        raise UserError(f"{said}, or give another --trainer.logger.init_args.name.")


def where_it_is(trainer: Any) -> None:
    """Print the checkpoint of a training that has ended, and how to see its curves."""
    if not trainer.is_global_zero:
        return
    callback = trainer.checkpoint_callback
    path = callback and (callback.last_model_path or callback.best_model_path)
    if path:
        print(f"checkpoint: {path}")
    folder = getattr(trainer.logger, "log_dir", None) if trainer.logger else None
    if isinstance(folder, str):
        print(f"curves: tensorboard --logdir {folder}", flush=True)
