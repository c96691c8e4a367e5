"""ShardDataModule: one Lightning data module for the tokenizer and the generator."""

import functools
import itertools
import logging
from contextlib import closing, suppress
from typing import Any

import lightning.pytorch as pl

from lgpl import cpus
from lgpl.codes import CodeLayout, to_image_size
from lgpl.data.decode import Field, Fit, SampleDecoder
from lgpl.data.filters import Filter
from lgpl.data.index import counted, named, statistics
from lgpl.data.loader import PassLoader, ShardwiseLoader, TrainLoader
from lgpl.data.members import BadSample, check_caption_names
from lgpl.data.order import Mixture, Order, seed_of
from lgpl.data.shards import Shard, shards_with
from lgpl.data.store import Store, is_url
from lgpl.data.streams import Rank, Samples, every_sample_once, shard_by_shard
from lgpl.data.transforms import CENTER_CROP, normalize
from lgpl.data.watch import SECONDS
from lgpl.errors import UserError

log = logging.getLogger(__name__)

CODE_TYPES = ("uint16", "uint32")  # of stored codes, by the size of the codebook


class ShardDataModule(pl.LightningDataModule):
    """Streams shards to the tokenizer and the generator: paths, braces, globs, URLs (http, s3, gs,
    ...) or index files, see `lgpl data index`.

    Args:
        train: training shards; a mapping of patterns to weights mixes data sets, each drawn so
            often, in any unit. None where nothing is trained.
        val: validation shards; every sample counts exactly once.
        test: test shards, read like the validation shards.
        predict: shards to encode.
        fields: what the model reads: image, caption, class, codes, text (features).
        image_size: side of the crop, or its height and width, pixels; multiples of the tokenizer's
            downsampling.
        fit: `crop` scales an image to cover `image_size` and cuts off what is left; `pad` scales it
            to lie inside, on white, and augments by flips alone.
        augment: random crops and flips in training; validation always takes the centre.
        flip: flip half of the augmented images.
        captions: members that hold a caption (`txt`, `short.txt`, `json:KEY`), or a part of one
            (`first-sentence:txt`, `first-line:txt`), each with how often it is taken in training;
            anything else takes the first. Of a list of texts in the JSON, training takes one at
            random.
        filter: which samples are wanted.
        batch_size: samples of a training batch on each rank.
        global_batch: training samples of one optimizer step over all ranks; `batch_size` then holds
            for evaluation alone.
        eval_batch_size: samples of any other batch; `batch_size` by default.
        epoch_samples: training samples of an epoch over all ranks; None is as many as the data
            hold.
        num_workers: processes a rank that read and decode.
        shuffle: samples that are shuffled together, once for each partition; 0 keeps the order.
        seed: of order and augmentation.
        partitions: pieces that an epoch is cut into, a multiple of the number of ranks; by default
            one for each worker of each rank. Runs with the same partitions, seed and samples in all
            ranks' batches together train on the same samples, on any number of ranks.
        sample_seconds: that a sample may take to decode; one that takes longer is skipped, and so
            is one that ends a worker. 0 or None: no bound.
        max_bad: share of bad samples above which training ends.
        ten_crop: `predict` encodes the four corners and the centre of the image, each also
            flipped, scaled to cover each of these times `image_size`; the paper's are 1.1 and
            1.05. Empty encodes the centre alone.
        store: how remote shards are fetched and kept.
    """

    def __init__(
        self,
        train: str | list[str] | dict[str, float] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        fields: tuple[Field, ...] = ("image",),
        image_size: int | tuple[int, int] = 256,
        fit: Fit = "crop",
        augment: bool = True,
        flip: bool = True,
        captions: dict[str, float] | None = None,
        filter: Filter = Filter(),
        batch_size: int = 32,
        global_batch: int | None = None,
        eval_batch_size: int | None = None,
        epoch_samples: int | None = None,
        num_workers: int = 0,
        shuffle: int = 1000,
        seed: int = 0,
        partitions: int | None = None,
        max_bad: float = 0.1,
        sample_seconds: float | None = SECONDS,
        ten_crop: tuple[float, ...] = (),
        store: Store = Store(),
    ) -> None:
        super().__init__()
        self.patterns: dict[str, str | list[str] | dict[str, float] | None]
        self.patterns = {"train": train, "val": val, "test": test, "predict": predict}
        self.fields, self.ten_crop = list(fields), list(ten_crop)
        self.image_size = to_image_size(image_size, "data.image_size")
        self.fit, self.augment, self.flip, self.filter = fit, augment, flip, filter
        self.captions = captions or {"txt": 1.0}
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.global_batch, self.epoch_samples = global_batch, epoch_samples
        self.num_workers, self.max_bad, self.store = num_workers, max_bad, store
        self.shuffle, self.seed, self.partitions = shuffle, seed, partitions
        self.sample_seconds = sample_seconds
        self.crop = CENTER_CROP  # outside of training; some metrics take another
        for name, least in (("batch_size", 1), ("num_workers", 0), ("shuffle", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name}: {getattr(self, name)} is below {least}.")
        if sample_seconds is not None and not sample_seconds >= 0:
            raise UserError(f"data.sample_seconds: {sample_seconds} is below 0.")
        if min(self.captions.values()) < 0 or not sum(self.captions.values()):
            raise UserError("data.captions: weights are at least 0, and one is more.")
        check_caption_names(list(self.captions))
        if fit == "pad" and ten_crop:
            raise UserError("data.ten_crop: its views are crops; data.fit must be crop, got pad.")
        if isinstance(train, dict) and (not train or min(train.values()) <= 0):
            raise UserError("data.train: weights of data sets are above 0.")
        self.shards: dict[str, list[str]] = {}
        self._named: dict[str, list[dict[str, int | None]]] = {}
        self.expect()

    def expect(
        self,
        *,
        text_length: int | None = None,  # positions of the text features in a batch
        tokenizer: str | None = None,  # fingerprint of the codes' one; another's are refused
        layout: CodeLayout | None = None,  # of an image's codes; shards of another are refused
        **limits: Any,  # others of `SampleDecoder`
    ) -> None:
        """What the model can take; a sample outside is skipped and counted."""
        self._text_length, self._tokenizer, self._layout = text_length, tokenizer, layout
        self._expected = {"layout": layout, **limits}

    def setup(self, stage: str) -> None:
        """Expand the patterns: a mistake in them ends the run before anything else is done."""
        if self.num_workers > (most := cpus.available()):
            many = f"data.num_workers: {self.num_workers} processes share {most} CPUs"
            self._say(f"{many}; {most} would read as fast and take less memory.")
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (stage,)):
            split = getattr(split, "value", split)  # of Lightning's enumeration
            patterns = self.patterns[split]
            if patterns is None:
                if split == "val" and stage == "fit":
                    self._say("data.val is not set: nothing is validated.")
                    continue
                raise UserError(f"data.{split} is not set; name the shards, as path or pattern.")
            parts = list(patterns) if isinstance(patterns, dict) else [patterns]
            with shards_with(self.fields):
                self._named[split] = [named(part, f"data.{split}", self.store) for part in parts]
            self.shards[split] = list(itertools.chain(*self._named[split]))

    def train_batch(self, ranks: int, accumulate: int) -> int:
        """Samples of a training batch on each rank, `accumulate` of which make a step."""
        if self.global_batch is None:
            return self.batch_size
        batch, rest = divmod(self.global_batch, ranks * accumulate)
        if rest or not batch:
            by = f"{ranks} ranks x {accumulate} accumulated batches"
            raise UserError(f"data.global_batch: {self.global_batch} does not divide by {by}.")
        return batch

    def train_dataloader(self) -> TrainLoader:
        rank, train = self._rank(), self.patterns["train"]
        module = self.trainer.lightning_module if self.trainer else None
        batch_size = self.train_batch(rank.count, getattr(module, "accumulated", 1))
        partitions = self.partitions or rank.count * max(1, self.num_workers)
        if partitions % rank.count:
            raise UserError(f"data.partitions: {partitions} is no multiple of {rank.count} ranks.")
        counts, faults = self._counted("train")
        for count in counts:
            if (own := sum(count.values())) < partitions:
                held = f"{len(count)} training shards with {own} samples"
                few = f"too few samples for {partitions} readers (ranks x workers)"
                cure = "; ".join(["lower num_workers or add samples", *faults])
                raise UserError(f"{held} hold {few}: {cure}.")
        if (total := sum(sum(count.values()) for count in counts)) < batch_size * rank.count:
            held = f"a batch of {batch_size} on each of {rank.count} ranks"
            self._say(f"data.batch_size: {held} is larger than the data, {total} samples.")
        # Samples of a partition's turn: with one partition for each worker a turn is a batch.
        turn = max(1, batch_size * rank.count * max(1, self.num_workers) // partitions)
        settings = partitions, self.shuffle, self.seed, turn
        orders = [Order([*count.values()], *settings) for count in counts]
        weights = [*train.values()] if isinstance(train, dict) else [1.0]
        total = sum(sum(count.values()) for count in counts)
        samples_of_epoch = total if self.epoch_samples is None else self.epoch_samples
        batches = samples_of_epoch // (batch_size * rank.count)
        if batches == 0 and self.epoch_samples is not None:
            least = f"one batch of {batch_size} on each of {rank.count} ranks"
            raise UserError(f"data.epoch_samples: {self.epoch_samples} is less than {least}.")
        listing = [[(path.rpartition("/")[2], n) for path, n in count.items()] for count in counts]
        fingerprint = hex(seed_of(listing, weights, self.shuffle, self.seed))
        samples = self._samples("train", [path for count in counts for path in count])
        self._check_labels(samples)
        mixture = Mixture(orders, weights, self.seed)
        loader = TrainLoader(
            samples,
            mixture,
            rank,
            self.num_workers,
            batch_size,
            max(1, batches),
            fingerprint,
            self.max_bad,
        )
        loop: Any = self.trainer and self.trainer.fit_loop
        if loop and not loop.restarting:
            # Lightning itself hands a checkpoint's state on only within an epoch, not at its end.
            for state in loop._combined_loader_states_to_load:
                loader.load_state_dict(state)
        return loader

    def val_dataloader(self) -> PassLoader | list[Any]:
        return self._exactly_once("val") if "val" in self.shards else []

    def test_dataloader(self) -> PassLoader:
        return self._exactly_once("test")

    def predict_dataloader(self) -> PassLoader:
        rank = self._rank()
        samples = self._samples("predict", self.shards["predict"][rank.index :: rank.count])
        requests = functools.partial(shard_by_shard, samples, self.eval_batch_size)
        return ShardwiseLoader(samples, requests, self.num_workers, None, "predict")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images to float32 in [-1, 1], on the device: as bytes they travel four times faster."""
        if "image" in batch:
            batch["image"] = normalize(batch["image"])
        return batch

    def _exactly_once(self, split: str) -> PassLoader:
        rank, size = self._rank(), self.eval_batch_size
        (counts,), _ = self._counted(split)
        if not sum(counts.values()):
            raise UserError(f"data.{split}: {', '.join(counts)}: no samples at all.")
        requests = every_sample_once([*counts.values()], rank, size)
        samples = self._samples(split, list(counts))
        workers = min(self.num_workers, len(requests))
        return PassLoader(samples, lambda: requests, workers, len(requests), split)

    def _counted(self, split: str) -> tuple[list[dict[str, int]], list[str]]:
        """Samples of the shards of each data set, and what is wrong; one rank counts for all."""
        found: list[tuple[dict[str, int], list[str]]] = []
        if self._is_first:
            found = [counted(part, f"data.{split}", self.store) for part in self._named[split]]
        if self.trainer is not None:
            found = self.trainer.strategy.broadcast(found)
        return [counts for counts, _ in found], [fault for _, faults in found for fault in faults]

    def _check_labels(self, samples: Samples) -> None:
        """Say where the first shard has classes that the model lacks: their samples are skipped."""
        classes = self._expected.get("num_classes")
        if classes is None or "class" not in self.fields or not self._is_first:
            return
        labels = list[int]()
        with closing(Shard(samples.shards[0], self.store)) as shard:
            for place in range(len(shard)):
                with suppress(BadSample, ValueError):
                    labels.append(int(shard.read(place, ("cls",)).get("cls", b"")))
        if labels and (largest := max(labels)) >= classes:
            outside = sum(label >= classes for label in labels)
            held = f"{outside} of the {len(labels)} samples of {samples.shards[0]}"
            said = f"num_classes is {classes}, but {held} have classes up to {largest}"
            self._say(f"{said}: samples outside 0 to {classes - 1} are skipped.")

    @property
    def _is_first(self) -> bool:
        return self.trainer is None or self.trainer.is_global_zero

    def _say(self, warning: str) -> None:
        if self._is_first:
            log.warning(warning)

    def _check_codes(self, split: str, shards: list[str]) -> None:
        """Refuse codes of another tokenizer, layout or type than the model's, as far as the shards'
        statistics say it. Of remote shards the first speaks for all."""
        layout = self._layout and [self._layout.rows, self._layout.columns, self._layout.depth]
        remote = [path for path in shards if is_url(path)][:1]
        for path in [path for path in shards if not is_url(path)] + remote:
            made_by = statistics(path, self.store).get("made_by", {})
            for name, whose, accepted in (
                ("tokenizer", "model.tokenizer", [self._tokenizer]),
                ("layout", "the model's [rows, columns, depth]", [layout]),
                ("dtype", "what lgpl reads", CODE_TYPES),
            ):
                found = made_by.get(name)
                if found and any(accepted) and found not in accepted:
                    known = " or ".join(map(str, accepted))
                    fault = f"{path} holds codes of the {name} {found}, but {whose} is {known}"
                    raise UserError(f"data.{split}: {fault}: give that one, or encode again.")

    def _samples(self, split: str, shards: list[str]) -> Samples:
        training = split == "train"
        if "codes" in self.fields:
            self._check_codes(split, shards)
        decoder = SampleDecoder(
            self.fields,
            self.image_size,
            augment=self.augment and training,
            flip=self.flip,
            fit=self.fit,
            crop=self.crop,
            captions=self.captions,
            ten_crop=self.ten_crop if split == "predict" else (),
            filter=self.filter,
            **self._expected,
        )
        kept, copies = self.shuffle if training else 0, split == "predict"
        text = self._text_length
        bound = self.sample_seconds
        return Samples(shards, decoder, self.store, self.seed, text, kept, copies, bound)

    def _rank(self) -> Rank:
        trainer = self.trainer
        return Rank(trainer.global_rank, trainer.world_size) if trainer else Rank()
