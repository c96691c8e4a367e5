"""Plots of curves, by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lgpl.atomic import atomic_file
from lgpl.errors import as_user_error
from lgpl.lazy import needs

Curve = Sequence[tuple[float, float]]


def plot(path: Path, panels: Mapping[str, Mapping[str, Curve]], x: str) -> None:
    """A panel for each metric, with a curve of points (x, y) for each name and `x` written below;
    raises UserError where matplotlib is missing or the image cannot be written."""
    needs("A plot", "matplotlib", "plots")
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    for index, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        for name, points in curves.items():
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, marker="o" if len(xs) < 30 else None, markersize=3, label=name)
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize="small")
    with as_user_error(f"{path} cannot be written as an image", OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            figure.savefig(file, dpi=110, format=path.suffix[1:] or None)
