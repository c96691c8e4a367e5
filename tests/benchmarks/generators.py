"""Variants of the generator against each other on the emoji's codes; all else is as in the recipe.

    python -m tests.benchmarks.generators [--steps 440] [--out runs/generators] [--arms RAR ...]
        [--tokenizer runs/emoji/tokenizer/checkpoints/last.ckpt] [--codes runs/emoji/codes64]

Each arm is `lgpl fit` with configs/generator/emoji_stage2.yaml from fresh weights. The recipe runs
with a second seed too: what differs less than these two is noise. Losses are in raster order, in
nats for each code; the held-out ones of 93 emoji. An arm whose metrics stand in --out is not run
again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lgpl.commands.training import CommandLine

RECIPE = "configs/generator/emoji_stage2.yaml"
VARIANT = "configs/generator/variant"
MODEL = "--model.init_args"
BATCH = 32


def arms(steps: int) -> dict[str, tuple[int, list[str]]]:
    """Name -> seed, and what is added to the recipe."""
    path = f"{MODEL}.transformer.init_args.order"
    order = [f"{path}.start", str(steps // 2), f"{path}.end", str(3 * steps // 4)]
    return {
        "recipe": (0, []),
        "prefix_rope zero": (0, [f"{MODEL}.transformer.init_args.prefix_rope", "zero"]),
        "QK-norm": (0, ["-c", f"{VARIANT}/qk_norm.yaml"]),
        "random order, annealed": (0, ["-c", f"{VARIANT}/rar.yaml", *order]),
        "recipe, seed 1": (1, []),
    }


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Train one arm; gives its losses."""
    seed, changes = arms(options.steps)[name]
    train, val = (f"{options.codes}/{split}-*.tar" for split in ("train", "val"))
    common = ["-c", RECIPE, *changes, f"{MODEL}.tokenizer", str(options.tokenizer)]
    common += [f"{MODEL}.init_from", "null", "--trainer.logger.init_args.save_dir"]
    common += [str(options.out / name), "--seed_everything", str(seed)]
    fitted = CommandLine(
        [
            *("fit", *common, "--data.train", train, "--data.val", val),
            *("--data.epoch_samples", str(BATCH * options.steps), "--data.batch_size", str(BATCH)),
            *("--trainer.max_epochs", "1", f"{MODEL}.schedule.steps", str(options.steps)),
        ]
    )
    held_out = fitted.trainer.callback_metrics["val/loss"].item()
    checkpoint = str(options.out / name / "stage2/checkpoints/last.ckpt")
    seen = CommandLine(["validate", *common, "--data.val", train, "--ckpt_path", checkpoint])
    return {
        "held out": held_out,
        "trained on": seen.trainer.callback_metrics["val/loss"].item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=440, help="training steps of each arm")
    parser.add_argument("--out", type=Path, default=Path("runs/generators"))
    parser.add_argument("--codes", type=Path, default=Path("runs/emoji/codes64"))
    parser.add_argument(
        "--tokenizer", type=Path, default=Path("runs/emoji/tokenizer/checkpoints/last.ckpt")
    )
    parser.add_argument("--arms", nargs="+", default=list(arms(4)))
    options = parser.parse_args()
    print("| generator | held-out loss | loss on what it was trained on |\n| --- | --- | --- |")
    for name in options.arms:
        file = options.out / name / "metrics.json"
        if not file.is_file():
            metrics = run(name, options)
            file.write_text(json.dumps(metrics))
        metrics = json.loads(file.read_text())
        print(f"| {name} | {metrics['held out']:.3f} | {metrics['trained on']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
