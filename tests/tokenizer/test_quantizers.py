"""Every quantizer: codes and back, gradients, training; and what each promises by itself."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lgpl.cli import main
from lgpl.data import ShardDataModule
from lgpl.data.transforms import normalize
from lgpl.errors import UserError
from lgpl.tokenizer import BSQ, FSQ, IBQ, Quantizer, TokenizerModule, VectorQuantizer, VQModel
from lgpl.tokenizer.quantizers.base import entropy_loss
from lgpl.training import load_module
from tests.conftest import TINY, logs
from tests.shards import EMOJI_VAL

QUANTIZERS = {
    "VQ": lambda: VectorQuantizer(128, 8),
    "VQ-euclidean": lambda: VectorQuantizer(128, 8, l2_norm=False),
    "VQ-entropy": lambda: VectorQuantizer(128, 8, entropy_weight=0.1),
    "VQ-rotation": lambda: VectorQuantizer(128, 8, gradient="rotation"),
    "VQ-euclidean-rotation": lambda: VectorQuantizer(128, 8, l2_norm=False, gradient="rotation"),
    "FSQ": lambda: FSQ((8, 5, 5, 5)),
    "BSQ": lambda: BSQ(10),
    "IBQ": lambda: IBQ(128, 32),
}

WITHOUT_LPIPS = "model: {init_args: {loss: {init_args: {perceptual: null}}}}"  # half of the time


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    return QUANTIZERS[request.param]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_round_trip(quantizer: Quantizer, dtype: torch.dtype) -> None:
    z = torch.randn(3, quantizer.dim, 4, 5).to(dtype)
    quantized = quantizer(z)
    assert quantized.codes.shape == (3, 4, 5) and quantized.codes.dtype == torch.int64
    assert quantized.codes.min() >= 0 and quantized.codes.max() < quantizer.codebook_size
    assert quantized.z.dtype == torch.float32 and len(quantized.codes.unique()) > 20
    assert torch.equal(quantizer.lookup(quantized.codes), quantized.z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).codes, quantized.codes)
        assert torch.equal(quantizer(z).z, quantized.z)


# Not so of FSQ, which bounds what it gets, nor of IBQ, whose longest vectors attract the others.
@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS.keys() - {"FSQ", "IBQ"}), indirect=True)
def test_code_vectors_have_their_own_codes(quantizer: Quantizer) -> None:
    codes = quantizer(torch.randn(3, quantizer.dim, 4, 5)).codes
    assert torch.equal(quantizer(quantizer.lookup(codes)).codes, codes)


def test_gradients_reach_input_and_codebook(quantizer: Quantizer) -> None:
    z = torch.randn(3, quantizer.dim, 4, 5, requires_grad=True)
    quantized = quantizer(z)
    (quantized.z * torch.randn_like(z)).sum().backward(retain_graph=True)
    assert z.grad is not None and (z.grad.flatten(2).abs().sum(1) > 0).all()
    if quantized.loss.requires_grad:  # FSQ has none of its own
        quantized.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())


@pytest.mark.parametrize("name", ["emoji", "rotation", "fsq", "bsq", "ibq"])
def test_training_on_the_emoji(name: str, tmp_path: Path) -> None:
    """By the configs as they stack; then codes of the checkpoint decode to its reconstructions."""
    stacked = [] if name == "emoji" else ["-c", f"configs/tokenizer/quantizer/{name}.yaml"]
    (tmp_path / "quick.yaml").write_text(WITHOUT_LPIPS)
    autoencoder = "--model.init_args.autoencoder.init_args"
    main(
        [
            *("fit", "-c", "configs/tokenizer/emoji.yaml", *stacked, *TINY, *logs(tmp_path)),
            *("-c", str(tmp_path / "quick.yaml")),
            *(f"{autoencoder}.width", "32", f"{autoencoder}.z_channels", "32"),
            *("--model.init_args.schedule.warmup", "0"),
            *("--data.epoch_samples", "192", "--trainer.max_epochs", "1"),
            *("--trainer.num_sanity_val_steps", "0"),
        ]
    )
    events = EventAccumulator(str(tmp_path / "tokenizer"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    usage = events.Scalars("val/usage")[-1].value
    assert 2 / 1024 <= usage <= 1 and events.Scalars("train/usage")[-1].value > 0.02
    assert 1 < events.Scalars("val/perplexity")[-1].value <= 1024 * usage

    module = load_module(tmp_path / "tokenizer/checkpoints/last.ckpt", "tokenizer")
    assert isinstance(module, TokenizerModule)
    model = module.autoencoder
    data = ShardDataModule(predict=EMOJI_VAL, image_size=64, eval_batch_size=4)
    data.setup("predict")
    image = normalize(next(iter(data.predict_dataloader()))["image"])
    assert model.quantizer.codebook_size == 1024
    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(image)), model(image)[0])


@pytest.mark.parametrize("quantizer", [FSQ((8, 5, 4, 3)), BSQ(9)], ids=["FSQ", "BSQ"])
def test_every_code_is_reached_and_is_its_own(quantizer: FSQ | BSQ) -> None:
    line = torch.linspace(-4, 4, 33) if isinstance(quantizer, FSQ) else torch.tensor([-1.0, 1.0])
    z = torch.tensor(list(itertools.product(line.tolist(), repeat=quantizer.dim)))
    codes = quantizer(z.T.view(1, quantizer.dim, -1, 1)).codes.flatten()
    assert torch.equal(codes.unique(), torch.arange(quantizer.codebook_size))
    vectors = quantizer.lookup(codes.unique().view(1, -1, 1)).flatten(2)[0].T
    assert len(vectors.unique(dim=0)) == quantizer.codebook_size


def test_fsq_keeps_zero_and_stays_within_its_levels() -> None:
    quantizer = FSQ((8, 5))
    assert not quantizer(torch.zeros(1, 2, 1, 1)).z.any()
    z = torch.linspace(-6, 6, 100001)
    bounded = quantizer._bound(torch.stack((z, z), -1))
    assert bounded[:, 0].min() > -4 and bounded[:, 0].max() < 3
    assert bounded[:, 1].abs().max() < 2
    values = quantizer(torch.stack((z, z)).view(1, 2, -1, 1)).z[0, :, :, 0]
    assert values[0].unique().tolist() == [i / 4 for i in range(-4, 4)]
    assert values[1].unique().tolist() == [-1, -0.5, 0, 0.5, 1]


def test_bsq_is_the_nearest_corner_on_the_sphere() -> None:
    torch.manual_seed(0)
    quantizer = BSQ(6)
    corners = quantizer.lookup(torch.arange(64).view(1, 64, 1))[0, :, :, 0].T  # [64, 6]
    assert torch.allclose(corners.norm(dim=-1), torch.ones(64))
    z = torch.randn(1, 6, 10, 10)
    scores = F.normalize(z.permute(0, 2, 3, 1), dim=-1) @ corners.T
    assert torch.equal(quantizer(z).codes, scores.argmax(-1))


def test_bsq_entropy_of_bits_is_that_of_codes() -> None:
    """Of each choice always; of the mean where the bits are independent, as over all signs."""
    quantizer = BSQ(5, entropy_weight=1.0, temperature=0.2)
    corners = quantizer.lookup(torch.arange(32).view(1, 32, 1))[0, :, :, 0].T
    u = F.normalize(corners * torch.rand(5, generator=torch.manual_seed(0)), dim=-1)
    of_codes = entropy_loss(F.log_softmax(u @ corners.T / quantizer.temperature, -1))
    of_bits = quantizer(u.T.view(1, 5, 32, 1)).loss
    assert of_bits.item() == pytest.approx(of_codes.item(), abs=1e-3) and of_bits < -0.1


def test_entropy_is_low_for_certain_and_even_choices() -> None:
    def loss(p: list[list[float]]) -> float:
        return entropy_loss(torch.tensor(p).clamp(min=1e-9).log()).item()

    even, lopsided, uncertain = [[1.0, 0], [0, 1]], [[1.0, 0], [1, 0]], [[0.5, 0.5]] * 2
    assert loss(even) == pytest.approx(-0.6931, abs=1e-3)
    assert loss(lopsided) == pytest.approx(0, abs=1e-3)
    assert loss(uncertain) == pytest.approx(0, abs=1e-3)


def test_ibq_gradient_is_that_of_the_choice() -> None:
    """As of one-hot + p - sg p times the codebook; so each code learns, chosen or not."""
    torch.manual_seed(0)
    quantizer, z = IBQ(32, 8), torch.randn(2, 8, 3, 3, requires_grad=True)
    gradient, weight = torch.randn(2, 8, 3, 3), quantizer.codebook.weight
    quantized = quantizer(z)
    ours = torch.autograd.grad(quantized.z, (z, weight), gradient)
    logits = z.permute(0, 2, 3, 1) @ weight.T
    p, hard = logits.softmax(-1), F.one_hot(logits.argmax(-1), 32)
    z_q = ((hard + p - p.detach()) @ weight).permute(0, 3, 1, 2)
    expected = torch.autograd.grad(z_q, (z, weight), gradient)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, expected, strict=True))
    assert (ours[1].abs().sum(-1) > 0).all() and len(quantized.codes.unique()) < 18


def angle(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=1)


@pytest.mark.parametrize("rotation", [False, True])
def test_rotation_keeps_the_angle_between_gradient_and_vector(rotation: bool) -> None:
    """And scales it by |q| / |e| (arXiv 2410.06424); the straight-through gradient does neither."""
    torch.manual_seed(0)
    way = "rotation" if rotation else "straight-through"
    quantizer = VectorQuantizer(64, 8, l2_norm=False, gradient=way)  # type: ignore[arg-type]
    torch.nn.init.normal_(quantizer.codebook.weight)
    z, gradient = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 8, 4, 4)
    z_q = quantizer(z).z
    (at_z,) = torch.autograd.grad(z_q, z, gradient)
    kept = torch.allclose(angle(at_z, z), angle(gradient, z_q), atol=1e-5)
    ratio = z_q.norm(dim=1) / z.norm(dim=1)
    scaled = torch.allclose(at_z.norm(dim=1), gradient.norm(dim=1) * ratio, rtol=1e-4)
    assert kept == scaled == rotation


def test_rotation_of_opposite_vectors_is_finite() -> None:
    quantizer = VectorQuantizer(1, 4, l2_norm=False, gradient="rotation")
    z = -quantizer.codebook.weight.detach().view(1, 4, 1, 1).requires_grad_()
    (at_z,) = torch.autograd.grad(quantizer(z).z.sum(), z)
    assert at_z.isfinite().all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: FSQ((8, 2)), r"levels: \[8, 2\] must hold a number of at least 3"),
        (lambda: FSQ(()), r"levels: \[\] must hold"),
        (lambda: BSQ(0), "bits: 0 is outside 1 to 24"),
        (lambda: BSQ(36), "bits: 36 is outside 1 to 24"),
    ],
)
def test_sizes_that_make_no_codebook(build: type[Quantizer], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build()


def test_fingerprint_tells_quantizers_of_the_same_shape_apart() -> None:
    def fingerprint(quantizer: Quantizer) -> str:
        torch.manual_seed(0)
        return VQModel(quantizer, (1, 1), width=32, blocks=1, z_channels=32).fingerprint()

    quantizers = [FSQ((8, 4)), FSQ((4, 8)), BSQ(2)]
    assert len({fingerprint(quantizer) for quantizer in quantizers}) == 3
    assert fingerprint(FSQ((8, 4))) == fingerprint(FSQ((8, 4)))


def test_nearest_code_wins() -> None:
    quantizer = VectorQuantizer(64, 4)
    vectors = quantizer.vectors().detach()
    near = (vectors[10] * 3 + 0.01).view(1, 4, 1, 1)  # the direction counts, not the length
    assert quantizer(near).codes.item() == 10


def test_kmeans_start_and_revival_use_the_whole_codebook() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 4, kmeans_iterations=10, revive_after=3)
    centres = torch.nn.functional.normalize(torch.randn(64, 4), dim=-1)

    def features() -> torch.Tensor:
        z = centres[torch.randint(64, (2, 16, 16))] + 0.02 * torch.randn(2, 16, 16, 4)
        return z.permute(0, 3, 1, 2)

    used = []
    for _ in range(30):
        z = features()
        codes = quantizer(z).codes
        used.append(len(codes.unique()) / 64)
        quantizer.observe(z, codes)
    assert used[0] < 0.9  # the uniform start leaves codes out
    assert max(used[-5:]) > 0.95


def test_revival_replaces_only_dead_codes() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4, revive_after=2)
    z = quantizer.lookup(torch.zeros(1, 2, 2, dtype=torch.int64)).detach()
    before = quantizer.codebook.weight.clone()
    assert quantizer.observe(z, quantizer(z).codes) == {"revived": 0.0}
    assert quantizer.observe(z, quantizer(z).codes) == {"revived": 7.0}
    changed = (quantizer.codebook.weight != before).any(-1)
    assert changed.tolist() == [False] + [True] * 7


def test_kmeans_of_too_few_features() -> None:
    quantizer = VectorQuantizer(64, 4, kmeans_iterations=1)
    z = torch.randn(1, 4, 2, 2)
    with pytest.raises(UserError, match=r"codebook_size = 64 features .* holds 4"):
        quantizer.observe(z, quantizer(z).codes)


def test_fingerprint_covers_buffers_classes_and_settings() -> None:
    class Own(VectorQuantizer):
        pass

    def model(quantizer: Quantizer) -> VQModel:
        torch.manual_seed(0)
        return VQModel(quantizer, (1, 1), width=32, blocks=1, z_channels=32)

    def quantizer(kind: type[VectorQuantizer] = VectorQuantizer, **options: Any) -> Quantizer:
        torch.manual_seed(0)
        return kind(16, 4, **options)

    plain, other = model(quantizer()), model(quantizer())
    assert plain.fingerprint() == other.fingerprint()
    other.decoder.conv_out.weight.data += 1  # makes no codes
    assert plain.fingerprint() == other.fingerprint()
    other.quantizer.register_buffer("shift", torch.ones(()))
    changed = [other, model(quantizer(Own)), model(quantizer(l2_norm=False))]
    assert plain.fingerprint() not in {one.fingerprint() for one in changed}
