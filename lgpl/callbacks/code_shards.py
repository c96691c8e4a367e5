"""Images -> code shards: the callback of `lgpl predict` that writes them."""

import itertools
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lgpl.atomic import write_text
from lgpl.callbacks.monitoring import skipped_of_all_ranks
from lgpl.data.classes import CLASSES, names_beside, shards_and_indexes
from lgpl.data.datamodule import ShardDataModule
from lgpl.data.index import count_samples, statistics, statistics_name, write_index
from lgpl.data.transfer import HTTP, scheme
from lgpl.data.writer import ShardWriter, remove_left
from lgpl.errors import UserError
from lgpl.progress import Bar
from lgpl.text import TextEncoder
from lgpl.training.encoding import UNNAMED, add_features, code_members, made_by

log = logging.getLogger(__name__)


def code_shard_name(shard: str) -> str:
    """`train-0000.tar` for `…/train-0000.tar.gz`."""
    place = shard.partition("?")[0] if scheme(shard) in HTTP else shard
    return place.rstrip("/").rsplit("/", 1)[-1].split(".")[0] + ".tar"


class CodeShardWriter(Callback):
    """Writes the codes of each predicted shard, with text features and the samples' own texts.

    `KEY.codes.npy` is [views, depth, rows, columns], uint16 where the codebook allows, else uint32.
    A shard whose code shard stands is skipped; one that was not finished is written anew. Beside
    each stands `NAME_stats.json` with its samples and what made it, and at the end `index.json`
    with those of all, and the `classes.txt` that stands beside the images.

    Args:
        out: folder of the code shards, each named like its source.
        text_encoder: also write the features of each caption in `data.captions`; None leaves them
            out.
    """

    def __init__(self, out: str, text_encoder: TextEncoder | None = None) -> None:
        self.out = Path(out)
        self.text_encoder = text_encoder
        self._writer: ShardWriter | None = None
        self._made_by: dict[str, Any] = {}
        self._bar: Bar | None = None
        self._images = 0  # that this rank has encoded
        self._cut = self._captions = 0  # captions of this rank: cut by the text encoder, all

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage != "predict":
            return
        if not isinstance(data, ShardDataModule):
            raise UserError("CodeShardWriter encodes shards and needs the ShardDataModule.")
        if self.text_encoder is not None:
            data.expect(caption_style=self.text_encoder.captions)
            if "caption" not in data.fields:  # a sample without one is skipped and counted
                data.fields.append("caption")
        shards = data.shards["predict"]
        if twice := [name for name, n in Counter(map(code_shard_name, shards)).items() if n > 1]:
            said = f"data.predict: several shards would be written as {self.out / twice[0]}"
            raise UserError(f"{said}; encode them into different folders.")
        left = [s for s in shards if not (self.out / code_shard_name(s)).exists()]
        data.shards["predict"] = left
        if trainer.is_global_zero:  # the other ranks have not begun yet
            paths = [self.out / code_shard_name(shard) for shard in left]
            remove_left([*paths, *(Path(statistics_name(str(path))) for path in paths)])
            if len(left) < len(shards):
                done = f"{len(shards) - len(left)} of {len(shards)}"
                print(f"{self.out}: {done} code shards are there, {len(left)} to write.")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Now that the weights are loaded: the shards that stand must come from the same."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(pl_module, "fingerprint"):
            raise UserError("Only a tokenizer encodes: give a tokenizer's config and checkpoint.")
        self._made_by = made_by(pl_module, data, self.text_encoder)
        for path in sorted(self.out.glob("*.tar")):
            found = statistics(str(path), data.store).get("made_by", {})
            for name, value in {**UNNAMED, **found}.items() if found else ():
                if value != (own := self._made_by.get(name, UNNAMED.get(name))):
                    said = f"{path} was made with {name} {value}, not {own}: give another folder"
                    raise UserError(f"{said} as out, or delete the code shards in it.")
        if bar := trainer.progress_bar_callback:
            bar.disable()  # it counts batches, whose number nobody knows beforehand
            total = len(data.shards["predict"][trainer.global_rank :: trainer.world_size])
            hidden = not trainer.is_global_zero
            self._bar = Bar(total=total, desc="encoding", unit="shard", disable=hidden)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Any, *_: Any
    ) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self.out / code_shard_name(batch["shard"]))
        members = code_members(outputs, batch["members"], self._made_by)
        if self.text_encoder is not None:
            captions = list(trainer.datamodule.captions)  # type: ignore[attr-defined]
            cut, total = add_features(members, captions, self.text_encoder, pl_module.device)
            self._cut, self._captions = self._cut + cut, self._captions + total
        for key, member in zip(batch["key"], members, strict=True):
            self._writer.write(key, member)
        self._images += len(members)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._images} images", refresh=False)
            self._bar.update(int(batch["end_of_shard"]))
            self._bar.refresh()
        if batch["end_of_shard"]:
            found = {"successes": self._writer.samples, "made_by": self._made_by}
            write_text(statistics_name(str(self._writer.path)), json.dumps(found) + "\n")
            self._writer.close()
            self._writer = None

    def on_exception(self, *_: Any) -> None:
        """Leave nothing of the shard that was being written."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.discard()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._cut and self.text_encoder is not None:
            said = (
                "%d of %d captions have more tokens than the text encoder reads, %d, and are cut."
            )
            log.warning(said, self._cut, self._captions, self.text_encoder.max_length)
        if self._bar is not None:
            self._bar.close()
        skipped = skipped_of_all_ranks(trainer, trainer.predict_dataloaders)
        trainer.strategy.barrier()
        paths = [str(path) for path in sorted(self.out.glob("*.tar"))]
        if trainer.is_global_zero and paths:
            data = trainer.datamodule  # type: ignore[attr-defined]
            store = data.store
            if classes := names_beside(
                [
                    *itertools.chain(
                        *shards_and_indexes(data.patterns["predict"], "data.predict", store)
                    )
                ],
                store,
            ):
                write_text(self.out / CLASSES, "".join(f"{name}\n" for name in classes[1]))
            counts = {path: count_samples(path, store)[0] for path in paths}
            write_index(self.out / "index.json", counts, made_by=self._made_by)
            plural = "" if len(paths) == 1 else "s"
            wrote = f"{len(paths)} code shard{plural}, {sum(counts.values())} samples"
            why = ", ".join(f"{cause}: {count}" for cause, count in skipped.items())
            left_out = f", {skipped.total()} skipped ({why})" if skipped else ""
            print(f"{self.out}: {wrote}{left_out}")
