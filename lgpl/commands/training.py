"""`lgpl fit | validate | test | predict`: LightningCLI for lgpl's two modules and its shards."""

import contextlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import cli
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lgpl import cpus, shipped
from lgpl.atomic import write_text
from lgpl.callbacks import NaNGuard, SkippedSamples
from lgpl.callbacks.lines import LineProgress, ParameterCounts
from lgpl.checkpoints import is_exported, is_sharded, read_checkpoint, split_trust
from lgpl.cli import TRAINING
from lgpl.commands.follow import fill_in
from lgpl.commands.keys import check_keys
from lgpl.commands.mended import (
    check_fp16,
    check_names,
    check_run_is_new,
    check_trainer,
    mended,
    where_it_is,
)
from lgpl.commands.parsing import SentenceErrors
from lgpl.commands.quiet import be_quiet
from lgpl.data import ShardDataModule
from lgpl.data.filters import Scalar
from lgpl.errors import UserError
from lgpl.progress import is_terminal
from lgpl.training import ShardedStrategy, TrainingModule


def usage(command: str) -> str:
    """Without the hundred options, which the help lists below."""
    return f"lgpl {command} -c CONFIG [-c CONFIG ...] [--KEY VALUE ...]"


def with_recipes(args: list[str]) -> list[str]:
    """The command line with the files in place of the recipes' names that follow -c."""
    found = []
    for before, arg in itertools.pairwise(["", *args]):
        option, equals, path = arg.rpartition("=") if arg.startswith("--config=") else ("", "", arg)
        is_file = path.endswith((".yaml", ".yml", ".json"))
        if is_file and (equals or before in ("-c", "--config")):
            arg = f"{option}{equals}{shipped.config(path)}"
        found.append(arg)
    return found


MatmulPrecision = Literal["highest", "high", "medium"]  # torch's names
register_type(Scalar, lambda value: value, Scalar.read, type_check=lambda *_: False)


class LastValidation(pl.Callback):
    """Knows whether weights were trained after the last validation."""

    is_due = False

    def on_train_batch_end(self, *_: Any) -> None:
        self.is_due = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.is_due = False


class SaveTrainingConfig(cli.SaveConfigCallback):
    """Writes config.yaml beside the logs of a fit; the other commands leave nothing behind."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.logger is None:
            return
        folder = trainer.log_dir  # all ranks must call this
        if trainer.is_global_zero and folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            config = self.parser.dump(self.config, skip_none=False)
            write_text(Path(folder, self.config_filename), config)


class TrainingParser(SentenceErrors, LightningArgumentParser):
    """Lightning's, with errors of one sentence."""


class CommandLine(cli.LightningCLI):
    """LightningCLI for the two modules, the shards, and configs that stack: -c a.yaml -c b.yaml."""

    evaluated: str | None = None

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        super().__init__(
            TrainingModule,
            ShardDataModule,
            subclass_mode_model=True,
            save_config_callback=SaveTrainingConfig,
            seed_everything_default=0,
            parser_class=TrainingParser,
            parser_kwargs={"prog": "lgpl", **{name: {"usage": usage(name)} for name in TRAINING}},
            args=args,
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints carry lgpl's own entry instead
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        said = "of float32 products: highest, high (TF32 on a GPU) or medium (bf16)"
        parser.add_argument(
            "--matmul_precision", type=MatmulPrecision, default="highest", help=said
        )

    @property
    def of_command(self) -> Namespace:
        """The part of the config that belongs to the command."""
        return self.config.get(str(self.config.get("subcommand")), self.config)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        be_quiet()
        # Apart from the config, which is saved: trust is given anew with every command.
        self.trust, rest = split_trust(sys.argv[1:] if args is None else list(args))
        parsers = getattr(self, "_subcommand_parsers", {})
        check_keys(rest, next((parsers[arg] for arg in rest if arg in parsers), parser))
        self.config = parser.parse_args(with_recipes(rest))
        config = self.of_command
        path = config.get("ckpt_path")
        if path is None and self.config.get("subcommand") in ("validate", "test", "predict"):
            raise UserError("--ckpt_path is not set; give the checkpoint of the weights to use.")
        if path and path not in ("best", "last", "hpc"):
            path = read_checkpoint(path).path  # a wrong file fails before anything is built
            config["ckpt_path"] = str(path)
            if self.config.get("subcommand") != "fit" and Path(path).is_dir():
                # The Trainer reads a folder only with the strategy that wrote it, if at all.
                config["ckpt_path"], self.evaluated = None, str(path)
            elif is_exported(path):
                said = f"--ckpt_path: {path} holds weights and no run to go on with"
                raise UserError(f"{said}; start from them with --model.init_args.init_from.")

    def _parse_ckpt_path(self) -> None:
        """Disabled: Lightning would take the model's class from a checkpoint's hyperparameters."""

    def before_instantiate_classes(self) -> None:
        torch.set_float32_matmul_precision(self.of_command.matmul_precision)
        fill_in(self.of_command, self.trust)
        dump = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        config = dump[self.subcommand] if self.subcommand else dump
        self.model_config = config["model"]
        self.last_validation = LastValidation()
        self.trainer_defaults["callbacks"] = [SkippedSamples(), self.last_validation]
        has_scaler = str(config["trainer"]["precision"]) in ("16", "16-mixed")  # which skips steps
        if not has_scaler and "NaNGuard" not in str(config["trainer"]["callbacks"]):
            self.trainer_defaults["callbacks"].append(NaNGuard())
        if config["trainer"]["enable_progress_bar"] is not False:
            # In a terminal without a thread of its own; in a log file lines.
            bar = TQDMProgressBar(refresh_rate=10) if is_terminal(sys.stderr) else LineProgress()
            self.trainer_defaults["callbacks"].append(bar)
        summary = config["trainer"]["enable_model_summary"] is not False
        if summary and "ModelSummary" not in str(config["trainer"]["callbacks"]):
            self.trainer_defaults["callbacks"].append(ParameterCounts())

    def _set_seed(self) -> None:
        with mended():
            super()._set_seed()

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        check_names(self.of_command.trainer)
        check_fp16(self.of_command.trainer, self.config.get("subcommand") == "fit")
        try:
            with mended():
                trainer = super().instantiate_trainer(**options)
        except UserError as error:
            wanted = self.of_command.trainer.accelerator
            if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
                said = f"{wanted}, but torch finds no GPU here; give --trainer.accelerator cpu"
                raise UserError(f"trainer.accelerator: {said}.") from error
            raise
        if isinstance(trainer.strategy, ShardedStrategy):
            trainer.strategy.check()
        if (threads := cpus.part(trainer.num_devices)) is not None:
            torch.set_num_threads(threads)  # Lightning would divide all CPUs and know no quota
        return trainer

    def fit(self, **arguments: Any) -> None:
        """Ends with a validation where the last weights have seen none, and says where the
        checkpoint is."""
        trainer, has_shards = self.trainer, self.datamodule.patterns["val"] is not None
        with mended():
            trainer.fit(**arguments)
            if trainer.state.finished and self.last_validation.is_due and has_shards:
                trainer.validate(self.model, self.datamodule, verbose=False)
        where_it_is(trainer)

    def validate(self, **arguments: Any) -> None:
        with mended():
            self._print(self.trainer.validate(**{**arguments, "verbose": False}))

    def test(self, **arguments: Any) -> None:
        with mended():
            self._print(self.trainer.test(**{**arguments, "verbose": False}))

    def _print(self, found: Sequence[Mapping[str, float]]) -> None:
        """The metrics, a line for each."""
        for metrics in found if self.trainer.is_global_zero else ():
            print("\n".join(f"{name:<28}{value:>12.4f}" for name, value in metrics.items()))

    def predict(self, **arguments: Any) -> None:
        """Without keeping the predictions: those of a large set do not fit in memory."""
        with mended():
            self.trainer.predict(**{**arguments, "return_predictions": False})

    def after_instantiate_classes(self) -> None:
        self.model.config, self.model.evaluated = self.model_config, self.evaluated
        self.model.trust = self.trust
        if self.config.get("subcommand") == "fit":
            check_trainer(self.of_command.trainer, not self.model.automatic_optimization)
            if not self.of_command.get("ckpt_path"):
                check_run_is_new(self.trainer)
        path = self.of_command.get("ckpt_path")
        strategy = self.trainer and self.trainer.strategy
        unpickles = isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))
        if path and (unpickles or is_sharded(path)) and not isinstance(strategy, ShardedStrategy):
            danger = f"{type(strategy).__name__}, which would run what a sharded checkpoint holds"
            add = "-c configs/trainer/fsdp.yaml, whose strategy is lgpl.training.ShardedStrategy"
            raise UserError(f"--ckpt_path: {path} cannot be read by {danger}; add {add}.")


class _Parsers(CommandLine):
    """Makes the parsers and runs nothing."""

    def __init__(self) -> None:
        with contextlib.suppress(_MadeError):
            super().__init__([])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _MadeError


class _MadeError(Exception):
    pass


def training_parsers() -> dict[str, LightningArgumentParser]:
    """The parsers of the commands, by their names."""
    return _Parsers()._subcommand_parsers
