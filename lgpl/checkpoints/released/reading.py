"""A foreign file -> whose it is, and what it holds in lgpl's terms."""

from pathlib import Path

from lgpl.checkpoints.released import llamagen, lpd, vqgan
from lgpl.checkpoints.released.state import Released, read_state


def read_released(path: str | Path, grid: int | None = None, heads: int | None = None) -> Released:
    """A file of LlamaGen, LPD or taming, released or saved by their training scripts; raises a
    UserError where it is no such file, holds code, or lacks weights.

    Args:
        grid: codes on a side of a generator's image, where the file does not say.
        heads: heads of a generator of no size of the papers, where the file does not say.
    """
    path = Path(path)
    state = read_state(path)
    if lpd.is_lpd(state):
        return lpd.read(state, path, grid, heads)
    if vqgan.is_vqgan(state):
        return vqgan.read(state, path)
    return llamagen.read(state, path, grid, heads)
