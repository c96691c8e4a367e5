"""The `lgpl` command: `fit | validate | test | predict` by LightningCLI, and plain commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lgpl.atomic import write_text
from lgpl.callbacks import EMA, SkippedSamples
from lgpl.checkpoints import (
    SelfDescribing,
    ShardedStrategy,
    is_exported,
    is_sharded,
    read_checkpoint,
    split_trust,
)
from lgpl.commands import (
    compare,
    complete,
    data,
    evaluate,
    export,
    import_released,
    plan,
    quickstart,
    reconstruct,
    sample,
    serve,
)
from lgpl.data import ShardDataModule
from lgpl.errors import UserError, behind
from lgpl.rehearsal import rehearse

DESCRIPTION = "Train, evaluate and sample autoregressive image generators."
EPILOG = """plain commands, each with its own --help:
  data        pack | index | show | check: shards made, counted, looked into
  sample      pictures from a generator's checkpoint
  complete    the lower part of a picture, drawn anew from its first rows
  reconstruct pictures through a tokenizer, beside their originals
  evaluate    generation | reconstruction: FID and the like, by a named protocol
  compare     configs, figures and curves of several runs
  serve       pictures over HTTP, by the OpenAI images API
  import      LlamaGen's released weights, for everything above
  export      the model of a checkpoint, for lgpl or for LlamaGen's own code
  plan        memory, tokens and FLOPs of a training step, before it is queued
  quickstart  tokenizer, codes, generator and pictures on the embedded emoji, in minutes

with every command that reads a checkpoint:
  --trust PACKAGE  also build classes of this package where the checkpoint names them
"""


class SaveTrainingConfig(SaveConfigCallback):
    """Writes config.yaml beside the logs of a fit; the other commands leave nothing behind."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.logger is None:
            return
        folder = trainer.log_dir  # all ranks must ask for it
        if trainer.is_global_zero and folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            config = self.parser.dump(self.config, skip_none=False)
            write_text(Path(folder, self.config_filename), config)


class CommandLine(LightningCLI):
    """LightningCLI for the two modules, the shards, and configs that stack: -c a.yaml -c b.yaml."""

    evaluated: str | None = None
    trust: tuple[str, ...] = ()

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        super().__init__(
            SelfDescribing,
            ShardDataModule,
            subclass_mode_model=True,
            save_config_callback=SaveTrainingConfig,
            seed_everything_default=0,
            parser_kwargs={"prog": "lgpl", "description": DESCRIPTION, "epilog": EPILOG},
            args=args,
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints carry lgpl's own entry instead
        )

    @property
    def of_command(self) -> Namespace:
        """The part of the config that is the command's."""
        return self.config.get(str(self.config.get("subcommand")), self.config)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Apart from the config, which is saved: trust is given anew with every command.
        self.trust, rest = split_trust(sys.argv[1:] if args is None else list(args))
        self.config = parser.parse_args(rest)
        config = self.of_command
        path = config.get("ckpt_path")
        if path is None and self.config.get("subcommand") in ("validate", "test", "predict"):
            raise UserError(
                "--ckpt_path is not set; give the checkpoint whose weights are to be used."
            )
        if path and path not in ("best", "last", "hpc"):
            read_checkpoint(path)  # a wrong file is told before anything is built
            if self.config.get("subcommand") != "fit" and Path(path).is_dir():
                # The Trainer reads a folder only with the strategy that wrote it, if at all.
                config["ckpt_path"], self.evaluated = None, str(path)
            elif is_exported(path):
                raise UserError(
                    f"--ckpt_path: {path} holds weights and no run to go on with; start from them "
                    "with --model.init_args.init_from."
                )

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would take the model's class from a checkpoint's hyperparameters."""

    def before_instantiate_classes(self) -> None:
        dump = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        config = dump[self.subcommand] if self.subcommand else dump
        self.model_config = config["model"]
        self.trainer_defaults["callbacks"] = [SkippedSamples()]
        if config["trainer"]["enable_progress_bar"] is not False:
            # Plain lines, also where the output is no terminal, and no thread of its own.
            self.trainer_defaults["callbacks"].append(TQDMProgressBar(refresh_rate=10))

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        try:
            return super().instantiate_trainer(**options)
        except MisconfigurationException as error:
            wanted = self.of_command.trainer
            if wanted.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
                raise UserError(
                    f"trainer.accelerator: {wanted.accelerator}, but torch finds no GPU here; "
                    "--trainer.accelerator cpu does without."
                ) from error
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error

    def predict(self, **arguments: Any) -> None:
        """Write and forget: predictions of a large set do not fit in memory."""
        self.trainer.predict(**{**arguments, "return_predictions": False})

    def after_instantiate_classes(self) -> None:
        self.model.config, self.model.evaluated = self.model_config, self.evaluated
        self.model.trust = self.trust
        path = self.of_command.get("ckpt_path")
        strategy = self.trainer and self.trainer.strategy
        unpickles = isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))
        unpickles = unpickles or bool(path and is_sharded(path))
        if path and unpickles and not isinstance(strategy, ShardedStrategy):
            raise UserError(
                f"--ckpt_path: {path} cannot be read by {type(strategy).__name__}, which would run "
                "what a sharded checkpoint holds; add -c configs/trainer/fsdp.yaml, whose strategy "
                "is lgpl.checkpoints.ShardedStrategy."
            )


class Plan(CommandLine):
    """The configs of a run with its size, built without memory and without a Trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--gpus", type=int, default=1, help="devices of all nodes together")
        parser.add_argument("--memory", type=float, default=80.0, help="GiB of one device")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        if self.config.gpus < 1:
            raise UserError(f"--gpus: {self.config.gpus} is below 1.")
        if not self.config.memory > 0:
            raise UserError(f"--memory: {self.config.memory:g} GiB is not above 0.")

    def instantiate_trainer(self, **_: Any) -> None:  # type: ignore[override]
        """Its GPUs need not be here."""

    def report(self) -> str:
        trainer, gpus = self.config_init.trainer, self.config_init.gpus
        callbacks = trainer.callbacks
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        sharded = isinstance(trainer.strategy, (ModelParallelStrategy, FSDPStrategy))
        sharded = sharded or str(trainer.strategy).startswith("fsdp")
        data = self.datamodule
        precision = str(trainer.precision or "32-true")
        accumulate = getattr(self.model, "accumulate", trainer.accumulate_grad_batches)
        batch_size = data.train_batch(gpus, accumulate)
        step = rehearse(self.model, batch_size, data.image_size, precision, sharded)
        averaged = any(isinstance(callback, EMA) for callback in callbacks)
        lines = plan.per_device(step, gpus, sharded, averaged)
        return plan.report(step, lines, gpus, self.config_init.memory, accumulate)


def plan_main(args: list[str]) -> None:
    sys.argv[1:] = args
    with torch.device("meta"):
        planned = Plan(run=False)
    print(planned.report())


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": data.main,
    "sample": sample.main,
    "complete": complete.main,
    "reconstruct": reconstruct.main,
    "evaluate": evaluate.main,
    "compare": compare.main,
    "serve": serve.main,
    "import": import_released.main,
    "export": export.main,
    "plan": plan_main,
    "quickstart": quickstart.main,
}


def main(args: list[str] | None = None) -> None:
    """Entry point; what a user can mend ends in one sentence and exit status 2."""
    args = sys.argv[1:] if args is None else args
    try:
        if args and args[0] in COMMANDS:
            COMMANDS[args[0]](args[1:])
        else:
            sys.argv[1:] = args  # LightningCLI warns where both are given
            CommandLine()
    except Exception as error:
        mistake = behind(error)
        if mistake is None:
            raise
        print(f"lgpl: error: {sentence(mistake)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lgpl: interrupted", file=sys.stderr)
        sys.exit(130)


def sentence(error: UserError) -> str:
    """The message itself: a data worker's comes wrapped in its traceback."""
    last = str(error).strip().splitlines()[-1]
    return last.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")


if __name__ == "__main__":
    main()
