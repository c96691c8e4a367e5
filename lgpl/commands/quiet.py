"""What libraries say and a user can do nothing about is left out."""

import logging
import re
import warnings

WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    "This DataLoader will create",  # `data.num_workers` above the CPUs: lgpl says it in a sentence
    r"Precision \S+ is not supported by the model summary",
    r"The dirpath has changed from",  # of the checkpoints, where a command writes none
    r"Checkpoint directory .* exists and is not empty",  # of the run that goes on
    r"Be aware that when using `ckpt_path`, callbacks used to create",  # as predict has its own
    r"Found \d+ module\(s\) in eval mode",  # what is frozen
)
MESSAGES = re.compile(
    r".*(litlogger|litmodels|[TH]PU available: False|GPU available: False|Seed set to"
    r"|Automatic Mixed Precision|already configured with model summary callbacks"
    r"|Trainer.fit` stopped: `max_|was configured so \d+ batch|Loaded model weights from)"
)


def be_quiet() -> None:
    """For the whole process; called before Lightning's first word."""
    # A user has no use for the line of a library that warns.
    warnings.formatwarning = lambda message, *_, **__: f"lgpl: warning: {message}\n"
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("pytorch", "fabric"):
        for part in ("rank_zero", "seed"):
            logging.getLogger(f"lightning.{name}.utilities.{part}").addFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    return MESSAGES.match(record.getMessage()) is None
