"""Files of checkpoints. Three forms are read, and nothing in them is ever executed:

- Lightning's .ckpt, which carries one entry more, `lgpl`: the kind of module and its config;
- the folder of a sharded (FSDP) run, with the same entry in `meta.pt`;
- lgpl's own folder: `config.json`, which is that entry, and `model.safetensors`, the state dict of
  the `VQModel` or `Transformer`, for whoever wants the model without Lightning. By two entries more
  vLLM knows a generator's folder for what it is. An imported tokenizer may have its discriminator
  beside it, in `discriminator.safetensors`.

With EMA the first two hold the average as their weights, so what is read here is the average.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgpl import hub, shipped
from lgpl.atomic import atomic_folder, remove_partials
from lgpl.checkpoints.shards import ENTRIES, is_sharded, read_module
from lgpl.errors import UserError, as_user_error

StateDict = Mapping[str, Tensor]
CONFIG, WEIGHTS, DISCRIMINATOR = "config.json", "model.safetensors", "discriminator.safetensors"
LAST = "checkpoints/last.ckpt"  # in the folder of a run
# kind -> the model's place in the module, and so in the names of a Lightning checkpoint
MODEL = {"tokenizer": "autoencoder", "generator": "transformer"}
# What libraries that look models up by name, such as vLLM, know a generator's folder by.
ARCHITECTURE, MODEL_TYPE = "LlamaGenForImageGeneration", "llamagen"


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk."""

    path: Path
    kind: str  # `tokenizer` or `generator`
    config: dict[str, Any] | None  # `class_path` and `init_args`; None where it does not say
    weights: Callable[[], dict[str, Tensor]]  # reads the state dict of the model itself
    # The same of what a tokenizer was trained against; empty where it was not kept.
    discriminator: Callable[[], dict[str, Tensor]] = dict
    provenance: dict[str, Any] = field(default_factory=dict)  # what it was made of, where it says

    def described(self) -> dict[str, Any]:
        """The config; raises UserError where there is none."""
        if self.config is None:
            how = "how it was built, because a part of its module does not remember its arguments"
            mend = "build the module yourself and call load_state_dict"
            raise UserError(f"{self.path} does not say {how}; {mend}.")
        return self.config


def is_exported(path: str | Path) -> bool:
    """Whether it is lgpl's own folder."""
    return (Path(path) / CONFIG).is_file()


def read_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """A checkpoint in any of the three forms, also of a hub, or `emoji`, the one that comes with
    lgpl; of a folder with a generator and its tokenizer the one that is wanted. The weights stay on
    disk until they are asked for. Raises UserError where there is none, or, with a `kind`, one of
    the other."""
    path = hub.fetched(path, (CONFIG, WEIGHTS), (DISCRIMINATOR,), folders=tuple(MODEL))
    path = shipped.checkpoint(path, kind)
    if is_exported(inner := path / (kind or "generator")):
        path = inner
    if (last := path / LAST).is_file():
        path = last  # of the folder of a run
    content: Any  # with the entry `lgpl`
    read: Callable[[], Any] = dict  # the state dict of the module
    exported = is_exported(path)
    if exported:
        kinds = (OSError, ValueError, RecursionError)
        with as_user_error(f"{path / CONFIG} cannot be read as JSON", *kinds):
            content = {"lgpl": json.loads((path / CONFIG).read_text(encoding="utf-8"))}
    elif is_sharded(path):
        content, read = load_tensors(path / ENTRIES), partial(read_module, path)
    elif path.is_file():
        content, read = load_tensors(path), lambda: content["state_dict"]
    else:
        folders = f"a run's folder with {LAST}, an exported one"
        raise UserError(f"{path}: no such checkpoint; give a .ckpt, {folders}, or {shipped.EMOJI}.")
    entry: Any = content.get("lgpl") if isinstance(content, dict) else None
    found = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(found, str) or found not in MODEL:
        raise UserError(f"{path} is no checkpoint of lgpl; `lgpl import` makes one of LlamaGen's.")
    if kind not in (None, found):
        raise UserError(f"{path} holds a {found}, but a {kind} is wanted.")

    def part(prefix: str, file: str) -> dict[str, Tensor]:
        """Of the module's state dict, or what an exported folder has in a file of its own."""
        try:
            with as_user_error(f"{path / file} is missing or damaged", OSError, SafetensorError):
                if exported:
                    return load_file(path / file)
                return {
                    n.removeprefix(prefix): t for n, t in read().items() if n.startswith(prefix)
                }
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path} holds no weights where they should be.") from error

    weights = partial(part, f"{MODEL[found]}.", WEIGHTS)
    against: Callable[[], dict[str, Tensor]] = dict
    if not exported or (path / DISCRIMINATOR).is_file():
        against = partial(part, "loss.discriminator.", DISCRIMINATOR)
    provenance = entry.get("provenance")
    known = provenance if isinstance(provenance, dict) else {}
    return Checkpoint(path, found, entry.get("config"), weights, against, known)


def write_checkpoint(
    folder: str | Path,
    kind: str,
    config: dict[str, Any],
    weights: StateDict,
    discriminator: StateDict | None = None,
    provenance: Mapping[str, Any] = {},
) -> None:
    """Write lgpl's own folder, whole or not at all, in place of one that is there; raises UserError
    where it cannot be written, or holds other files, which would be lost."""
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out: {folder} is no folder; name a new one.")
    known_files = (CONFIG, WEIGHTS, DISCRIMINATOR)
    if others := [path.name for path in folder.glob("*") if path.name not in known_files]:
        raise UserError(f"--out: {folder} holds {min(others)}; name a new folder.")
    known = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE}
    names = known if kind == "generator" else {}
    kinds = (OSError, SafetensorError, RuntimeError, ValueError, TypeError, AttributeError)
    with as_user_error(f"--out: {folder} cannot be written", *kinds):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
        with atomic_folder(folder) as new:
            made = {"provenance": dict(provenance)} if provenance else {}
            entry = json.dumps({"kind": kind, **names, "config": config, **made}, indent=2)
            (new / CONFIG).write_text(entry + "\n", encoding="utf-8")
            for file, state in ((WEIGHTS, weights), (DISCRIMINATOR, discriminator)):
                if state:
                    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
                    save_file(tensors, new / file, metadata={"format": "pt"})
                    # safetensors writes for the owner alone, whatever the umask says.
                    (new / file).chmod((new / CONFIG).stat().st_mode)


def check_weights(
    expected: StateDict, found: StateDict, source: str, model: str = "the config"
) -> None:
    """Raise UserError where a weight that is found in `source` is missing, unknown or of another
    shape than in the model, whose tensors may be on the meta device."""
    if missing := [name for name in expected if name not in found]:
        other = "it is not whole, or holds another kind of model"
        raise UserError(f"{source} has no weight {_list(missing)}: {other}.")
    if unknown := [name for name in found if name not in expected]:
        raise UserError(f"{source} has a weight that {model} lacks: {_list(unknown)}.")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            sizes = f"{name} of {[*found[name].shape]}, {model} {[*tensor.shape]}"
            raise UserError(f"{source} has {sizes}: they are of different sizes.")


def _list(names: list[str], shown: int = 3) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def load_tensors(path: Path, data_classes: Iterable[type] = ()) -> Any:
    """What `torch.save` wrote: tensors, mapped from the file, in plain containers and data classes,
    which have no behaviour. Raises UserError for code, which is not run, and for other files."""
    try:
        with torch.serialization.safe_globals(list(data_classes)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds for a file that is none of its own
        code = re.search(r"[Uu]nsupported (?:global: GLOBAL|GLOBAL|class) ([\w.]+)", str(error))
        if code:
            never = f"pickled code ({code[1]}), which is never run here; ask for a file of tensors"
            raise UserError(f"{path} holds {never}.") from error
        raise UserError(f"{path} is no checkpoint, or a damaged one.") from error
