"""GeneratorModule: trains and evaluates a Transformer on codes or on images, and samples from
it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric

from lgpl.checkpoints import Checkpoint, SelfDescribing, build_described, load_module
from lgpl.codes import CodeLayout
from lgpl.data import ShardDataModule
from lgpl.errors import UserError
from lgpl.generator.conditions import Inputs
from lgpl.generator.decoding import CompiledDecoder, generate
from lgpl.generator.loss import cross_entropy
from lgpl.generator.order import RandomOrder
from lgpl.generator.sampling import Sampling
from lgpl.generator.sharding import gathered, shard
from lgpl.generator.transformer import Transformer
from lgpl.optimizers import MuonAdamW, Schedule, adamw
from lgpl.tokenizer.module import TokenizerModule

# Of the frozen tokenizer's config: its weights are large, and only training needs them.
PERCEPTUAL = "init_args.loss.init_args.perceptual"


class GeneratorModule(SelfDescribing):
    """Next-code prediction with a class or text condition (LlamaGen, arXiv 2406.06525, section
    2.3).

    A batch brings `codes`, or `image` for the frozen tokenizer; and what the condition reads.

    Args:
        transformer: builds the model; called when the strategy is ready, so that a sharded one
            never holds the whole on one device.
        tokenizer: checkpoint of the tokenizer: encodes images, and decodes samples.
        init_from: checkpoint of a generator whose weights training starts from, such as stage 1;
            its grid may be another.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon on the hidden matrices; None leaves all to AdamW.
        betas: of AdamW.
        weight_decay: on matrices.
        schedule: of the learning rates, in optimizer steps.
        gradient_clip: largest norm of the gradient; 0 does not clip.
        compile: fuse the operations of each block by torch.compile; sampling stays as it is.
        order: of the codes in training; None is raster order. Evaluation and sampling are always in
            raster order.
    """

    kind = "generator"

    def __init__(
        self,
        transformer: Callable[[], Transformer],
        tokenizer: str | None = None,
        init_from: str | None = None,
        lr: float = 1e-4,
        muon_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        schedule: Schedule = Schedule(),
        gradient_clip: float = 1.0,
        compile: bool = False,
        order: RandomOrder | None = None,
    ) -> None:
        super().__init__()
        self.build = transformer
        self.transformer: Transformer | None = None
        self.tokenizer_path = tokenizer
        self.init_from = init_from
        self.lr, self.muon_lr, self.betas, self.weight_decay = lr, muon_lr, betas, weight_decay
        self.schedule, self.gradient_clip = schedule, gradient_clip
        self.compiled, self.order = compile, order
        self.val_loss = MeanMetric()
        # Frozen and saved elsewhere, so not a submodule: neither in checkpoints nor in DDP's
        # buckets.
        self._tokenizer: list[TokenizerModule] = []

    def configure_model(self) -> None:
        if self.transformer is not None:
            return
        with self.guard():
            self.transformer = self.build()
        self.start_weights()
        if self.compiled:
            for layer in self.transformer.layers:
                layer.compile()  # in place, so that checkpoints keep their names
        if self.device_mesh is not None:
            mixed = self.trainer.precision == "bf16-mixed"
            shard(self.transformer, self.device_mesh["data_parallel"], mixed)

    @property
    def model(self) -> Transformer:
        if self.transformer is None:
            self.configure_model()
        assert self.transformer is not None
        return self.transformer

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Rotary tables are computed, so the checkpoint's grid may be another.

        Raises:
            UserError: the weights do not fit, or were trained with another attention.
        """
        super().load_weights(checkpoint)
        if checkpoint.config in (None, self.config):
            return
        theirs = build_described(checkpoint, trust=self.trust)
        assert isinstance(theirs, GeneratorModule)
        ours, outline = self.model, theirs._outline()
        for name in ("heads", "prefix_rope"):  # what shapes do not show
            found, wanted = getattr(outline, name), getattr(ours, name)
            if found != wanted:
                raise UserError(
                    f"{checkpoint.path} was trained with {name} {found}, but the config's "
                    f"transformer has {wanted}; give it {found}."
                )
        if any(mine < their for mine, their in zip(ours.grid, outline.grid, strict=True)):
            raise UserError(
                f"{checkpoint.path} was trained on a grid of {outline.grid[0]}x{outline.grid[1]}, "
                f"the config's is smaller, {ours.grid[0]}x{ours.grid[1]}; it can only grow."
            )

    def setup(self, stage: str) -> None:
        if self.order is not None and self._outline().target is None:
            raise UserError(
                "model.order: orders other than raster need the transformer's target_positions; "
                "set it to true."
            )
        if self.tokenizer_path is not None:
            self.check_tokenizer()
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ShardDataModule):
            model = self._outline()
            data.expect(
                layout=CodeLayout(*model.grid),
                codebook_size=model.codebook_size,
                **model.condition.limits(),
                tokenizer=self.tokenizer.fingerprint() if self.tokenizer_path else None,
            )

    def _outline(self) -> Transformer:
        """The model, or before it is built one without memory, to ask for its sizes."""
        if self.transformer is not None:
            return self.transformer
        with self.guard(), torch.device("meta"):
            return self.build()

    @property
    def tokenizer(self) -> TokenizerModule:
        """The frozen tokenizer, on this module's device."""
        if not self._tokenizer:
            if self.tokenizer_path is None:
                raise UserError("model.tokenizer is not set; give the checkpoint of the tokenizer.")
            module = load_module(self.tokenizer_path, "tokenizer", (PERCEPTUAL,), self.trust)
            assert isinstance(module, TokenizerModule)
            self._tokenizer.append(module)
        return self._tokenizer[0].to(self.device)

    def use_tokenizer(self, path: str | None, source: object) -> None:
        """Take this checkpoint for the tokenizer, or with None the one that the config names.

        Args:
            path: see `read_checkpoint`.
            source: where the config is from, for the message.

        Raises:
            UserError: neither names one.
        """
        if path is not None:
            self.tokenizer_path = path
            self._tokenizer.clear()
        elif self.tokenizer_path is None:
            raise UserError(f"{source} names no tokenizer; give its checkpoint with --tokenizer.")

    def check_tokenizer(self) -> None:
        """Raise a UserError where tokenizer and generator do not belong together."""
        model = self._outline()
        size = self.tokenizer.autoencoder.quantizer.codebook_size
        if size != model.codebook_size:
            raise UserError(
                f"{self.tokenizer_path} has {size} codes, the generator {model.codebook_size}: "
                "they do not belong together."
            )

    def configure_optimizers(self) -> Any:
        model = self.model
        optimizer: torch.optim.Optimizer
        if self.muon_lr is None:
            optimizer = adamw(model, self.lr, self.betas, self.weight_decay)
        elif self.device_mesh is not None:
            raise UserError(
                "model.muon_lr: Muon takes whole matrices, which a sharded model does not have; "
                "set it to null."
            )
        else:
            hidden, others = model.hidden_matrices()
            optimizer = MuonAdamW(
                hidden, others, self.muon_lr, self.lr, self.betas, self.weight_decay
            )
        scheduler = self.schedule.scheduler(optimizer, self.peak_factor(self.schedule))
        steps = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": steps}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any
    ) -> None:
        """Clip here: the Trainer's flag refuses fused optimizers and FSDP."""
        if self.gradient_clip:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
            if isinstance(norm, DTensor):
                norm = norm.full_tensor()
            self.log("train/gradient_norm", norm)

    def codes(self, batch: dict[str, Any]) -> Tensor:
        """Codes [B, N] of a batch in raster order."""
        if "codes" in batch:
            return batch["codes"].flatten(1)
        if "image" not in batch:
            raise UserError(
                "data.fields names neither codes nor image; the generator needs one of them."
            )
        with torch.no_grad():
            codes = self.tokenizer.autoencoder.encode(batch["image"])
        if codes.shape[1:] != self.model.grid:
            raise UserError(
                f"data.image_size gives {codes.shape[1]}x{codes.shape[2]} codes, the model's grid "
                f"is {self.model.grid[0]}x{self.model.grid[1]}."
            )
        return codes.flatten(1)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy [B] per image, the mean over its codes, in nats."""
        return self.code_loss(self.codes(batch), self.model.condition.inputs(batch))

    def code_loss(self, codes: Tensor, inputs: Inputs) -> Tensor:
        """`loss` of codes [B, N] and the inputs of the condition."""
        order = None
        if self.training and self.order is not None:
            order = self.order.draw(len(codes), codes.shape[1], self.global_step, codes.device)
            codes = codes.gather(1, order)
        logits = self.model(codes, inputs, order)
        return cross_entropy(logits.flatten(0, 1), codes.flatten()).view(codes.shape).mean(1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch).mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        self.val_loss.update(self.loss(batch), batch["valid"])
        self.log(f"{stage}/loss", self.val_loss, prog_bar=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        raise UserError(
            "A generator does not encode; use the tokenizer's config, or `lgpl sample`."
        )

    def sample(
        self,
        inputs: Inputs,
        sampling: Sampling,
        seeds: list[int],
        progress: Callable[[int, Tensor], None] | None = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1]; see `generate` for the arguments.

        Of a sharded model all ranks must ask together, each for its own images.
        """
        codes = self.sample_codes(inputs, sampling, seeds, progress, prompt)
        return self.decode(codes)

    @torch.no_grad()
    def sample_codes(
        self,
        inputs: Inputs,
        sampling: Sampling | Sequence[Sampling],
        seeds: list[int],
        progress: Callable[[int, Tensor], None] | None = None,
        prompt: Tensor | None = None,
        decoder: CompiledDecoder | None = None,
    ) -> Tensor:
        """Codes [B, rows, columns] of `sample`."""
        with gathered(self.model), torch.compiler.set_stance("force_eager"):
            return generate(self.model, inputs, sampling, seeds, prompt, progress, decoder)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of codes [B, rows, columns].

        On a CPU one by one, which takes no longer: its convolutions round otherwise in a batch.
        """
        parts = codes.split(1) if codes.is_cpu else (codes,)
        images = torch.cat([self.tokenizer.autoencoder.decode(part) for part in parts])
        return images.float().clamp(-1, 1)
