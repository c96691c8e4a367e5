"""The `lgpl` command: finds the command that is asked for, and imports nothing else."""

import importlib
import io
import os
import sys
from types import ModuleType

from lgpl import cpus
from lgpl.errors import UserError, behind, nearest

HELP = """usage: lgpl COMMAND [options], each with its own --help

Train, evaluate and sample autoregressive image generators.

by configs that stack (-c a.yaml -c b.yaml), Lightning's:
  fit         train a tokenizer or a generator, or go on with --ckpt_path
  validate    losses and metrics of a checkpoint on the validation shards
  test        the same on the test shards
  predict     images to code shards, by a tokenizer

plain commands:
  data        pack | index | show | check: shards made, counted, looked into
  sample      images from a generator's checkpoint
  edit        an image, part of which is drawn anew under a mask
  complete    the lower part of an image, drawn anew from its first rows
  reconstruct images through a tokenizer, beside their originals
  evaluate    generation | reconstruction: FID and the like, by a named protocol;
              prompts: images against what their prompts ask for
  compare     configs, metrics and curves of several runs
  serve       images over HTTP, by the OpenAI images API
  import      weights of LlamaGen, LPD and taming's VQGANs, for everything above
  export      the model of a checkpoint, for lgpl or for the code of LlamaGen or LPD
  push        an exported model with its card to a hub, which hf:OWNER/NAME then names
  plan        memory, tokens and FLOPs of a training step, before it is queued
  configs     the recipes that -c takes by name: listed, or copied to be changed
  completion  bash | zsh: a script that completes all this in a shell
  quickstart  tokenizer, codes, generator and images on the embedded emoji, in minutes

with every command that reads a checkpoint:
  --trust PACKAGE  also build classes of this package where the checkpoint names them
"""
TRAINING = ("fit", "validate", "test", "predict")
COMMANDS = (
    *("data", "sample", "edit", "complete", "reconstruct", "evaluate", "compare", "serve"),
    *("import", "export", "push", "plan", "quickstart", "configs", "completion"),
)


def main(args: list[str] | None = None) -> None:
    """Entry point; what a user can mend ends in one sentence and exit status 2."""
    args = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show ends no command
            stream.reconfigure(errors="backslashreplace")
    # Here and not at `import lgpl`: in a Python program threads are the program's own business.
    cpus.prepare()
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # nobody here can mend them
    try:
        run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as the shell says of SIGPIPE
    except Exception as error:
        end_bars()
        if (mistake := behind(error)) is None:
            raise
        last = str(mistake).strip().splitlines()[-1]  # a data worker's comes with its traceback
        said = last.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")
        print(f"lgpl: error: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        end_bars()
        print("lgpl: interrupted", file=sys.stderr)
        sys.exit(130)


def end_bars() -> None:
    """So that an error begins on a line of its own; there are bars only where tqdm is imported."""
    if "tqdm" in sys.modules:
        from lgpl.progress import end_lines

        end_lines()


def run(args: list[str]) -> None:
    """Run a command; raises UserError where there is none of that name."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
    elif args[0] in COMMANDS:
        module_of(args[0]).main(args[1:])
    elif args[0] in TRAINING or args[0].startswith("-"):
        from lgpl.commands.training import CommandLine

        sys.argv[1:] = args  # LightningCLI warns where both are given
        CommandLine()
    else:
        meant = nearest(args[0], (*TRAINING, *COMMANDS)) or ". `lgpl --help` lists them."
        raise UserError(f"{args[0]!r} is no command{meant}")


def module_of(command: str) -> ModuleType:
    """The module of a plain command, which has its `parser` and its `main`."""
    module = "import_released" if command == "import" else command  # no module may be so called
    return importlib.import_module(f"lgpl.commands.{module}")


if __name__ == "__main__":
    main()
