"""Reference statistics: computed once, kept in a file with their provenance, and ADM's batches."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import lgpl
from lgpl import hub
from lgpl.atomic import atomic_file
from lgpl.codes import ImageSize, in_pixels
from lgpl.data.transforms import CENTER_CROP
from lgpl.errors import UserError, as_user_error
from lgpl.metrics import CACHE
from lgpl.metrics.extractors import INCEPTION, Extractor, resize
from lgpl.metrics.images import NO_CROP, ImageSource, NpzImages, current_rank, open_images
from lgpl.metrics.npz import names_in, read_arrays
from lgpl.metrics.summary import KEPT, FeatureSummary, Gaussian, ImageSet
from lgpl.progress import Bar

# All that is read of an npz of statistics, ours or ADM's.
ARRAYS = ("provenance", "count", "mu", "sigma", "mu_s", "sigma_s", "features")
ADM_COUNT = 10_000  # images behind a reference batch that does not say its number
NEIGHBOURS = 10_000  # images of a reference whose features are kept; ADM's batches hold as many


def reference(
    source: str,
    extractor: Extractor,
    size: ImageSize,
    cache: str = CACHE,
    batch_size: int = 64,
    crop: str = CENTER_CROP,
) -> tuple[FeatureSummary, dict[str, Any]]:
    """The summary and the provenance of a file of `write_summary`, of an npz of ADM's with `mu` and
    `sigma` or `arr_0`, or of images for `open_images`, whose summary is kept in `cache`. A
    UserError where it is of another extractor, height and width, or crop, or it is no reference.
    `hf:` before OWNER/NAME/FILE names a file on a hub."""
    if hub.is_name(source):
        there = str(hub.fetched(source))
        made, provenance = reference(there, extractor, size, cache, batch_size, crop)
        return made, provenance | {"hub": source}
    names = names_in(source) if source.endswith(".npz") else []
    if "provenance" in names:
        summary, origin = read_summary(source, extractor, size)
        if origin.get("crop") not in (crop, NO_CROP, None):
            said = f"{source} is a reference of images cropped otherwise ({origin['crop']})"
            raise UserError(f"{said}; this protocol crops by: {crop}.")
        return summary, origin
    adm = {"mu", "sigma"} <= {*names} and extractor.name == INCEPTION
    features, provenance = None, {"source": source, "extractor": INCEPTION}
    if not names or "arr_0" in names:
        made, provenance = _of_images(source, extractor, size, cache, batch_size, crop)
        if not adm:
            return made, provenance
        features, provenance["mu"] = made.features, f"{source}: mu, sigma"
    elif not adm:
        said = f"{source} is no reference for {extractor.name}: an npz of images has arr_0, one of"
        serve = "Inception's statistics mu and sigma, which serve --extractor inception alone"
        raise UserError(f"{said} {serve}.")
    arrays = read_arrays(source, ARRAYS)
    spatial = _gaussian(arrays, "_s", ADM_COUNT) if {"mu_s", "sigma_s"} <= arrays.keys() else None
    return FeatureSummary(_gaussian(arrays, "", ADM_COUNT), spatial, features), provenance


def _of_images(
    source: str, extractor: Extractor, size: ImageSize, cache: str, batch_size: int, crop: str
) -> tuple[FeatureSummary, dict[str, Any]]:
    images = open_images(source, size, crop=crop)
    if isinstance(images, NpzImages) and images.size != size:
        theirs, others = in_pixels(images.size), in_pixels(size)
        said = f"{source} holds images of {theirs} px, the others have {others} px"
        equal = f"compare at one size, with --resize {' '.join(map(str, images.size))}"
        raise UserError(f"{said}; {equal}.")
    provenance = {
        "source": source,
        "images": images.count,
        "identity": images.identity,
        "image_size": [*size],
        "crop": images.crop,
        "extractor": extractor.name,
        "preprocessing": extractor.preprocessing,
        "lgpl": lgpl.__version__,
    }
    key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:16]
    kept = Path(cache) / f"{extractor.name.replace('/', '-')}-{in_pixels(size)}-{key}.npz"
    rank = current_rank()
    there = [kept.exists()] * rank.count
    if rank.count > 1:  # machines may not share the folder
        dist.all_gather_object(there, kept.exists())
    if all(there):
        return read_summary(str(kept), extractor, size)
    doing = f"reference {Path(source).name}"
    made = summarise(images, extractor, batch_size, doing, neighbours=NEIGHBOURS)
    provenance["images"] = made.count
    if rank.index == 0:
        write_summary(kept, made, provenance)
    return made, provenance


def summarise(
    images: ImageSource,
    extractor: Extractor,
    batch_size: int,
    doing: str,
    size: ImageSize | None = None,
    neighbours: int | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> FeatureSummary:
    """One pass over images on disk, with a progress bar, resized to `size` (height, width) where it
    is given; all ranks must call this. It keeps the features of so many `neighbours`, drawn from
    all over the set: a data set may be sorted by class. None keeps the first in their order.
    `watch` is called with each batch, as it is compared, and with its images' indices."""
    numbers = torch.arange(images.count)
    if neighbours is not None:
        numbers = torch.randperm(images.count, generator=torch.Generator().manual_seed(0))
    made = ImageSet(extractor, images.count, neighbours or KEPT)
    for batch, indices in batches(images, batch_size, doing):
        batch = resize(batch.to(extractor.device), size)
        made.update(batch, numbers[indices])
        if watch is not None:
            watch(batch, indices)
    return made.compute()


def batches(images: ImageSource, batch_size: int, doing: str) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's batches, uint8 [B, 3, H, W], and the images' indices in the set [B]; they are the
    same for any number of ranks, because rounding depends on a batch's size."""
    rank = current_rank()
    with progress(doing, images.count) as bar:
        for turn, batch in enumerate(images.batches(batch_size, rank)):
            first = (turn * rank.count + rank.index) * batch_size
            if len(batch):
                yield batch, torch.arange(first, first + len(batch))
            bar.update(min(len(batch) * rank.count, images.count - bar.n))


def progress(doing: str, images: int, shown: bool = True) -> Bar:
    """A bar of images, on the first rank."""
    hidden = not shown or current_rank().index > 0
    return Bar(total=images, unit="image", desc=doing, leave=False, disable=hidden)


def write_summary(path: Path, summary: FeatureSummary, provenance: dict[str, Any]) -> None:
    """An npz of plain arrays; the provenance is JSON in one of them."""
    arrays: dict[str, Any] = {"provenance": json.dumps(provenance), "count": summary.count}
    for suffix, gaussian in (("", summary.pooled), ("_s", summary.spatial)):
        if gaussian is not None:
            arrays[f"mu{suffix}"] = gaussian.mean.cpu().numpy()
            arrays[f"sigma{suffix}"] = gaussian.covariance.cpu().numpy()
    if summary.features is not None:
        arrays["features"] = summary.features.cpu().numpy()
    with as_user_error(f"The reference {path} cannot be written", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.savez(file, **arrays)


def read_summary(
    path: str, extractor: Extractor, image_size: ImageSize
) -> tuple[FeatureSummary, dict[str, Any]]:
    """A file of `write_summary`; a UserError where it is damaged, or of other features or sizes."""
    arrays = read_arrays(path, ARRAYS)
    kinds = (KeyError, ValueError, TypeError, OverflowError, RecursionError)
    with as_user_error(f"{path} is no whole file of reference statistics", *kinds):
        provenance = dict(json.loads(str(arrays["provenance"])))
        count = int(arrays["count"])
        pooled = _gaussian(arrays, "", count)
        spatial = _gaussian(arrays, "_s", count) if "mu_s" in arrays else None
    for key, wanted, option in (
        ("extractor", extractor.name, "--extractor"),
        ("preprocessing", extractor.preprocessing, "--extractor"),
        ("image_size", [*image_size], "--resize"),
    ):
        if (found := provenance.get(key)) != wanted:
            said = f"{path} is a reference of {key} {found}, but the images are evaluated"
            raise UserError(f"{said} with {wanted}; make both equal ({option}).")
    features = _numbers(arrays, "features") if "features" in arrays else None
    if features is not None and (features.dim() != 2 or features.shape[1] != len(pooled.mean)):
        raise UserError(f"{path}: features are {[*features.shape]}, not [N, {len(pooled.mean)}].")
    return FeatureSummary(pooled, spatial, features), provenance


def _gaussian(arrays: dict[str, np.ndarray], suffix: str, count: int) -> Gaussian:
    mean, covariance = (_numbers(arrays, f"{name}{suffix}").double() for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        said = f"mu{suffix} is {[*mean.shape]} and its sigma{suffix} {[*covariance.shape]}"
        raise UserError(f"The reference's {said}; they should be [D] and [D, D].")
    return Gaussian(mean, covariance, count)


def _numbers(arrays: dict[str, np.ndarray], name: str) -> Tensor:
    array = arrays[name]
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise UserError(f"The reference's {name} holds {array.dtype} that are no finite numbers.")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
