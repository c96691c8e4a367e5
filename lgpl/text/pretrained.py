"""Models of the transformers library, from a hub or a folder; code of their own never runs."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lgpl import hub
from lgpl.errors import UserError
from lgpl.lazy import needs

# PyTorch's own. A config may name others, up to kernels that transformers fetches and runs.
ATTENTION = ("sdpa", "eager")
# Of a model on a hub that `hf:` names, what is fetched: it holds no code and no pickles.
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model*.safetensors", ("*.json", "*.model", "*.txt")

# What prepares a model's inputs: of transformers, the model's source and its config.
Preparation = Callable[[Any, str, Any], Any]


def tokenizer(transformers: Any, source: str, config: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def image_processor(transformers: Any, source: str, config: Any) -> Any:
    """Pillow's, on every machine: torchvision's gives other pixels."""
    load = transformers.AutoImageProcessor.from_pretrained
    return load(source, trust_remote_code=False, backend="pil")


def load_pretrained(
    source: str,
    what: str,
    choose: Callable[[Any, Any], Any],
    prepare: Preparation = tokenizer,
    whole: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """What prepares its inputs, by default its tokenizer, and the frozen model in evaluation mode
    of a name on the hub (with `hf:` before it by `lgpl.hub`) or a folder; `choose` gives the
    model's class, of transformers and the config. Raises a UserError, which calls the model `what`,
    where transformers is missing, or the model can be neither read nor fetched, brings code of its
    own, is stored in a form that needs other packages, or, if it is to be `whole`, lacks weights.
    """
    needs(what, "transformers", "text")
    path = str(hub.fetched(source, (CONFIG, WEIGHTS), TOKENIZER))
    import transformers
    from transformers import dynamic_module_utils

    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # weights load in a moment
    # transformers asks on standard input whether to run the code of a nested model, such as an
    # image encoder; a timeout of 0 means no.
    asks = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError("its weights are quantised; give the model that it was made from")
        _forget_code(config)
        kind, preparation = choose(transformers, config), prepare(transformers, path, config)
        model, missing = _model(kind, path, config, options)
        if whole and missing:  # those are drawn
            raise ValueError(f"it lacks {len(missing)} of its weights, such as {min(missing)}")
    except Exception as error:  # it is anybody's folder
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch recommends to run it
            reason = "its weights are pickled code, which is never run here; ask for safetensors"
        raise UserError(f"{what}: {source!r} cannot be loaded: {reason}") from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = asks
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return preparation, model.eval().requires_grad_(False)


def hidden_size(source: str, what: str) -> int:
    """Features of a token, read from the config alone; raises as `load_pretrained` does."""
    needs(what, "transformers", "text")
    path = str(hub.fetched(source, (CONFIG,)))
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        return int(config.get_text_config().hidden_size)
    except Exception as error:  # it is anybody's folder
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{what}: the config of {source!r} cannot be read: {reason}") from error


def _forget_code(config: Any) -> None:
    """Remove the references to own code from a config and from the configs in it."""
    vars(config).pop("auto_map", None)
    for part in vars(config).values():
        if hasattr(part, "model_type"):
            _forget_code(part)


def _model(kind: Any, source: str, config: Any, options: dict[str, Any]) -> tuple[Any, set[str]]:
    """The model, and the names of weights that are not there."""
    if any(Path(source).glob("*.safetensors")):
        options["use_safetensors"] = True
    for attention in ATTENTION:
        try:
            with torch.random.fork_rng(devices=[]):  # missing weights are drawn
                model, found = kind.from_pretrained(
                    source, config=config, trust_remote_code=False, weights_only=True,
                    attn_implementation=attention, output_loading_info=True, **options,
                )  # fmt: skip
                return model, set(found["missing_keys"])
        except ValueError:
            if attention == ATTENTION[-1]:
                raise
    raise AssertionError
