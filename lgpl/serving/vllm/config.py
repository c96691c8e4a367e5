"""How an exported generator says what it is, without vLLM and without transformers."""

from __future__ import annotations

import inspect
from typing import Any

from lgpl.errors import UserError
from lgpl.generator import Transformer


def transformer_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the `Transformer` that a generator's config builds, defaults included.

    Raises:
        UserError: the config builds another model.
    """
    built = config["init_args"]["transformer"]
    if built["class_path"].rpartition(".")[2] != Transformer.__name__:
        raise UserError(f"vLLM runs lgpl.generator.Transformer, and not {built['class_path']}.")
    bound = inspect.signature(Transformer).bind_partial(**built.get("init_args", {}))
    bound.apply_defaults()
    return dict(bound.arguments)
