"""What libraries say and a user can do nothing about is left out."""

import logging
import re
import warnings

WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    "This DataLoader will create",  # `data.num_workers` above the CPUs: lgpl says it in a sentence
    r"Precision \S+ is not supported by the model summary",
)
MESSAGES = re.compile(
    r".*(litlogger|[TH]PU available: False|already configured with model summary callbacks"
    r"|was configured so \d+ batch)"
)


def be_quiet() -> None:
    """For the whole process; called before a Trainer is made."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    return MESSAGES.match(record.getMessage()) is None
