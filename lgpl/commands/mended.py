"""Errors of Lightning that a user can mend, as one sentence that names the option."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lgpl.errors import UserError

# What to say where a message of Lightning holds these words.
MENDED = {
    "val_check_interval (": "--trainer.val_check_interval is above the training batches of an "
    "epoch; give a smaller one.",
    "barebones=True": "--trainer.barebones: true leaves out the logger, checkpoints and callbacks "
    "that the config asks for; leave it false.",
    'ckpt_path="best"': "--ckpt_path: there is no best checkpoint; give last, or a path.",
    "devices=": "--trainer.devices must be auto, or a number >= 1 of devices that are there.",
}
LIGHTNING = Path(lightning.__file__).parent


@contextmanager
def mended() -> Iterator[None]:
    """Turns what Lightning itself raises about its options into a UserError; errors of other code
    stay what they are."""
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if LIGHTNING not in Path(last.filename).parents:
            raise
        raise UserError(sentence(str(error))) from error


def sentence(message: str) -> str:
    """A message in one line, with the options of the Trainer as the command line names them."""
    said = " ".join(message.replace("`", "").split())
    for mark, mended_by in MENDED.items():
        if mark in said:
            return mended_by
    return f"trainer: {said}"


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
