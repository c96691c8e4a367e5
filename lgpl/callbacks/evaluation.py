"""Metrics of the tokenizer and the generator in validation and test, by the protocols' names.

They use the moving average where there is one, as validation does. They do not change training:
the random numbers are put back, and the modules' modes are Lightning's to set.
"""

import json
import logging
import zlib
from dataclasses import asdict
from functools import cached_property, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lgpl.codes import ImageSize, to_image_size
from lgpl.data import ShardDataModule
from lgpl.data.transforms import CENTER_CROP
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling
from lgpl.inference import draw_in_turn, requests_for
from lgpl.inference.drawing import NO_IMAGE
from lgpl.metrics import (
    CACHE,
    GFID,
    RFID,
    CLIPScore,
    Extractor,
    FeatureSummary,
    ImageSet,
    load_extractor,
)
from lgpl.metrics.extractors import resize
from lgpl.metrics.protocols import commit, read_prompts, report
from lgpl.metrics.reference import progress, reference
from lgpl.tokenizer import TokenizerModule

KEYS = 2**32  # what a sample's key is hashed to

log = logging.getLogger(__name__)


class Evaluation(Callback):
    """The schedule, the extractor and the log of both evaluations.

    Args:
        extractor: inception, effnet-lite0, or the class path of an nn.Module.
        every: least optimizer steps between two evaluations in training; 0 takes every validation.
        resize: side, or height and width, at which images are compared; 256 of a model for 384.
    """

    def __init__(
        self, extractor: str = "inception", every: int = 0, resize: int | ImageSize | None = None
    ) -> None:
        self.extractor_name, self.every = extractor, every
        self.resize = None if resize is None else to_image_size(resize, "resize")
        self._logged: set[tuple[str, str]] = set()  # stages and metrics that their sets lack
        self._last: int | None = None  # global step of the last evaluation
        commit()

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = state_dict["last"]

    def due(self, trainer: Trainer) -> bool:
        """In every validation and test outside of training, in training every so many steps."""
        waited = self._last is None or trainer.global_step - self._last >= self.every
        return not trainer.sanity_checking and (trainer.state.fn != "fit" or waited)

    @cached_property
    def _extractor(self) -> Extractor:
        return load_extractor(self.extractor_name)

    def log_report(self, trainer: Trainer, module: LightningModule, made: dict[str, Any]) -> None:
        """The metrics to the loggers, the whole report to `metrics.jsonl` beside the logs."""
        self._last = trainer.global_step
        stage = stage_of(trainer)
        module.log_dict({f"{stage}/{name}": value for name, value in made["metrics"].items()})
        for name, why in made.get("left_out", {}).items():
            if trainer.is_global_zero and (stage, name) not in self._logged:
                self._logged.add((stage, name))
                log.warning("No %s/%s: it %s.", stage, name, why)
        log_dir = trainer.log_dir  # all ranks must call this
        if trainer.is_global_zero and trainer.loggers and log_dir is not None:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            with Path(log_dir, "metrics.jsonl").open("a", encoding="utf-8") as file:
                print(json.dumps({"stage": stage, "step": trainer.global_step, **made}), file=file)


def stage_of(trainer: Trainer) -> str:
    return "test" if trainer.testing else "val"


class ReconstructionEvaluation(Evaluation):
    """`rfid` of the validation or test images of all ranks, each image counted once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._real: dict[str, FeatureSummary] = {}  # by stage: the originals are always the same
        self._sets: tuple[ImageSet | None, ImageSet] | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sets = None
        data = getattr(trainer, "datamodule", None)
        if not self.due(trainer) or not isinstance(data, ShardDataModule):
            return
        assert isinstance(pl_module, TokenizerModule)
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        total = int(sum(batches)) * data.eval_batch_size * trainer.world_size  # at the most
        with isolate_rng():
            extractor = self._extractor.to(pl_module.device)
            new = partial(ImageSet, extractor, total, numbers=KEYS, size=self.resize)
            self._sets = (None if stage_of(trainer) in self._real else new()), new()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self._sets is None:
            return
        valid = batch["valid"]
        # The hash does not depend on the rank and the order.
        hashed = torch.tensor([zlib.crc32(key.encode()) for key in batch["key"]], dtype=torch.int64)
        for made, images in zip(self._sets, (batch["image"], outputs), strict=True):
            if made is not None:
                made.update(images[valid], hashed[valid.cpu()])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._sets is None:
            return
        (real, fake), self._sets = self._sets, None
        stage, data = stage_of(trainer), trainer.datamodule  # type: ignore[attr-defined]
        if real is not None:
            self._real[stage] = real.compute()
        summary, size = fake.compute(), data.image_size
        crop = CENTER_CROP if self.resize in (None, size) else f"{CENTER_CROP}; resized as theirs"
        source = {"source": data.patterns[stage], "images": summary.count, "crop": crop}
        made = report(
            RFID, self._extractor.to(pl_module.device), self._real[stage], summary, source,
            image_size=size, resize=self.resize,
        )  # fmt: skip
        self.log_report(trainer, pl_module, made)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_test_epoch_end = on_validation_epoch_end


class GenerationEvaluation(Evaluation):
    """`gfid` of N generated images, the same ones on any number of ranks.

    Image i is drawn from the seed `seed` + i, of the class or the prompt i modulo their number.

    Args:
        reference: npz (ADM's batch, or statistics), folder or shards of real images.
        images: N, over all ranks.
        prompts: text file with one a line, or shards whose captions are taken; the validation
            shards by default. A class-conditional model needs none.
        sampling: how their codes are drawn.
        seed: of the first image.
        batch_size: images drawn together.
        cache: folder of reference statistics.
        clip: a CLIP of transformers, name or folder; adds the CLIP score of images and prompts.
        clip_prefix: what stands before each prompt for it, such as "A photo depicts ".
    """

    def __init__(
        self,
        reference: str,
        images: int = 10_000,
        prompts: str | None = None,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        batch_size: int = 32,
        cache: str = CACHE,
        clip: str | None = None,
        clip_prefix: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.reference, self.images, self.prompts = reference, images, prompts
        self.clip, self.clip_prefix = clip, clip_prefix
        self.sampling, self.seed = sampling, seed
        self.batch_size, self.cache = batch_size, cache
        self._known: tuple[FeatureSummary, dict[str, Any], list[str]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, GeneratorModule)
        pl_module.check_sampling(self.sampling)
        with isolate_rng():
            _ = self._score  # a CLIP that cannot be had ends a run before it begins

    @cached_property
    def _score(self) -> CLIPScore | None:
        return None if self.clip is None else CLIPScore(self.clip, self.clip_prefix)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """After the first batch: at the end the average may have been swapped out again."""
        if indices[0] == 0 and self.due(trainer):
            assert isinstance(pl_module, GeneratorModule)
            with isolate_rng():
                self.log_report(trainer, pl_module, self.evaluate(trainer, pl_module))

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def evaluate(self, trainer: Trainer, module: GeneratorModule) -> dict[str, Any]:
        """The report; all ranks must call this."""
        extractor = self._extractor.to(module.device)
        size = self.resize or module.image_size
        made, score = ImageSet(extractor, self.images), self._score
        if score is not None:
            score.to(module.device).reset()
        if self._known is None:
            known = reference(self.reference, extractor, size, self.cache, self.batch_size)
            self._known = *known, self._read_prompts(trainer, module)
        real, source, prompts = self._known
        requests = requests_for([*islice(cycle(prompts), self.images)], self.sampling, self.seed)
        rank, world = trainer.global_rank, trainer.world_size
        bar = progress("evaluating", self.images, trainer.progress_bar_callback is not None)
        with bar, trainer.precision_plugin.forward_context():
            for numbers, images in draw_in_turn(module, requests, self.batch_size, rank, world):
                if images is not None and numbers[0] != NO_IMAGE:
                    images = resize(images, size)
                    made.update(images, torch.tensor(numbers))
                    if score is not None:
                        score.update(images, [requests[number].prompt for number in numbers])
                bar.update(min(len(numbers) * world, self.images - bar.n))
        clip = {} if score is None else {score.name: score.compute().item()}
        by = {} if score is None else {"clip": score.provenance(self.images)}
        return report(
            GFID, extractor, real, made.compute(), source, clip,
            **asdict(self.sampling), seed=self.seed, resize=self.resize, prompts=self.prompts,
            precision=str(trainer.precision), **by,
        )  # fmt: skip

    def _read_prompts(self, trainer: Trainer, module: GeneratorModule) -> list[str]:
        condition = module.model.condition
        if (every := condition.prompts()) is not None:
            if self.clip is not None:
                classes = "the model is class-conditional"
                raise UserError(f"GenerationEvaluation.clip: needs captions, but {classes}.")
            return every
        data = getattr(trainer, "datamodule", None)
        shards = data.patterns[stage_of(trainer)] if isinstance(data, ShardDataModule) else None
        if self.prompts is None and not isinstance(shards, (str, list)):
            raise UserError("GenerationEvaluation.prompts: give a text file or shards.")
        source: Any = self.prompts or shards
        return read_prompts(source, limits=condition.limits())
