"""Protocols by name, and reports that say all that a metric depends on.

`rfid`: reconstructions of images against those same images, centre crops, no augmentation.
`gfid`: N generated images against ADM's reference batch, or against the training images.
"""

import functools
import itertools
import json
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lgpl
from lgpl.atomic import PartialFile, write_text
from lgpl.data import ShardDataModule
from lgpl.errors import as_user_error
from lgpl.metrics.comparison import compute_metrics, left_out
from lgpl.metrics.extractors import Extractor
from lgpl.metrics.summary import FeatureSummary
from lgpl.text import captions


def read_prompts(path: str | list[str]) -> list[str]:
    """One prompt a line of a text file, or the captions of shards in their order."""
    if not isinstance(path, str) or not path.endswith(".txt"):
        data = ShardDataModule(test=path, fields=("caption",), eval_batch_size=256)
        data.setup("test")
        kept = (itertools.compress(b["caption"], b["valid"]) for b in data.test_dataloader())
        return list(itertools.chain.from_iterable(kept))
    return captions.read_prompts(path)


def report(
    protocol: str,
    extractor: Extractor,
    real: FeatureSummary,
    fake: FeatureSummary,
    reference: dict[str, Any],
    more: dict[str, float] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The metrics of `fake` against `real` and all that they depend on, in plain values: where
    `real` is from, and what else was chosen; `left_out` says which metrics are not there, and why,
    where the sets are too small for some."""
    without = left_out(real, fake, extractor)
    return {
        "metrics": compute_metrics(real, fake, extractor) | (more or {}),
        **({"left_out": without} if without else {}),
        "protocol": protocol,
        "extractor": extractor.name,
        "preprocessing": extractor.preprocessing,
        "N": fake.count,
        "reference": {key: value for key, value in reference.items() if key != "identity"},
        **settings,
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "lgpl": lgpl.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchmetrics", "lightning")},
        },
    }


@functools.cache
def commit() -> str | None:
    """Of lgpl's own repository; None where it is installed without one. Call it before long work:
    the repository may move on, the code that runs does not."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def require_writable(path: Path) -> None:
    """Raises a UserError where `write_json` would."""
    with as_user_error(f"{path} cannot be written", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        PartialFile(path).discard()


def write_json(path: Path, content: Any) -> None:
    """A file that is whole or not there, in a folder that `require_writable` has made."""
    with as_user_error(f"{path} cannot be written", OSError):
        write_text(path, json.dumps(content, indent=2) + "\n")
