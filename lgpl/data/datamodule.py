"""ShardDataModule: one Lightning data module for the tokenizer and the generator."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lgpl.data.decode import Decoder, Field
from lgpl.data.shards import Cursor, Place, count_samples, expand
from lgpl.data.streams import Batch, PredictStream, Stream, TrainStream, ValidationStream
from lgpl.errors import UserError

log = logging.getLogger(__name__)


class ShardLoader:
    """Batches of a stream, a stated number a pass or without end; remembers the readers' cursors.

    Args:
        stream: what gives the batches.
        workers: processes that read and decode; 0 reads in this one.
        batches: batches of one pass; None goes on without end. A training stream continues in the
            next pass where it stood.
        endless: whether the stream never ends by itself.
    """

    def __init__(self, stream: Stream, workers: int, batches: int | None, endless: bool) -> None:
        self.stream, self.batches, self.endless = stream, batches, endless
        self.loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            persistent_workers=endless and workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        self.workers = workers
        self.skipped: Counter[str] = Counter()
        self._running: Iterator[Batch] | None = None
        self._cursors: dict[int, dict[str, int]] = {}
        self._last = -1  # the reader of the last batch

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("an endless stream has no length")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        if self._running is None or not self.endless:
            self._running = iter(self.loader)
        for batch in itertools.islice(self._running, self.batches):
            reader, cursor = batch.pop("reader", None), batch.pop("cursor", None)
            self._count(batch.pop("skipped"))
            # A loader of known length is asked for a batch when the last one was trained on; an
            # endless one is asked for one batch ahead.
            if self.batches is not None:
                self._remember(reader, cursor)
            yield batch
            if self.batches is None:
                self._remember(reader, cursor)

    def _remember(self, reader: int | None, cursor: dict[str, int]) -> None:
        if reader is not None:
            self._cursors[reader], self._last = cursor, reader

    def _count(self, skipped: dict[str, int]) -> None:
        for cause, count in skipped.items():
            before = self.skipped[cause]
            self.skipped[cause] += count
            # 1, 2, 4, 8, ...: told at once, but never the same thing on every step
            if before.bit_length() != self.skipped[cause].bit_length():
                log.warning("skipped %d so far: %s", self.skipped[cause], cause)

    def state_dict(self) -> dict[str, Any]:
        """The cursors of this rank's readers, for the checkpoint."""
        return {
            "workers": self.workers,
            "ranks": self.stream.rank.count,
            "last": self._last,
            "cursors": {str(reader): cursor for reader, cursor in self._cursors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint's readers stood; other numbers of readers begin anew."""
        if not isinstance(self.stream, TrainStream) or not state:
            return
        if (state["workers"], state["ranks"]) != (self.workers, self.stream.rank.count):
            log.warning(
                "The data starts at the beginning: the checkpoint was made with %d workers on each "
                "of %d ranks, this run has %d on each of %d.",
                *(state["workers"], state["ranks"], self.workers, self.stream.rank.count),
            )
            return
        self._cursors = {int(reader): cursor for reader, cursor in state["cursors"].items()}
        self._last = state["last"]
        self.stream.first = (self._last + 1) % max(1, self.workers)
        self.stream.cursors = {r: Cursor(**cursor) for r, cursor in self._cursors.items()}
        self._running = None


class ShardDataModule(pl.LightningDataModule):
    """Streams shards to the tokenizer and the generator.

    Args:
        train: training shards: paths, braces, globs or http(s) URLs. None where nothing is trained.
        val: validation shards; every sample counts exactly once.
        test: test shards, read like the validation shards.
        predict: shards to encode.
        fields: what the model reads: image, caption, class, codes, text (features).
        image_size: side of the square crop, pixels; a multiple of the tokenizer's downsampling.
        augment: random crops and flips in training; validation always takes the centre.
        flip: flip half of the augmented pictures.
        batch_size: samples of a training batch on each rank.
        eval_batch_size: samples of any other batch; `batch_size` by default.
        epoch_samples: training samples of an epoch over all ranks; None is one epoch without end.
        num_workers: processes a rank that read and decode.
        shuffle: samples of the shuffle buffer in each process; 0 keeps the order.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        fields: tuple[Field, ...] = ("image",),
        image_size: int = 256,
        augment: bool = True,
        flip: bool = True,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        epoch_samples: int | None = None,
        num_workers: int = 0,
        shuffle: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("image_size", image_size, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("shuffle", shuffle, 0),
        ):
            if value < least:
                raise UserError(f"data.{name}: {value} is below {least}.")
        self.patterns = {"train": train, "val": val, "test": test, "predict": predict}
        self.fields = list(fields)
        self.image_size, self.augment, self.flip = image_size, augment, flip
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.epoch_samples, self.num_workers = epoch_samples, num_workers
        self.shuffle, self.seed = shuffle, seed
        self.shards: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._expected: dict[str, Any] = {}
        self._text_length: int | None = None

    def expect(self, *, text_length: int | None = None, **limits: Any) -> None:
        """What the model can take; a sample outside is skipped and counted.

        Args:
            text_length: positions of the text features in a batch.
            limits: `grid`, `codebook_size`, `num_classes`, `text_features` of `Decoder`.
        """
        self._text_length = text_length
        self._expected = limits

    def setup(self, stage: str) -> None:
        """Expand the patterns, so that a mistake in them is told before anything else is done."""
        wanted = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (stage,))
        for split in wanted:
            patterns = self.patterns[split]
            if patterns is None and split == "val" and stage == "fit":
                continue
            if patterns is None:
                raise UserError(
                    f"data.{split} is not set; name the shards, as a path or a pattern."
                )
            self.shards[split] = expand(patterns, f"data.{split}")

    def train_dataloader(self) -> ShardLoader:
        rank = self._rank()
        stream = TrainStream(
            **self._common("train", self.batch_size), shuffle=self.shuffle, seed=self.seed
        )
        batches = None
        if self.epoch_samples is not None:
            batches = self.epoch_samples // (self.batch_size * rank.count)
            if batches == 0:
                raise UserError(
                    f"data.epoch_samples: {self.epoch_samples} is less than one batch of "
                    f"{self.batch_size} on each of {rank.count} ranks."
                )
        return ShardLoader(stream, self.num_workers, batches, endless=True)

    def val_dataloader(self) -> ShardLoader | list[Any]:
        return self._exactly_once("val") if "val" in self.shards else []

    def test_dataloader(self) -> ShardLoader:
        return self._exactly_once("test")

    def predict_dataloader(self) -> ShardLoader:
        stream = PredictStream(**self._common("predict", self.eval_batch_size))
        return ShardLoader(stream, self.num_workers, None, endless=False)

    def _exactly_once(self, split: str) -> ShardLoader:
        shards = self.shards[split]
        for shard in shards:
            if shard not in self._counts:
                faults: Counter[str] = Counter()
                self._counts[shard] = count_samples(shard, faults)
                for fault in faults:
                    log.warning("data.%s: %s", split, fault)
        counts = [self._counts[shard] for shard in shards]
        if self.trainer is not None:  # a remote shard may have failed on one rank alone
            counts = self.trainer.strategy.broadcast(counts)
        if not sum(counts):
            raise UserError(f"data.{split}: {', '.join(shards)}: no samples at all.")
        stream = ValidationStream(**self._common(split, self.eval_batch_size), counts=counts)
        workers = min(self.num_workers, stream.batches)
        return ShardLoader(stream, workers, stream.batches, endless=False)

    def _common(self, split: str, batch_size: int) -> dict[str, Any]:
        decoder = Decoder(
            self.fields,
            self.image_size,
            augment=self.augment and split == "train",
            flip=self.flip,
            **self._expected,
        )
        return {
            "shards": self.shards[split],
            "decoder": decoder,
            "batch_size": batch_size,
            "rank": self._rank(),
            "text_length": self._text_length,
        }

    def _rank(self) -> Place:
        if self.trainer is None:
            return Place()
        return Place(self.trainer.global_rank, self.trainer.world_size)
