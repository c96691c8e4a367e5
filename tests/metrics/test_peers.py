"""Metrics against the field's own packages, on the same features.

scikit-learn and prdc stand in the development environment. The others ask for torchvision, which
has no build for a CPU beside the pinned torch: `make test-peers` makes an environment with both.
"""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lgpl.data.transforms import lanczos_crop, to_uint8
from lgpl.errors import UserError
from lgpl.metrics import Inception
from lgpl.metrics.comparison import frechet_distance, kernel_distance, precision_recall
from lgpl.metrics.extractors import CleanInception, clean_resize
from lgpl.metrics.summary import StreamedInceptionScore
from lgpl.tokenizer.perceptual import LPIPS
from tests.metrics.test_metrics import clouds, gaussian
from tests.metrics.test_pairs import smooth


def peer(name: str) -> Any:
    # RuntimeError: a torchvision of another build than torch's.
    return pytest.importorskip(name, exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]


REAL, FAKE = clouds(400, 64, 0), clouds(300, 64, 1, 0.3)


def test_kernel_distance_against_scikit_learns_kernel() -> None:
    kernel = peer("sklearn.metrics.pairwise").polynomial_kernel
    x, y = REAL[:300].double().numpy(), FAKE.double().numpy()
    off_diagonal = ~np.eye(300, dtype=bool)
    within = sum(kernel(a, degree=3)[off_diagonal].mean() for a in (x, y))
    expected = within - 2 * kernel(x, y, degree=3).mean()
    assert expected > 0.1
    assert kernel_distance(REAL[:300], FAKE) == pytest.approx(expected, rel=1e-3)


def test_against_torch_fidelity() -> None:
    peer("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    statistics = [fid_features_to_statistics(each.double()) for each in (REAL, FAKE)]
    (fid,) = fid_statistics_to_metric(*statistics, verbose=False).values()
    assert frechet_distance(gaussian(REAL), gaussian(FAKE)) == pytest.approx(fid, rel=1e-3)

    quiet = {"verbose": False}
    one = {"kid_subsets": 1, "kid_subset_size": 300}  # all of both: the same subset as ours
    kid = kid_features_to_metric(REAL[:300].double(), FAKE.double(), **one, **quiet)
    expected = kid["kernel_inception_distance_mean"]
    assert kernel_distance(REAL[:300], FAKE) == pytest.approx(expected, rel=1e-3)
    many = kid_features_to_metric(REAL, FAKE, kid_subset_size=200, kid_subsets=100, **quiet)
    found = kernel_distance(REAL, FAKE, subsets=100, size=200)  # another rng
    spread = many["kernel_inception_distance_std"] / 100**0.5
    assert abs(found - many["kernel_inception_distance_mean"]) < 5 * spread

    logits = 3 * torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    metric = StreamedInceptionScore(12, 200)
    for part in torch.arange(200).split(7):
        metric.update(logits[part], part)
    score = isc_features_to_metric(logits, splits=10, shuffle=False)
    assert metric.compute() == pytest.approx(tuple(score.values()), rel=1e-3)

    manifolds = prc_features_to_metric(FAKE.double(), REAL.double(), **quiet)
    expected = manifolds["precision"], manifolds["recall"]
    assert precision_recall(REAL, FAKE) == pytest.approx(expected, rel=1e-3)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1


def test_against_clean_fid() -> None:
    fid = peer("cleanfid.fid")
    x, y = (each.double().numpy() for each in (REAL, FAKE))
    moments = [part for each in (x, y) for part in (each.mean(0), np.cov(each, rowvar=False))]
    found, expected = (
        frechet_distance(gaussian(REAL), gaussian(FAKE)),
        fid.frechet_distance(*moments),
    )
    assert found == pytest.approx(expected, rel=1e-3)
    expected = fid.kernel_distance(x[:300], y, num_subsets=1)
    assert kernel_distance(REAL[:300], FAKE) == pytest.approx(expected, rel=1e-3)


def test_the_preprocessing_of_coco30k_against_clean_fid() -> None:
    """Of real photographs of several shapes: to 256 px by Lanczos, from there to 299 in float."""
    make_resizer = peer("cleanfid.resize").make_resizer
    build_resizer = peer("cleanfid.resize").build_resizer
    photographs = [*Path("tests/data/photographs").glob("*.jpg")]
    photographs += Path(peer("sklearn.datasets").__file__).parent.glob("images/*.jpg")
    assert len(photographs) >= 4
    for path in photographs:
        image = Image.open(path).convert("RGB")
        width, height = image.size
        for shape in ((width, height), (height // 2, height), (301, 200)):
            whole = image.crop((0, 0, *shape))
            side = min(shape)
            left, top = round((shape[0] - side) / 2), round((shape[1] - side) / 2)
            middle = np.asarray(whole)[top : top + side, left : left + side]
            expected = make_resizer("PIL", True, "lanczos", (256, 256))(middle)
            ours = lanczos_crop(whole, (256, 256))
            assert np.array_equal(np.asarray(ours), expected)
            found = clean_resize(to_uint8(ours)[None])[0].permute(1, 2, 0).numpy()
            assert np.array_equal(found, build_resizer("clean")(expected))


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_against_torchmetrics(net: Any) -> None:
    """Its arithmetic and its file of linear heads, on the same backbone."""
    peer("torchvision")
    from torchmetrics.functional.image.lpips import _LPIPS

    ours, theirs = LPIPS(net), _LPIPS(net=net, pnet_rand=True)
    convs = [m for m in theirs.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for mine, other in zip(ours.convs, convs, strict=True):
        assert isinstance(mine, torch.nn.Conv2d) and mine.bias is not None
        other.weight.data.copy_(mine.weight)
        other.bias.data.copy_(mine.bias)
    a, b = smooth(4, 0), (smooth(4, 0) + 0.3 * smooth(4, 7)).clamp(-1, 1)
    with torch.no_grad():
        expected = theirs(a, b).flatten()
        assert ours(a, b).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert expected.min() > 0.01


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch-fidelity's Inception, its weights looked for in an empty folder and never fetched."""
    peer("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as port

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return port


NAME = "weights-inception-2015-12-05-6726825d.pth"


def test_inceptions_missing_weights_are_told_with_the_command(port: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / NAME
    with pytest.raises(
        UserError, match=r"cannot be fetched \(<urlopen error no network>\)"
    ) as failed:
        Inception()
    assert f"are not at {path}; fetch them with: curl -L --create-dirs -o {path} http" in str(
        failed.value
    )
    path.write_bytes(b"half of a download")
    with pytest.raises(UserError, match="does not hold the weights of FID's Inception") as failed:
        Inception()
    assert f"{path} does not hold" in str(failed.value) and "\n" not in str(failed.value)


def test_inceptions_spatial_features_are_adms(port: Any, tmp_path: Path) -> None:
    """`mixed_6/conv` of the graph: the 1x1 branch of the fourth 17 x 17 block; seven channels.

    The network is the real one, its weights are not: what is checked is which numbers are taken.
    """
    torch.manual_seed(0)
    drawn: dict[str, Any] = {}

    def randomly(self: Any, *_: Any, **__: Any) -> None:
        for name, tensor in self.state_dict().items():
            drawn[name] = tensor.uniform_(0.5, 1) if "running_var" in name else tensor

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(port, "load_state_dict_from_url", lambda *_, **__: None)
        patched.setattr(port.FeatureExtractorInceptionV3, "load_state_dict", randomly)
        port.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    torch.save(drawn, tmp_path / "checkpoints" / NAME)
    extractor = Inception()
    images = smooth(2, 3)
    found = extractor.features(images)
    assert found.pooled.shape == (2, 2048) and found.logits is not None
    assert found.logits.shape == (2, 1008)
    assert found.spatial is not None and found.spatial.shape == (2, 17 * 17 * 7)

    net = extractor.net
    x = images.add(1).mul(127.5).round()
    x = port.interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    x = net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3((x - 128) / 128)))
    x = net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
    x = net.Mixed_5d(net.Mixed_5c(net.Mixed_5b(F.max_pool2d(x, 3, 2))))  # mixed, _1 and _2
    x = net.Mixed_6c(net.Mixed_6b(net.Mixed_6a(x)))  # mixed_3, _4 and _5
    x = net.Mixed_6d(x)[:, :7]  # mixed_6, whose first channels are those of its 1x1 branch
    torch.testing.assert_close(found.spatial.view(2, 17, 17, 7), x.permute(0, 2, 3, 1))
    assert x.std() > 0

    # Of 299 px nothing is resized, so that both ways into the network have to agree.
    clean, whole = CleanInception(), F.interpolate(images, (299, 299), mode="bicubic")
    for one, other in zip(clean.features(whole), extractor.features(whole), strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
