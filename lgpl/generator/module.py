"""GeneratorModule: trains, evaluates and samples from a generator model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from lgpl.checkpoints import Checkpoint, is_exported
from lgpl.codes import CodeLayout, ImageSize
from lgpl.data import ShardDataModule
from lgpl.errors import UserError
from lgpl.generator.conditions import Inputs
from lgpl.generator.decoders import Decoder, Progress, generate
from lgpl.generator.decoders.base import check_decoder, check_sampling
from lgpl.generator.decoders.raster import cache_dtype
from lgpl.generator.model import Model
from lgpl.generator.sampling import Sampling
from lgpl.generator.sharding import shard, whole_weights
from lgpl.tokenizer.module import TokenizerModule
from lgpl.training import ShardedStrategy, TrainingModule, build_described, load_module
from lgpl.training.optimizers import MuonAdamW, Schedule, adamw

# Of the frozen tokenizer's config: its weights are large, and only training needs them.
PERCEPTUAL = "init_args.loss.init_args.perceptual"


class GeneratorModule(TrainingModule):
    """Next-code prediction under a condition (LlamaGen, arXiv 2406.06525, section 2.3).

    A batch brings `codes`, or `image` for the frozen tokenizer; and what the condition reads.

    Args:
        transformer: builds the model when the strategy is ready, a sharded one never as a whole.
        tokenizer: checkpoint of the tokenizer: encodes images, and decodes samples.
        init_from: checkpoint of a generator to start from, such as stage 1; its grid may differ.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon on the hidden matrices; None leaves all to AdamW.
        betas: of AdamW.
        weight_decay: on matrices.
        schedule: of the learning rates, in optimizer steps.
        gradient_clip: largest norm of the gradient; 0 does not clip.
        compile: fuse the operations of each block by torch.compile; sampling stays as it is.
        decoder: draws codes; None is the model's own.
        sampling: how commands and `lgpl.load` draw where nothing else is said.
    """

    kind = "generator"

    def __init__(
        self,
        transformer: Callable[[], Model],
        tokenizer: str | None = None,
        init_from: str | None = None,
        lr: float = 1e-4,
        muon_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        schedule: Schedule = Schedule(),
        gradient_clip: float = 1.0,
        compile: bool = False,
        decoder: Decoder | None = None,
        sampling: Sampling = Sampling(),
    ) -> None:
        super().__init__()
        if isinstance(transformer, nn.Module):
            what = "what builds the model, such as functools.partial(Transformer, ...)"
            raise UserError(f"transformer: give {what}, not a {type(transformer).__name__} itself.")
        self.build = transformer
        self.transformer: Model | None = None
        self.tokenizer_path, self.init_from = tokenizer, init_from
        self.lr, self.muon_lr, self.betas, self.weight_decay = lr, muon_lr, betas, weight_decay
        self.schedule, self.gradient_clip = schedule, gradient_clip
        self.compiled, self.own_decoder, self.sampling = compile, decoder, sampling
        self.val_loss = MeanMetric()
        # Frozen and saved elsewhere, so no submodule: neither in checkpoints nor in DDP's buckets.
        self._tokenizer: list[TokenizerModule] = []

    def configure_model(self) -> None:
        if self.transformer is not None:
            return
        with self.guard():
            self.transformer = self.build()
        self.start_weights()
        if self.compiled:
            for block in self.transformer.blocks() or [self.transformer]:
                block.compile()  # in place, so that checkpoints keep their names
        if self.device_mesh is not None:
            strategy, mixed = self.trainer.strategy, self.trainer.precision == "bf16-mixed"
            how: dict[str, Any] = {"mesh": self.device_mesh["data_parallel"]}
            how = strategy.sharding if isinstance(strategy, ShardedStrategy) else how
            shard(self.transformer, mixed=mixed, **how)

    @property
    def model(self) -> Model:
        self.configure_model()
        assert self.transformer is not None
        return self.transformer

    def load_weights(self, checkpoint: Checkpoint) -> None:
        super().load_weights(checkpoint)
        if checkpoint.config not in (None, self.config):
            theirs = build_described(checkpoint, trust=self.trust)
            assert isinstance(theirs, GeneratorModule)
            self.model.check_start(theirs._outline(), checkpoint.path)

    def setup(self, stage: str) -> None:
        model, data = self._outline(), getattr(self.trainer, "datamodule", None)
        check_decoder(model, self.decoder)
        self.check_sampling(self.sampling)
        if self.tokenizer_path is not None:
            self.check_tokenizer()
        if isinstance(data, ShardDataModule):
            model.condition.check_fields(data.fields)
            fingerprint = self.tokenizer.fingerprint() if self.tokenizer_path else None
            limits = {"codebook_size": model.codebook_size, **model.condition.limits()}
            data.expect(layout=model.layout, tokenizer=fingerprint, **limits)

    def _outline(self) -> Model:
        """The model, or before it is built one on the meta device, to ask for its sizes."""
        if self.transformer is not None:
            return self.transformer
        with self.guard(), torch.device("meta"):
            return self.build()

    @property
    def tokenizer(self) -> TokenizerModule:
        """The frozen tokenizer, on this module's device."""
        if not self._tokenizer:
            path = self.own_tokenizer()
            if path is None:
                raise UserError("model.tokenizer is not set; give the checkpoint of the tokenizer.")
            self._take_tokenizer(path)
        return self._tokenizer[0].to(self.device)

    def own_tokenizer(self) -> str | None:
        """The tokenizer's checkpoint: the one that was published inside the generator's folder, or
        else the one that the config names."""
        inside = self.checkpoint and self.checkpoint / TokenizerModule.kind
        if inside and is_exported(inside):
            return str(inside)
        return self.tokenizer_path and self.beside_checkpoint(self.tokenizer_path)

    def use_tokenizer(self, path: str | None, source: object) -> None:
        """Load this checkpoint as the tokenizer, or with None the generator's own."""
        path = path or self.own_tokenizer()
        if path is None:
            raise UserError(f"{source} names no tokenizer; give its checkpoint with --tokenizer.")
        self.tokenizer_path = path
        self._take_tokenizer(path)

    def _take_tokenizer(self, path: str) -> None:
        module = load_module(path, "tokenizer", (PERCEPTUAL,), self.trust)
        assert isinstance(module, TokenizerModule)
        self._tokenizer[:] = [module]

    def check_tokenizer(self) -> None:
        """Raise a UserError where tokenizer and generator do not belong together."""
        model, tokenizer = self._outline(), self.tokenizer.autoencoder
        ours = f"{model.layout} codes out of {model.codebook_size}"
        apart = f"{self.tokenizer_path} and a generator of {ours} do not belong together"
        try:
            found = tokenizer.layout(*tokenizer.image_size(model.layout))
        except UserError as error:
            raise UserError(f"{apart}: {error}") from error
        theirs = f"{found} codes out of {tokenizer.codebook_size}"
        if theirs != ours:
            raise UserError(f"{apart}: the tokenizer has {theirs}.")

    @property
    def decoder(self) -> Decoder:
        return self.own_decoder or self._outline().decoder()

    def check_sampling(self, sampling: Sampling, left: int | None = None) -> None:
        """Raise a UserError where the decoder cannot draw so; `left` of an image's codes are not
        given, by default all."""
        check_sampling(self._outline(), self.decoder, sampling, left)

    @property
    def image_size(self) -> ImageSize:
        return self.tokenizer.autoencoder.image_size(self.model.layout)

    def configure_optimizers(self) -> Any:
        model, of_adam = self.model, (self.lr, self.betas, self.weight_decay)
        optimizer: torch.optim.Optimizer
        if self.muon_lr is None:
            # A fused one unscales fp16's gradients itself, after they are clipped.
            scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
            optimizer = adamw(model, *of_adam, fused=not scaled)
        elif self.device_mesh is not None:
            lacks = "Muon takes whole matrices, which a sharded model does not have"
            raise UserError(f"model.muon_lr: {lacks}; set it to null.")
        else:
            hidden = model.hidden_matrices()
            known = set(hidden)
            others = [p for p in model.parameters() if p.requires_grad and p not in known]
            optimizer = MuonAdamW(hidden, others, self.muon_lr, *of_adam)
        schedule, peak = self.schedule, self.peak_factor(self.schedule)
        # A function, because of an object LambdaLR would take the checkpoint's attributes.
        scheduler = LambdaLR(optimizer, lambda step: peak * schedule(step))
        steps = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": steps}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        if self.gradient_clip:  # not by the Trainer's flag, which refuses fused optimizers and FSDP
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
            if isinstance(norm, DTensor):
                norm = norm.full_tensor()
            self.log("train/gradient_norm", norm)

    def codes(self, batch: dict[str, Any]) -> Tensor:
        """Codes [B, N] of a batch, flat by the model's layout."""
        layout = self.model.layout
        if "codes" in batch:
            return layout.flatten(batch["codes"])
        if "image" not in batch:
            raise UserError("data.fields lacks codes or image, one of which the generator needs.")
        image, tokenizer = batch["image"], self.tokenizer.autoencoder
        height, width = image.shape[-2:]
        found = tokenizer.layout(height, width)
        if found != layout:
            has = f"images of {width}x{height} pixels have codes of {found}"
            raise UserError(f"data.image_size: {has}, the generator is for {layout}.")
        with torch.no_grad():
            return layout.flatten(tokenizer.encode(image))

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss [B] of each image, in nats a code."""
        inputs = self.model.condition.inputs(batch)
        return self.model.loss(self.codes(batch), inputs, self.global_step)

    def one_step(self, batch: dict[str, Any]) -> None:
        self.model.loss(self.codes(batch), batch["inputs"], 0).mean().backward()

    def zeros(self, batch_size: int, size: ImageSize) -> dict[str, Any]:
        codes = torch.zeros(batch_size, *self.model.layout.shape, dtype=torch.int64)
        return {"codes": codes, "inputs": self.model.condition.zeros(batch_size)}

    def code_layout(self, size: ImageSize) -> CodeLayout:
        return self.model.layout

    def blocks(self) -> Sequence[nn.Module]:
        return self.model.blocks()

    def drawing_memory(self, images: int, dtype: torch.dtype, device: str) -> int:
        return self.decoder.memory(self.model, images, cache_dtype(device, dtype))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch).mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.val_loss.update(self.loss(batch), batch["valid"])
        stage = "test" if self.trainer.testing else "val"
        self.log(f"{stage}/loss", self.val_loss, prog_bar=True)

    test_step = validation_step

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        raise UserError("A generator does not encode: use a tokenizer's config, or `lgpl sample`.")

    def sample(self, inputs: Inputs, sampling: Sampling, seeds: list[int]) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1]; see `generate`. All ranks of a sharded model must call
        this, each for its own images."""
        return self.decode(self.sample_codes(inputs, sampling, seeds))

    @torch.no_grad()
    def sample_codes(
        self,
        inputs: Inputs,
        sampling: Sampling | Sequence[Sampling],
        seeds: list[int],
        progress: Progress | None = None,
        given: Tensor | None = None,
        decoder: Decoder | None = None,
        same: Sequence[int] | None = None,
    ) -> Tensor:
        """Codes [B, *layout.shape] of `sample`."""
        decoder = decoder or self.decoder
        with whole_weights(self.model), torch.compiler.set_stance("force_eager"):
            return generate(self.model, inputs, sampling, seeds, given, progress, decoder, same)

    @torch.no_grad()
    def decode(self, codes: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of codes [B, *layout.shape], of which those at the places
        `drawn` [B, rows, columns] are known, by default all."""
        tokenizer = self.tokenizer.autoencoder
        if drawn is not None:
            images = tokenizer.decode_partial(codes, drawn)
        else:  # convolutions of a CPU may round otherwise in a batch
            height, width = tokenizer.image_size(self.model.layout)
            together = max(1, tokenizer.pixels_at_once // (height * width))
            parts = codes.split(together) if codes.is_cpu else (codes,)
            images = torch.cat([tokenizer.decode(part) for part in parts])
        return images.float().clamp(-1, 1)
