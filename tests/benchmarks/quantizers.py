"""Quantizers against each other at 1024 codes on the embedded emoji; all else is as in the recipe.

    python -m tests.benchmarks.quantizers [--steps 200] [--out runs/quantizers] [--arms VQ FSQ ...]

Each arm is `lgpl fit` with configs/tokenizer/emoji.yaml and one of configs/tokenizer/quantizer/.
VQ runs with a second seed too: what differs less than these two differ is noise. Metrics are of the
93 held-out emoji, but for the training usage, which is of the last 65536 training codes. An arm
whose metrics stand in --out is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lgpl.commands.training import CommandLine

RECIPE = Path("configs/tokenizer/emoji.yaml")
ARMS: dict[str, tuple[str | None, int]] = {  # name -> what is stacked on the recipe, seed
    "VQ": (None, 0),
    "VQ, seed 1": (None, 1),
    "VQ, rotation trick": ("rotation", 0),
    "FSQ": ("fsq", 0),
    "BSQ": ("bsq", 0),
    "IBQ": ("ibq", 0),
}
FIGURES = {  # logged name -> column, format
    "val/psnr": ("PSNR, dB", "{:.2f}"),
    "val/lpips": ("LPIPS", "{:.3f}"),
    "val/usage": ("usage", "{:.1%}"),
    "val/perplexity": ("perplexity", "{:.0f}"),
    "train/usage": ("training usage", "{:.1%}"),
}
BATCH = 16


def run(name: str, steps: int, out: Path) -> dict[str, float]:
    """Train one arm; gives its metrics."""
    config, seed = ARMS[name]
    stacked = ["-c", str(RECIPE)]
    if config is not None:
        stacked += ["-c", str(RECIPE.parent / f"quantizer/{config}.yaml")]
    command = CommandLine(
        [
            *("fit", *stacked, "--seed_everything", str(seed)),
            *("--data.batch_size", str(BATCH), "--data.epoch_samples", str(BATCH * steps)),
            *("--trainer.max_epochs", "1", "--model.init_args.schedule.steps", str(steps)),
            *("--trainer.logger.init_args.save_dir", str(out / name)),
        ]
    )
    metrics = command.trainer.callback_metrics
    return {metric: metrics[metric].item() for metric in FIGURES}


def table(results: dict[str, dict[str, float]]) -> str:
    columns = ["quantizer", *(column for column, _ in FIGURES.values())]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for name, metrics in results.items():
        cells = [form.format(metrics[metric]) for metric, (_, form) in FIGURES.items()]
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=200, help="training steps of each arm")
    parser.add_argument("--out", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args()
    results = {}
    for name in args.arms:
        file = args.out / name / "metrics.json"
        if not file.is_file():
            metrics = run(name, args.steps, args.out)
            file.write_text(json.dumps(metrics))
        results[name] = json.loads(file.read_text())
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
