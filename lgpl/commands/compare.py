"""`lgpl compare`: a table of the config values that differ and of the last metrics, and curves."""

import csv
import os
from pathlib import Path
from typing import Any

import yaml

from lgpl.commands.parsing import ArgumentParser
from lgpl.errors import UserError, as_user_error
from lgpl.plots import plot

Curves = dict[str, list[tuple[float, float]]]
WIDTH = 48  # characters of a value


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl compare", description=__doc__)
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders of logs, with config.yaml")
    p.add_argument("--metrics", nargs="+", default=["val/", "test/"], help="names or beginnings")
    p.add_argument("--out", default="compare.png", help="image of the curves")
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    runs = [Path(run) for run in options.runs]
    curves = [read_curves(run) for run in runs]
    there = sorted({tag for run in curves for tag in run})
    names = [tag for tag in there if tag.startswith(tuple(options.metrics))]
    if not names:
        wanted, others = ", ".join(options.metrics), ", ".join(there)
        raise UserError(f"--metrics: no run has metrics named {wanted}; there are {others}.")
    labels = short_names(runs)
    configs = [read_config(run) for run in runs]
    keys = sorted(set().union(*configs))
    rows = [[key, *(config.get(key, "-") for config in configs)] for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1]
    last = [[name, *(_last(run.get(name)) for run in curves)] for name in names]
    print(table([["config", *labels], *different]), end="\n\n")
    print(table([["last metric", *labels], *last]))
    panels = {
        name: {label: run[name] for label, run in zip(labels, curves, strict=True) if name in run}
        for name in names
    }
    plot(Path(options.out), panels, "optimizer steps")
    print(f"\n{options.out}: the curves of {len(names)} metrics")


def read_config(run: Path) -> dict[str, str]:
    """Every value of a run's config.yaml by its dotted key."""
    path = run / "config.yaml"
    said = f"{run} is no folder of a run: {path} cannot be read"
    with as_user_error(said, OSError, yaml.YAMLError):
        return flatten(yaml.safe_load(path.read_text(encoding="utf-8")))


def flatten(value: Any, key: str = "") -> dict[str, str]:
    """Nested values by dotted keys; classes in a list are named by their class."""
    if isinstance(value, dict) and value:
        children = {f"{key}.{name}" if key else str(name): v for name, v in value.items()}
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        paths = [isinstance(item, dict) and item.get("class_path") for item in value]
        names = [str(path or i).rpartition(".")[2] for i, path in enumerate(paths)]
        children = {f"{key}[{name}]": item for name, item in zip(names, value, strict=True)}
    else:
        return {key: str(value)}
    return {k: v for name, child in children.items() for k, v in flatten(child, name).items()}


def read_curves(run: Path) -> Curves:
    """Points (step, value) of every scalar of TensorBoard's event files, or of metrics.csv."""
    curves: Curves = {}
    if any(run.glob("events.out.tfevents.*")):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 1})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curves[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    if not curves and (path := run / "metrics.csv").is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        curves.setdefault(name, []).append((float(row["step"]), float(value)))
    if not curves:
        raise UserError(f"{run} holds no metrics: neither TensorBoard's events nor metrics.csv.")
    return curves


def short_names(runs: list[Path]) -> list[str]:
    """The folders without what they have in common at either end."""
    paths = [run.resolve() for run in runs]
    common = os.path.commonpath(paths)
    tails = [path.relative_to(common).parts for path in paths]
    if () in tails:  # a single run, or one that holds the others
        return [run.name for run in runs]
    while all(len(tail) > 1 for tail in tails) and len({tail[-1] for tail in tails}) == 1:
        tails = [tail[:-1] for tail in tails]
    return ["/".join(tail) for tail in tails]


def table(rows: list[list[str]]) -> str:
    rows = [[cell if len(cell) <= WIDTH else cell[: WIDTH - 1] + "…" for cell in r] for r in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _last(curve: list[tuple[float, float]] | None) -> str:
    if curve is None:
        return "-"
    step, value = max(curve)
    return f"{value:.4f} at {step:.0f}"
