"""TrainingModule: what the modules of tokenizers and generators share."""

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning.pytorch as pl
import torch
from torch import nn

from lgpl import hub
from lgpl.checkpoints.files import MODEL, Checkpoint, check_weights, is_exported, read_checkpoint
from lgpl.checkpoints.trust import only_trusted
from lgpl.codes import CodeLayout, ImageSize
from lgpl.data import ShardDataModule
from lgpl.described import Described, Undescribable, describe, with_contents
from lgpl.errors import UserError
from lgpl.training.optimizers import Schedule

log = logging.getLogger(__name__)


class TrainingModule(Described, pl.LightningModule):
    """A LightningModule whose checkpoints say what they are."""

    kind: str  # `tokenizer` or `generator`
    init_from: str | None = None  # checkpoint whose weights training starts from
    evaluated: str | None = None  # one for the other commands, where the Trainer does not read it
    trust: tuple[str, ...] = ()  # packages whose classes the checkpoints that it reads may name
    checkpoint: Path | None = None  # whose config has built it
    _config: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any] | None:
        """`class_path` and `init_args`: the command line's, or what the constructor was called
        with; None where that cannot be written down."""
        if self._config is None:
            try:
                return with_contents(describe(self))
            except Undescribable as error:
                log.warning("The checkpoint will not say how its module is built: %s.", error)
        return self._config

    @config.setter
    def config(self, config: dict[str, Any] | None) -> None:
        self._config = with_contents(config)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, **options: Any
    ) -> Any:
        """`load_module`, as Lightning names it."""
        from lgpl.training.build import load_module

        module = load_module(checkpoint_path, cls.kind, **options)
        return module if map_location is None else module.to(map_location)

    def guard(self) -> AbstractContextManager[None]:
        """In which what the config left for later is built: all of a checkpoint's is held back."""
        return only_trusted(self.trust) if self.checkpoint is not None else nullcontext()

    def beside_checkpoint(self, path: str) -> str:
        """A path in the config of `checkpoint`, which is relative to where one stood in training:
        from here, or else from a folder above the checkpoint, such as the root of the run."""
        if self.checkpoint is None or hub.is_name(path):
            return path
        parts = Path(path).parts
        # Where both were exported, the run of that name is a folder beside this one.
        run = self.checkpoint.absolute().parent.joinpath(*parts[-3:-2])
        if is_exported(self.checkpoint) and is_exported(run):
            return str(run)
        if Path(path).is_absolute() or Path(path).exists():
            return path
        # Of a run that was moved the first folders are others. Its last three have the name of the
        # part, such as tokenizer/checkpoints/last.ckpt: fewer would be the checkpoint itself.
        ends = [Path(*parts[i:]) for i in range(max(1, len(parts) - 2))]
        above = self.checkpoint.absolute().parents
        found = (folder / end for end in ends for folder in above if (folder / end).exists())
        return str(next(found, path))

    @property
    def accumulated(self) -> int:
        """Training batches of an optimizer step."""
        return self.trainer.accumulate_grad_batches

    def one_step(self, batch: dict[str, Any]) -> None:
        """Forward and backward of a training step at its heaviest, without a Trainer."""
        raise NotImplementedError

    def zeros(self, batch_size: int, size: ImageSize) -> dict[str, Any]:
        """A batch of zeros to plan with, of images of a size."""
        raise NotImplementedError

    def code_layout(self, size: ImageSize) -> CodeLayout:
        """Of the codes of an image of a size."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """Parts that a sharded strategy gathers one by one."""
        return ()

    def drawing_memory(self, images: int, dtype: torch.dtype) -> int:
        """Bytes beside the weights for drawing so many guided images."""
        return 0

    def peak_factor(self, schedule: Schedule) -> float:
        """What the config's peak learning rate is multiplied by for the run's global batch."""
        rule, data = schedule.batch_rule, getattr(self._trainer, "datamodule", None)
        if rule is None or self._trainer is None:  # planned, not trained
            return 1.0
        if not isinstance(data, ShardDataModule):
            needed = "the batch of a ShardDataModule"
            raise UserError(f"schedule.batch_rule: {rule} needs {needed}; set it to null.")
        ranks = self.trainer.world_size
        batch = data.train_batch(ranks, self.accumulated) * ranks * self.accumulated
        ratio = batch / schedule.base_batch
        return ratio if rule == "linear" else math.sqrt(ratio)

    def start_weights(self) -> None:
        """Load the weights that the command begins with, before they are sharded or resumed."""
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        path = self.init_from if fitting else self.evaluated
        if path is not None:
            self.load_weights(read_checkpoint(path, self.kind))

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take the model's weights; raises a UserError where they do not fit."""
        model, weights = getattr(self, MODEL[self.kind]), checkpoint.weights()
        check_weights(model.state_dict(), weights, str(checkpoint.path))
        model.load_state_dict(weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        entry = {"kind": self.kind, "config": self.config, "provenance": self.provenance()}
        checkpoint["lgpl"] = entry

    def provenance(self) -> dict[str, Any]:
        """The data of the training, in plain values: of shards the last two parts of their paths,
        because others may read the checkpoint, and a URL can hold more than an address."""
        data = getattr(self._trainer, "datamodule", None)
        if not isinstance(data, ShardDataModule) or not (train := data.patterns["train"]):
            return {}
        patterns = [train] if isinstance(train, str) else list(train)
        shards = ["/".join(urlsplit(one).path.split("/")[-2:]) for one in patterns]
        return {"shards": shards, "image_size": [*data.image_size]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises a UserError where its kind or its weights are not those of this module."""
        found = checkpoint.get("lgpl", {}).get("kind", "model of another program")
        if found != self.kind:
            raise UserError(f"The checkpoint holds a {found}, but a {self.kind} is wanted.")
        _forget_foreign_paths(checkpoint, self.trainer.ckpt_path if self._trainer else None)
        if "state_dict" in checkpoint:  # a sharded strategy has loaded the weights by itself
            check_weights(self.state_dict(), checkpoint["state_dict"], "The checkpoint")
        if self._trainer is not None and self.trainer.state.fn in ("validate", "test"):
            # So that what is measured is logged at the checkpoint's step, and not at 0.
            with suppress(KeyError, TypeError, AttributeError):  # of a file without a run
                self.trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])


def _forget_foreign_paths(checkpoint: dict[str, Any], resumed: str | Path | None) -> None:
    """Take out of the callbacks' states the paths that do not lie beside the checkpoint itself:
    ModelCheckpoint deletes the best one so far, wherever a file says it is, for a better one."""
    beside = Path(resumed).absolute().parent if resumed else None

    def is_plain(path: object) -> bool:
        return Path(str(path)).absolute().parent == beside

    states = checkpoint.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if not isinstance(state, dict):
            continue
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if name in state and not is_plain(state[name]):
                state[name] = ""
        if isinstance(best := state.get("best_k_models"), dict):
            state["best_k_models"] = {path: v for path, v in best.items() if is_plain(path)}
