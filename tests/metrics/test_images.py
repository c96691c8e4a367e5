"""Images from disk, references with their provenance, and everything that does not belong."""

from __future__ import annotations

import json
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.data.streams import Rank
from lgpl.errors import UserError
from lgpl.metrics import Inception, compute_metrics
from lgpl.metrics import npz as npz_files
from lgpl.metrics.extractors import Extractor, ModuleFeatures, resize
from lgpl.metrics.images import SampleFile, open_images
from lgpl.metrics.reference import read_summary, reference, summarise, write_summary
from tests.metrics.pixels import Pixels
from tests.shards import image_bytes, samples, write_shard, write_shards


def pixels(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), generator=rng).byte()


def npz(path: Path, images: torch.Tensor) -> str:
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy())
    return str(path)


def extractor() -> Extractor:
    return ModuleFeatures(Pixels())


def test_an_npz_is_read_as_numpy_writes_it(tmp_path: Path) -> None:
    images = pixels(50)
    for name, save in (("plain", np.savez), ("packed", np.savez_compressed)):
        theirs = str(tmp_path / f"{name}.npz")
        save(theirs, images.permute(0, 2, 3, 1).numpy(), np.arange(50))  # with labels, as ADM's
        source = open_images(theirs)
        assert (source.count, source.size) == (50, (16, 16))
        assert torch.equal(torch.cat([*source.batches(8)]), images)


def test_the_same_images_from_a_folder_and_an_npz(tmp_path: Path) -> None:
    images, folder = pixels(20), tmp_path / "images/deep"
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    source = open_images(str(tmp_path / "images"))
    assert torch.equal(torch.cat([*source.batches(6)]), images) and source.count == 20
    (folder / "100.png").write_bytes(image_bytes(0, (20, 20), "png"))
    with pytest.raises(UserError, match=r"100\.png is 20x20, the first image 16x16: give --im"):
        list(open_images(str(tmp_path / "images")).batches(6))
    (folder / "100.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"100\.png: image that does not decode"):
        list(open_images(str(tmp_path / "images")).batches(6))


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """Of an editor, of macOS; and a link to the folder itself ends."""
    folder = tmp_path / "images"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("0.png", ".ipynb_checkpoints/0-checkpoint.png"):
        (folder / name).write_bytes(image_bytes(0, kind="png"))
    (folder / "._0.png").write_bytes(b"\0\5\26\7")
    (folder / "all").symlink_to(".")
    assert open_images(str(folder)).count == 1


def test_images_need_not_be_square(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / f"images/{i}.jpg").write_bytes(image_bytes(i, (120, 80 + i)))
    (folder,) = open_images(str(tmp_path / "images"), (64, 96)).batches(3)
    (shard,) = open_images(write_shards(tmp_path, [3])[0], (64, 96)).batches(3)
    assert folder.shape == shard.shape == (3, 3, 64, 96)
    assert resize(folder, (32, 48)).shape == (3, 3, 32, 48)
    assert resize(folder, (64, 96)) is folder and resize(folder, (16, 16)).shape == (3, 3, 16, 16)
    write_shards(tmp_path, [60])
    _, known = reference(str(tmp_path / "*.tar"), extractor(), (64, 96), str(tmp_path / "cache"))
    assert known["image_size"] == [64, 96]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, r"must be uint8 \[N, H, W, 3\]"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, r"got float32 \[4, 8, 8, 3\]"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, "holds no arr_0"),
    ],
)
def test_an_npz_of_another_layout_is_refused(
    tmp_path: Path, content: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(UserError, match=said):
        open_images(str(tmp_path / "a.npz"))
    (tmp_path / "b.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be read as an npz"):
        open_images(str(tmp_path / "b.npz"))
    with pytest.raises(UserError, match="no images in this folder"):
        (tmp_path / "empty").mkdir()
        open_images(str(tmp_path / "empty"))


def zipped(path: Path, name: str, shape: Any, zeros: int, descr: str = "|u1") -> str:
    """An npz whose array claims a shape, and has so many bytes of zeros behind its header."""
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_2_0(file, header)
            for first in range(0, zeros, 2**20):
                file.write(bytes(min(2**20, zeros - first)))
    return str(path)


@pytest.mark.parametrize(
    ("shape", "zeros", "said"),
    [
        ((1, 2**13, 2**13, 3), 3 * 2**26, "would unpack to .* more than 100 times"),
        ((4000, 128, 128, 3), 4000 * 3 * 2**14, "would unpack to .* more than 100 times"),
        ((1, 2**11, 2**12, 3), 3 * 2**23, "should have 64 to 4194304 pixels"),
        ((2**32, 2**32, 1, 3), 100, "takes 55340232221128654848 bytes and has 100"),
        ((2**62, 8, 8, 3), 48, "takes .* bytes and has 48"),
        ((2**20, 1, 1, 3), 3 * 2**20, "should have 64 to 4194304 pixels"),
        ((2, 8, 8, 3), 100, "takes 384 bytes and has 100"),
        ((0, 0, 0, 3), 0, "should have 64 to 4194304 pixels"),
        ((-1, 8, 8, 3), 192, "cannot be read"),
    ],
)
def test_an_npz_is_measured_before_it_is_read(
    tmp_path: Path, shape: tuple[int, ...], zeros: int, said: str
) -> None:
    path = zipped(tmp_path / "a.npz", "arr_0", shape, zeros)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said):
        open_images(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        content = np.lib.format.magic(2, 0) + (2**31).to_bytes(4, "little") + b" " * 10**6
        archive.writestr("arr_0.npy", content)
    with pytest.raises(UserError, match="expected 2147483648 bytes got"):
        open_images(str(tmp_path / "a.npz"))


def test_of_statistics_only_known_arrays_of_bounded_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inception = extractor()
    inception.name = "inception"
    wide = zipped(tmp_path / "wide.npz", "mu", (2**12, 2**12), 8 * 2**24, "<f8")
    with zipfile.ZipFile(wide, "a") as archive:
        archive.writestr("sigma.npy", b"")
    with pytest.raises(UserError, match="would unpack to"):
        reference(wide, inception, (16, 16))
    stored = tmp_path / "stored.npz"
    np.savez(stored, mu=np.zeros(4), sigma=np.eye(4, order="F"))
    with zipfile.ZipFile(stored, "a") as archive:
        archive.writestr("other.npy", b"never looked at")
    summary, _ = reference(str(stored), inception, (16, 16))
    assert torch.equal(summary.pooled.covariance, torch.eye(4, dtype=torch.float64))
    for mu in (np.array(["a"] * 4), np.full(4, np.nan), np.zeros(4, complex)):
        np.savez(stored, mu=mu, sigma=np.eye(4))
        with pytest.raises(UserError, match=r"mu holds .* no finite numbers"):
            reference(str(stored), inception, (16, 16))
    np.savez(stored, mu=np.zeros(4), sigma=np.eye(4))
    monkeypatch.setattr(npz_files, "LARGEST_WHOLE", 100)
    with pytest.raises(UserError, match="sigma of 4x4 takes 128 bytes; no statistics are larger"):
        reference(str(stored), inception, (16, 16))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_told_by_its_name(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "a.npz"
    save(path, arr_0=pixels(60).permute(0, 2, 3, 1).numpy())
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],  # an interrupted copy
        whole[:2000] + bytes(3000) + whole[5000:],  # of the right length
        whole[:40] + bytes(100) + whole[140:],  # in the header of arr_0
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as failed:
            list(open_images(str(path)).batches(8))
        assert str(path) in str(failed.value) and "\n" not in str(failed.value)
    inception = extractor()
    inception.name = "inception"  # whose statistics come without images
    save(path, mu=np.zeros(48), sigma=np.random.default_rng(0).random((48, 48)))
    whole = path.read_bytes()
    half = len(whole) // 2
    for damaged in (whole[:half], whole[:half] + bytes(60) + whole[half + 60 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as failed:
            reference(str(path), inception, (16, 16))
        assert str(path) in str(failed.value) and "\n" not in str(failed.value)


@pytest.mark.parametrize("suffix", ["npz", "folder", "shards"])
def test_ranks_take_the_batches_in_turn(tmp_path: Path, suffix: str) -> None:
    path = npz(tmp_path / "a.npz", pixels(23))
    if suffix == "folder":
        path = str(tmp_path / "images")
        (tmp_path / "images").mkdir()
        for i, image in enumerate(pixels(23)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{path}/{i:02d}.png")
    elif suffix == "shards":
        write_shards(tmp_path / "shards", [9, 14])
        path = str(tmp_path / "shards/*.tar")
    images = open_images(path, (16, 16))
    alone = [*images.batches(4)]
    assert [len(batch) for batch in alone] == [4, 4, 4, 4, 4, 3]
    for rank in range(4):
        mine = [*images.batches(4, Rank(rank, 4))]
        wanted = alone[rank::4]
        assert len(mine) == len(wanted) and all(map(torch.equal, mine, wanted))


def test_a_reference_is_computed_once_and_kept_with_its_provenance(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [40, 30])
    cache = str(tmp_path / "cache")
    pattern = str(tmp_path / "shards/*.tar")
    made, provenance = reference(pattern, extractor(), (16, 16), cache, 8)
    (kept,) = Path(cache).glob("*.npz")
    assert provenance["images"] == made.count == 70 and provenance["extractor"] == "Pixels"
    assert [number for number, *_ in provenance["identity"]["shards"].values()] == [40, 30]
    assert provenance["crop"] == "centre, ADM's: halved by boxes, then bicubic"
    again, _ = reference(pattern, extractor(), (16, 16), cache, 32)
    assert compute_metrics(made, again, extractor())["FID[Pixels]"] < 1e-9
    assert [kept] == [*Path(cache).glob("*.npz")]
    reference(pattern, extractor(), (8, 8), cache, 32)
    assert len([*Path(cache).glob("*.npz")]) == 2
    write_shard(Path(shards[0]), samples(40, 5000))  # other images, as many
    reference(pattern, extractor(), (16, 16), cache, 32)
    assert len([*Path(cache).glob("*.npz")]) == 3
    named, _ = reference(str(kept), extractor(), (16, 16), cache)
    assert torch.equal(named.pooled.covariance, made.pooled.covariance)


def test_references_of_something_else_are_refused(tmp_path: Path) -> None:
    images = open_images(npz(tmp_path / "a.npz", pixels(60)))
    made = summarise(images, extractor(), 32, "a")
    path = tmp_path / "reference.npz"
    described = {"extractor": "Pixels", "preprocessing": "8 bit, [-1, 1]", "image_size": [16, 16]}
    write_summary(path, made, described)
    read_summary(str(path), extractor(), (16, 16))
    with pytest.raises(
        UserError, match=r"reference of image_size \[16, 16\], but the images are evaluated"
    ):
        reference(str(path), extractor(), (32, 32))
    other = extractor()
    other.name = "effnet-lite0"
    with pytest.raises(UserError, match=r"reference of extractor Pixels, but .* effnet-lite0"):
        reference(str(path), other, (16, 16))
    with pytest.raises(UserError, match=r"holds images of 16x16 px, the others have 32x32 px"):
        reference(str(tmp_path / "a.npz"), extractor(), (32, 32))
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r"for Pixels: .* mu and sigma, which serve --extractor"):
        reference(str(tmp_path / "adm.npz"), extractor(), (16, 16))
    np.savez(tmp_path / "else.npz", weights=np.zeros(3))
    with pytest.raises(UserError, match="no reference for Pixels: an npz of images has arr_0"):
        reference(str(tmp_path / "else.npz"), extractor(), (16, 16))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}]), sigma=np.eye(3), provenance="{}")
    with pytest.raises(UserError, match="cannot be read as an npz of plain arrays"):
        reference(str(tmp_path / "pickled.npz"), extractor(), (16, 16))


def test_neighbours_of_a_reference_come_from_all_over_it(tmp_path: Path) -> None:
    """A data set may be sorted by class: its first images are not a sample of it."""
    shades = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    images = open_images(npz(tmp_path / "sorted.npz", shades))
    found = [summarise(images, extractor(), 32, "a", neighbours=60).features for _ in range(2)]
    assert found[0] is not None and found[1] is not None and torch.equal(found[0], found[1])
    kept = found[0][:, 0].sort().values.add(1).mul(127.5)
    assert len(kept.unique()) == 60 and kept[15] < 80 and kept[45] > 120
    first = summarise(images, extractor(), 32, "a").features
    assert first is not None and torch.equal(first[:, 0], first[:, 0].sort().values)


def test_adm_reference_batches_are_read_as_they_are(tmp_path: Path) -> None:
    """Its mean and covariance are those of the whole data set, its images a part of it."""

    class Named(ModuleFeatures):
        """Stands in for Inception by name alone: what is read from the file is what counts."""

    named = Named(Pixels())
    named.name = Inception.name
    images = pixels(60)
    mu, sigma = np.full(48, 0.5), 2 * np.eye(48)
    path = str(tmp_path / "VIRTUAL_imagenet256_labeled.npz")
    np.savez(
        path, arr_0=images.permute(0, 2, 3, 1).numpy(), mu=mu, sigma=sigma,
        mu_s=np.zeros(7), sigma_s=np.eye(7),
    )  # fmt: skip
    found, provenance = reference(path, named, (16, 16), str(tmp_path / "cache"))
    assert torch.equal(found.pooled.mean, torch.tensor(mu)) and found.spatial is not None
    assert found.features is not None and found.features.shape == (60, 48)
    assert provenance["images"] == 60 and provenance["mu"].endswith("mu, sigma")
    made = summarise(open_images(path), named, 8, "samples")
    assert next(iter(compute_metrics(found, made, named))) == "FID"


def test_samples_go_on_where_they_stopped(tmp_path: Path) -> None:
    images, path = pixels(10), tmp_path / "samples.npz"
    file = SampleFile(path, {"seed": 0}, 10, (16, 16))
    file.write(0, images[:4])
    file.write(4, images[4:8])
    with file.partial.open("ab") as half:
        half.write(b"cut short")
    file = SampleFile(path, {"seed": 0}, 10, (16, 16))
    assert file.done == 8 and torch.equal(file.read(2, 5), images[2:5])
    file.write(8, images[8:])
    file.finish()
    assert np.array_equal(np.load(path)["arr_0"], images.permute(0, 2, 3, 1).numpy())
    assert torch.equal(torch.cat([*open_images(str(path)).batches(3)]), images)
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.half"))
    assert SampleFile(path, {"seed": 0}, 10, (16, 16)).done == 10
    assert SampleFile(path, {"seed": 1}, 10, (16, 16)).done == 0 and not path.exists()
    assert json.loads(Path(f"{path}.json").read_text())["seed"] == 1


def test_resizing_is_cubic_convolution_of_the_four_nearest() -> None:
    """Keys' kernel with a = -0.75, not widened for the smaller size; edges are repeated."""
    image, weights = pixels(1, 48), np.zeros((32, 48))
    for i in range(32):
        centre = (i + 0.5) * 48 / 32 - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x = abs(centre - j)
            near = 1.25 * x**3 - 2.25 * x**2 + 1
            far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[i, min(max(j, 0), 47)] += near if x <= 1 else far
    expected = (weights @ image[0].double().numpy() @ weights.T).clip(0, 255)
    assert np.abs(resize(image, 32)[0].double().numpy() - expected).max() <= 0.51
    assert resize(image, None) is image
