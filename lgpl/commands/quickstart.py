"""`lgpl quickstart`: the whole chain on the embedded emoji, in minutes on two cores.

Runs the README's commands one after the other and prints each before it starts, then measures and
draws. The next run continues an interrupted one.
"""

import json
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lgpl.atomic import write_text
from lgpl.commands.parsing import ArgumentParser
from lgpl.commands.quiet import be_quiet
from lgpl.data import ShardDataModule
from lgpl.data.transforms import normalize
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling
from lgpl.image_files import grid, save
from lgpl.inference import ImageList, draw_into, load_generator, requests_for
from lgpl.metrics import EfficientNetLite0, retrieval_accuracy
from lgpl.metrics.images import open_images
from lgpl.metrics.protocols import read_prompts
from lgpl.progress import Bar
from lgpl.text import TextEncoder
from lgpl.tokenizer import TokenizerModule
from lgpl.tokenizer.module import CodebookUsage
from lgpl.training import load_module

TRAIN, HELD_OUT = "data/emoji/train-*.tar.gz", "data/emoji/val-*.tar.gz"
SAMPLING = Sampling(temperature=0.0)  # a memorised set is best asked for its likeliest codes
IMAGE_SIZE = 64
RETRIEVAL_PROMPTS, RETRIEVAL_K = 100, 5
NAME = f"top{RETRIEVAL_K}_retrieval"
# Prompts of samples.png: training captions that everybody knows, chosen before any was drawn.
SHOWN = (
    *("pizza", "red apple", "hamburger", "strawberry", "birthday cake", "hot beverage"),
    *("cat face", "dog face", "panda", "fox", "frog", "octopus", "butterfly", "tiger face"),
    *("rocket", "sailboat", "bicycle", "automobile", "airplane", "house", "volcano", "rainbow"),
    *("soccer ball", "guitar", "wrapped gift", "light bulb", "key", "red heart", "grinning face"),
    *("robot", "ghost", "snowman", "sunflower", "cactus", "mushroom", "full moon", "star"),
)
TABLE = f"""\
held-out PSNR   {{held_out_psnr:9.2f}} dB   93 emoji the tokenizer never saw
codebook usage  {{codebook_usage:12.1%}}   codes that occur in training emoji
held-out loss   {{held_out_loss:7.2f}} nats   per code, stage 2, same 93 emoji
top-{RETRIEVAL_K} retrieval {{{NAME}:12.2f}}   {RETRIEVAL_PROMPTS} training prompts, greedy, \
EfficientNet-lite0 at {IMAGE_SIZE} px; {{{NAME}_of_reconstructions:.2f}} for reconstructions
training        {{seconds_training:10}} s   tokenizer, codes and both stages
measuring       {{seconds_measuring:10}} s

images    {{out}}/samples.png
metrics   {{out}}/metrics.json
curves    {Path(sys.executable).parent}/tensorboard --logdir {{out}}"""


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl quickstart", description=__doc__)
    p.add_argument("--out", default="runs/quickstart", help="folder for everything that is written")
    return p


def main(args: list[str]) -> None:
    out = Path(parser().parse_args(args).out)
    begin = time.perf_counter()
    be_quiet()
    check_packages()
    train(out)
    trained = time.perf_counter()
    metrics = measure(out)
    metrics["seconds_training"] = round(trained - begin)
    metrics["seconds_measuring"] = round(time.perf_counter() - trained)
    write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(f"\n{TABLE.format(out=out, **metrics)}")


def check_packages() -> None:
    """Raises a UserError for what would otherwise be missed only after minutes of training."""
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"The quickstart needs torch 2.9 or newer, not {torch.__version__}.")
    _ = TextEncoder().width  # of the captions' encoder, by its package
    EfficientNetLite0(IMAGE_SIZE)


def train(out: Path) -> None:
    """Tokenizer, codes and generator, both stages, by the commands that the README gives."""
    tokenizer = out / "tokenizer/checkpoints/last.ckpt"
    logs = ("--trainer.logger.init_args.save_dir", str(out))
    _run("fit", "-c", "tokenizer/emoji.yaml", *logs, *_resume(tokenizer))
    init: tuple[str, ...] = ()
    for stage, size in (("stage1", IMAGE_SIZE // 2), ("stage2", IMAGE_SIZE)):
        codes, checkpoint = out / f"codes{size}", out / stage / "checkpoints/last.ckpt"
        _run(
            *("predict", "-c", "tokenizer/emoji.yaml"),
            *("-c", "tokenizer/encode_emoji.yaml", "--ckpt_path", str(tokenizer)),
            *("--data.image_size", str(size), "--trainer.callbacks.init_args.out", str(codes)),
        )
        _run(
            *("fit", "-c", f"generator/emoji_{stage}.yaml", *logs),
            *("--data.train", f"{codes}/train-*.tar", "--data.val", f"{codes}/val-*.tar"),
            *("--model.init_args.tokenizer", str(tokenizer), *init, *_resume(checkpoint)),
        )
        init = ("--model.init_args.init_from", str(checkpoint))


def _resume(checkpoint: Path) -> tuple[str, ...]:
    """Go on from an interrupted run's checkpoint; a finished one ends at once."""
    return ("--ckpt_path", str(checkpoint)) if checkpoint.exists() else ()


def _run(*command: str) -> None:
    print(f"\n$ lgpl {shlex.join(command)}", flush=True)
    if status := subprocess.run([sys.executable, "-m", "lgpl.cli", *command]).returncode:
        raise UserError(f"the command above ended with status {status}; what was made is kept.")


def measure(out: Path) -> dict[str, Any]:
    """The metrics of a finished run; writes samples.png."""
    checkpoint = out / "stage2/checkpoints/last.ckpt"
    tokenizer_path, codes = out / "tokenizer/checkpoints/last.ckpt", out / f"codes{IMAGE_SIZE}"
    metrics: dict[str, Any] = {}

    tokenizer = load_module(tokenizer_path, "tokenizer")
    assert isinstance(tokenizer, TokenizerModule)
    data = ShardDataModule(val=HELD_OUT, image_size=IMAGE_SIZE)
    metrics["held_out_psnr"] = _validate(tokenizer, data)["val/psnr"]
    data = ShardDataModule(val=f"{codes}/val-*.tar", fields=("codes", "text"))
    metrics["held_out_loss"] = _validate(load_module(checkpoint, "generator"), data)["val/loss"]

    usage = CodebookUsage(tokenizer.autoencoder.codebook_size)
    shards = ShardDataModule(predict=f"{codes}/train-*.tar", fields=("codes",))
    shards.setup("predict")
    for batch in shards.predict_dataloader():
        usage.update(batch["codes"])
    metrics["codebook_usage"] = usage.compute()["usage"].item()

    generator = load_generator(str(checkpoint), str(tokenizer_path), "cpu")
    metrics |= retrieval(generator)
    shown = [caption for caption in SHOWN if caption in read_prompts(TRAIN)]
    save(grid(_draw(generator, shown), shown, columns=8, tile=96), out / "samples.png")
    return metrics


def retrieval(generator: GeneratorModule) -> dict[str, float]:
    """How many images of training prompts are among the nearest to the prompt's own emoji. What the
    tokenizer's reconstructions reach is what a perfect generator could have."""
    captions = read_prompts(TRAIN)
    images = torch.cat([*open_images(TRAIN, (IMAGE_SIZE, IMAGE_SIZE)).batches(32)])
    target = random.Random(0).sample(range(len(captions)), RETRIEVAL_PROMPTS)
    made = _draw(generator, [captions[i] for i in target])
    with torch.inference_mode():
        rebuilt = generator.tokenizer(normalize(images[target])).clamp(-1, 1)
    extractor = EfficientNetLite0(IMAGE_SIZE)
    parts = Bar(normalize(images).split(32), desc="features")
    real = torch.cat([extractor(part) for part in parts])
    return {
        name: retrieval_accuracy(extractor(drawn), real, torch.tensor(target), RETRIEVAL_K)
        for name, drawn in ((NAME, made), (f"{NAME}_of_reconstructions", rebuilt))
    }


def _validate(module: pl.LightningModule, data: ShardDataModule) -> dict[str, float]:
    trainer = pl.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False)
    return dict(trainer.validate(module, data, verbose=False)[0])


def _draw(generator: GeneratorModule, prompts: list[str]) -> Tensor:
    sink = ImageList()
    draw_into(generator, requests_for(prompts, SAMPLING, 0), sink, 50)
    return sink.images()
