"""TokenizerModule: trains and evaluates an autoencoder, and encodes with it.

Two optimizers, so the optimization is manual. By Lightning's rules the discriminator's is stepped
directly, because every step through Lightning counts towards `global_step` and would halve
max_steps and the checkpoints' distance; clipping and accumulation happen here, because the
Trainer's flags refuse manual optimization; training batches are counted in a buffer.
"""

import itertools
import logging
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from lgpl.checkpoints.files import Checkpoint
from lgpl.codes import CodeLayout, ImageSize
from lgpl.errors import UserError
from lgpl.tokenizer.base import Autoencoder
from lgpl.tokenizer.losses import TokenizerLoss
from lgpl.tokenizer.quantizers import Quantized, Quantizer
from lgpl.training import TrainingModule
from lgpl.training.optimizers import Schedule, adamw

log = logging.getLogger(__name__)

# Loss, its terms by name, reconstructions [B, 3, H, W], and what the quantizer did.
AutoencoderStep = tuple[Tensor, dict[str, Tensor], Tensor, Quantized]


class TokenizerModule(TrainingModule):
    """VQ-GAN training (LlamaGen, arXiv 2406.06525, section 3.1).

    Args:
        autoencoder: the model.
        loss: the objective, which holds the discriminator.
        init_from: checkpoint of a tokenizer whose weights training starts from, such as a released
            one. Its discriminator's, too, where it was kept and is of the same kind as this one;
            else that one is fresh, so let it start late.
        lr: peak learning rate of both optimizers.
        betas: of Adam.
        weight_decay: of AdamW; 0 makes it Adam.
        schedule: of the learning rate, in optimizer steps.
        discriminator_start: training batches before the adversarial game begins.
        gradient_clip: largest norm of a gradient, for each optimizer; 0 does not clip.
        accumulate: training batches per optimizer step.
        compile: fuse the networks' operations by torch.compile.
    """

    kind = "tokenizer"

    def __init__(
        self,
        autoencoder: Autoencoder,
        loss: TokenizerLoss,
        init_from: str | None = None,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        schedule: Schedule = Schedule(),
        discriminator_start: int = 20000,
        gradient_clip: float = 1.0,
        accumulate: int = 1,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.autoencoder, self.loss, self.init_from = autoencoder, loss, init_from
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.schedule, self.discriminator_start = schedule, discriminator_start
        self.gradient_clip, self.accumulate = gradient_clip, accumulate
        if compile:  # in place, so that checkpoints keep their names
            for part in (*autoencoder.children(), *loss.children()):
                if not isinstance(part, Quantizer):
                    part.compile()
        self.train_step = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._batches, self._peak = 0, lr
        size = autoencoder.codebook_size
        self.train_usage = CodebookUsage(size, window=65536, sync_on_compute=False)
        self.val_usage = CodebookUsage(size)
        self.val_metrics = nn.ModuleDict({name: MeanMetric() for name in ("psnr", "mse", "lpips")})

    @property
    def accumulated(self) -> int:
        return self.accumulate

    def setup(self, stage: str) -> None:
        self.start_weights()

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """The discriminator's, too, where the checkpoint has them and they fit."""
        super().load_weights(checkpoint)
        if (mine := self.loss.discriminator) is None or not (theirs := checkpoint.discriminator()):
            return
        sizes = [{n: t.shape for n, t in s.items()} for s in (mine.state_dict(), theirs)]
        if sizes[0] == sizes[1]:
            mine.load_state_dict(theirs)
        else:
            log.warning("%s has another discriminator: this one is fresh.", checkpoint.path)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruction [B, 3, H, W] of images in [-1, 1]."""
        return self.autoencoder(image)[0]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for the autoencoder, one for the discriminator; `_step` applies the schedule."""
        models = [self.autoencoder, self.loss.discriminator]
        return [adamw(m, self.lr, self.betas, self.weight_decay) for m in models if m is not None]

    def on_fit_start(self) -> None:
        if self.trainer.precision.startswith("16"):
            scales = f"{self.trainer.precision} scales gradients, which two optimizers do not take"
            raise UserError(f"trainer.precision: {scales}; use bf16-mixed or 32-true.")

    def on_train_start(self) -> None:
        self._batches = int(self.train_step)  # read once: a buffer on a GPU is a wait in every step
        self._peak = self.lr * self.peak_factor(self.schedule)

    def autoencoder_loss(self, image: Tensor, adversarial: bool) -> AutoencoderStep:
        """Of images [B, 3, H, W], with the adversarial term or without."""
        reconstructed, quantized = self.autoencoder(image)
        loss, parts = self.loss.reconstruction(reconstructed, image, quantized.loss)
        if adversarial:
            term, more = self.loss.adversarial_term(reconstructed, loss, self.autoencoder)
            loss, parts = loss + term, parts | more
        return loss, parts, reconstructed, quantized

    def one_step(self, batch: dict[str, Any]) -> None:
        """Forward and backward of a training step at its heaviest, with the discriminator."""
        adversarial = self.loss.discriminator is not None
        loss, _, reconstructed, _ = self.autoencoder_loss(batch["image"], adversarial)
        loss.backward()
        if adversarial:
            self.loss.discriminator_loss(reconstructed, batch["image"])[0].backward()

    def zeros(self, batch_size: int, size: ImageSize) -> dict[str, Any]:
        return {"image": torch.zeros(batch_size, 3, *size)}

    def code_layout(self, size: ImageSize) -> CodeLayout:
        return self.autoencoder.layout(*size)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        image, discriminator = batch["image"], self.loss.discriminator
        adversarial = discriminator is not None and self._batches >= self.discriminator_start

        loss, parts, reconstructed, quantized = self.autoencoder_loss(image, adversarial)
        self.manual_backward(loss / self.accumulate)
        last = (self._batches + 1) % self.accumulate == 0
        if last:
            self._step(optimizers[0], self.autoencoder)
            parts |= self.autoencoder.observe(quantized)
        if adversarial:
            assert discriminator is not None
            loss_d, parts_d = self.loss.discriminator_loss(reconstructed, image)
            self.manual_backward(loss_d / self.accumulate)
            if last:
                self._step(optimizers[1].optimizer, discriminator)
            named = {"loss": loss_d.detach(), **parts_d}
            parts |= {f"discriminator/{name}": value for name, value in named.items()}

        self.train_step.add_(1)
        self._batches += 1
        self.train_usage.update(quantized.codes)
        self.log("train/loss", loss.detach(), prog_bar=True)
        # Lightning takes about 0.4 ms for each metric, also in the steps whose metrics go nowhere.
        if self.trainer._logger_connector.should_update_logs:
            usage = self.train_usage.compute()
            self.log("train/usage", usage["usage"], prog_bar=True)
            self.log("train/perplexity", usage["perplexity"])
            self.log("train/lr", optimizers[0].param_groups[0]["lr"])
            self._log("train", parts | quantized.parts)

    def _step(self, optimizer: Any, model: nn.Module) -> None:
        """Clip, set the learning rate, step, clear."""
        if self.gradient_clip:
            norm = nn.utils.clip_grad_norm_(model.parameters(), self.gradient_clip)
            self.log(f"train/{type(model).__name__.lower()}_gradient_norm", norm)
        # Equal to optimizer steps, because only the autoencoder's steps count.
        lr = self._peak * self.schedule(self._batches // self.accumulate)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()

    def _log(self, prefix: str, metrics: dict[str, Any]) -> None:
        self.log_dict({f"{prefix}/{name}": value for name, value in metrics.items()})

    def on_validation_epoch_start(self) -> None:
        self.val_usage.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Log the metrics of the samples that count; gives the reconstructions."""
        image, valid = batch["image"], batch["valid"]
        reconstructed, quantized = self.autoencoder(image)
        reconstructed = reconstructed.float().clamp(-1, 1)
        mse = (reconstructed - image).pow(2).mean((1, 2, 3))
        # of images in [0, 1]: the squared error of [-1, 1] over 4
        found = {"mse": mse, "psnr": -10 * (mse / 4).clamp(min=1e-10).log10()}
        if self.loss.perceptual is not None:
            found["lpips"] = self.loss.perceptual(reconstructed, image)
        stage = "test" if self.trainer.testing else "val"
        for name, values in found.items():
            mean = self.val_metrics[name]
            assert isinstance(mean, MeanMetric)
            mean.update(values, valid)
            self.log(f"{stage}/{name}", mean, prog_bar=True)
        self.val_usage.update(quantized.codes[valid])
        return reconstructed

    def on_validation_epoch_end(self) -> None:
        self._log("test" if self.trainer.testing else "val", self.val_usage.compute())

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def fingerprint(self) -> str:
        return self.autoencoder.fingerprint()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Codes [B, *layout.shape] of the batch's images, or [B, views, *layout.shape] of views."""
        image = batch["image"]
        if image.ndim == 4:
            return self.autoencoder.encode(image)
        return torch.stack([self.autoencoder.encode(view) for view in image.unbind(1)], 1)


class CodebookUsage(Metric):
    """Share of the codebook that occurs, and perplexity, of the last `window` codes of each rank
    (the paper's 65536 in training); None counts all since the last reset."""

    counts: Tensor

    def __init__(self, codebook_size: int, window: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codebook_size, self.window = codebook_size, window
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), "sum")
        self._recent: deque[tuple[int, Tensor]] = deque()  # number and counts of each batch

    def update(self, codes: Tensor) -> None:
        """Count codes of any shape."""
        codes = codes.flatten().long()  # and no bincount, which waits for the device
        counts = torch.zeros_like(self.counts).scatter_add_(0, codes, torch.ones_like(codes))
        self.counts = self.counts + counts
        if self.window is None:
            return
        self._recent.append((codes.numel(), counts))
        while sum(number for number, _ in itertools.islice(self._recent, 1, None)) >= self.window:
            self.counts = self.counts - self._recent.popleft()[1]

    def compute(self) -> dict[str, Tensor]:
        """`usage` in [0, 1] and `perplexity` in [1, codebook_size]."""
        p = self.counts.float() / self.counts.sum().clamp(min=1)
        entropy = -(p * p.clamp(min=1e-20).log()).sum()
        return {"usage": (self.counts > 0).float().mean(), "perplexity": entropy.exp()}

    def reset(self) -> None:
        super().reset()
        self._recent.clear()
