"""TokenizerModule: what counts as a step, accumulation, clipping, the start of the GAN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lgpl.callbacks import LastCheckpoint
from lgpl.data import ShardDataModule
from lgpl.tokenizer import PatchGAN, TokenizerLoss, TokenizerModule, VectorQuantizer, VQModel
from lgpl.tokenizer.module import CodebookUsage
from lgpl.training.optimizers import Schedule
from tests.shards import EMOJI_TRAIN, EMOJI_VAL


def module(**options: Any) -> TokenizerModule:
    torch.manual_seed(0)
    autoencoder = VQModel(VectorQuantizer(32, 4), (1, 1), width=32, blocks=1, z_channels=32)
    loss = TokenizerLoss(discriminator=PatchGAN(8, 1), adversarial_weight=0.5)
    options = {"lr": 1e-3, "discriminator_start": 2, **options}
    return TokenizerModule(autoencoder, loss, **options)


def fit(model: TokenizerModule, folder: Path, batches: int, **options: Any) -> pl.Trainer:
    data = ShardDataModule(
        train=EMOJI_TRAIN, val=EMOJI_VAL, image_size=16, batch_size=options.pop("batch_size", 4),
        augment=False, shuffle=0, epoch_samples=400,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", limit_train_batches=batches, max_epochs=1, limit_val_batches=1,
        logger=CSVLogger(folder), log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **options},
    )  # fmt: skip
    trainer.fit(model, data)
    return trainer


def test_two_optimizers_count_as_one_step(tmp_path: Path) -> None:
    model = module()
    trainer = fit(model, tmp_path, 5)
    assert trainer.global_step == 5 and int(model.train_step) == 5
    trainer = fit(module(), tmp_path, 100, max_steps=5)
    assert trainer.global_step == 5 and trainer.fit_loop.total_batch_idx == 4


def test_last_checkpoint_holds_the_last_step(tmp_path: Path) -> None:
    """Though the epoch ends between two multiples of `every_n_train_steps`."""
    saver = LastCheckpoint(tmp_path, every_n_train_steps=3, save_last=True)
    fit(module(), tmp_path, 5, callbacks=[saver], enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5 and int(saved["state_dict"]["train_step"]) == 5


def test_discriminator_starts_at_its_batch(tmp_path: Path) -> None:
    before = {n: p.clone() for n, p in module().loss.discriminator.named_parameters()}
    for batches, moves in ((2, False), (3, True)):
        model = module()
        fit(model, tmp_path, batches)
        after = dict(model.loss.discriminator.named_parameters())
        assert any(not torch.equal(before[n], after[n]) for n in before) == moves


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    """Those of its discriminator, too."""
    saver = LastCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
    fit(module(), tmp_path, 4, callbacks=[saver], enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    model = module(init_from=str(tmp_path / "last.ckpt"), lr=0.0)
    fresh = model.state_dict()["loss.discriminator.layers.0.weight"].clone()
    fit(model, tmp_path, 1)
    for name, tensor in model.state_dict().items():
        if name.startswith(("autoencoder.", "loss.discriminator.")):
            assert torch.equal(tensor, saved[name])
    assert not torch.equal(saved["loss.discriminator.layers.0.weight"], fresh)


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    """Without a GAN, whose batch norm sees the small batches."""
    whole, parts = (module(discriminator_start=10**9, accumulate=n) for n in (1, 2))
    trainer = fit(whole, tmp_path, 2, batch_size=8)
    assert trainer.global_step == 2
    trainer = fit(parts, tmp_path, 4, batch_size=4)
    assert trainer.global_step == 2 and int(parts.train_step) == 4
    start, a, b = (
        torch.cat([p.detach().flatten() for p in m.autoencoder.parameters()])
        for m in (module(), whole, parts)
    )
    assert (a - b).norm() < 0.05 * (a - start).norm()


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    model = module(gradient_clip=0.01)
    step = torch.optim.AdamW.step

    def watch(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        grads = [
            p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None
        ]
        norms.append(torch.stack(grads).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    fit(model, tmp_path, 4)
    assert len(norms) == 4 + 2 and max(norms) == pytest.approx(0.01, rel=1e-3)


def test_learning_rate_follows_the_schedule(tmp_path: Path) -> None:
    model = module(schedule=Schedule(warmup=2, decay="linear", steps=6))
    fit(model, tmp_path, 6)
    lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/lr")
    rates = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_learning_rate_and_batch_follow_the_global_batch(tmp_path: Path) -> None:
    """Eight samples a step, as two batches of four; the peak is meant for two."""
    schedule = Schedule(batch_rule="sqrt", base_batch=2)
    model = module(schedule=schedule, accumulate=2)
    data = ShardDataModule(train=EMOJI_TRAIN, image_size=16, global_batch=8)
    trainer = pl.Trainer(
        accelerator="cpu", limit_train_batches=4, max_epochs=1, logger=CSVLogger(tmp_path),
        log_every_n_steps=1, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 2 and data.train_dataloader().batch_size == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-3)


@pytest.mark.slow
def test_compiled_in_place(tmp_path: Path) -> None:
    """The GAN's game too: figures and checkpoints as without."""
    eager, compiled = module(discriminator_start=1), module(discriminator_start=1, compile=True)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    figures = []
    for model in (eager, compiled):
        fit(model, tmp_path, 4)
        assert isinstance(model.trainer, pl.Trainer)
        figures.append(model.trainer.callback_metrics)
    for name in ("train/loss", "train/discriminator/loss", "val/psnr", "val/mse"):
        assert figures[1][name].item() == pytest.approx(figures[0][name].item(), rel=1e-3), name


def test_training_lowers_the_error(tmp_path: Path) -> None:
    model = module(discriminator_start=10**9, lr=3e-3)
    start = fit(model, tmp_path, 1).callback_metrics["val/mse"]
    end = fit(model, tmp_path, 60).callback_metrics["val/mse"]
    assert end < 0.5 * start


def test_usage_over_a_window() -> None:
    usage = CodebookUsage(8, window=6)
    usage.update(torch.tensor([[0, 1, 2]]))
    assert usage.compute()["usage"] == 3 / 8
    assert usage.compute()["perplexity"].item() == pytest.approx(3)
    for _ in range(2):
        usage.update(torch.tensor([7, 7, 7]))
    assert usage.compute()["usage"] == 1 / 8  # the first update has left the window
