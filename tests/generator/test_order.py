"""Random orders annealed to raster, and normalised queries and keys."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.cli import main
from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, RandomOrder, Sampling, Transformer, generate
from lgpl.generator.conditions import Inputs
from lgpl.inference import load_generator
from tests.conftest import Chain, fit_generator
from tests.generator.test_decoders import LABELS
from tests.generator.test_transformer import small
from tests.models import text, transformer

CODES = torch.randint(16, (3, 12), generator=torch.Generator().manual_seed(0))
ORDER = RandomOrder(start=10, end=20)
FEATURES = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([0, 3, 5])
# A class model, and a text model with padded captions.
KINDS: dict[str, tuple[dict[str, Any], Inputs]] = {
    "class": ({}, LABELS),
    "text": ({"text_features": 6, "text_length": 5}, text(FEATURES, LENGTHS)),
}


def with_target(**options: Any) -> Transformer:
    """A model whose embedding of the target is no longer at zero."""
    model = small(target_positions=True, **options)
    assert model.target is not None
    torch.nn.init.normal_(model.target)
    return model


def test_share_of_shuffled_images_is_annealed() -> None:
    shares = {0: 1.0, 10: 1.0, 15: 0.5, 19: 0.1, 20: 0.0, 1000: 0.0}
    raster = torch.arange(12)
    for step, share in shares.items():
        assert ORDER.probability(step) == pytest.approx(share)
        orders = ORDER.draw(2000, 12, step, torch.device("cpu"))
        assert torch.equal(orders.sort(dim=1).values, raster.expand(2000, -1))
        shuffled = (orders != raster).any(dim=1).float().mean().item()
        assert shuffled == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_raster_is_one_of_the_orders(kind: str) -> None:
    options, inputs = KINDS[kind]
    model, raster = with_target(**options), torch.arange(12).expand(3, -1)
    torch.testing.assert_close(
        model(CODES, inputs, order=raster), model(CODES, inputs), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_logits_know_what_came_before_and_where_they_aim(kind: str) -> None:
    options, inputs = KINDS[kind]
    model = with_target(**options)
    order = RandomOrder(0, 1).draw(3, 12, 0, torch.device("cpu"))
    logits = model(CODES, inputs, order=order)
    changed = CODES.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 16
    again = model(changed, inputs, order=order)
    torch.testing.assert_close(again[:, :8], logits[:, :8])  # nothing of codes to come
    assert (again[:, 8:] != logits[:, 8:]).any(-1).all()
    aimed = order.clone()
    aimed[:, [7, 8]] = order[:, [8, 7]]
    again = model(CODES, inputs, order=aimed)
    torch.testing.assert_close(again[:, :7], logits[:, :7])
    assert (again[:, 7] != logits[:, 7]).any(-1).all()  # another place is asked for


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"qk_norm": True}, {}], ids=["qk_norm", "target"])
def test_sampling_takes_the_raster_logits(kind: str, options: dict[str, Any]) -> None:
    kind_options, inputs = KINDS[kind]
    model = with_target(**kind_options, **options)
    codes = generate(model, inputs, Sampling(temperature=0.0)).flatten(1)
    assert torch.equal(model(codes, inputs).argmax(-1), codes)


def test_normalised_heads_do_not_grow_with_the_weights() -> None:
    plain, normalised = small(), small(qk_norm=True)
    for model in (plain, normalised):
        before = model(CODES, LABELS)
        with torch.no_grad():
            for layer in model.layers:
                layer.attention.wqkv.weight[:64] *= 50  # queries and keys
        moved = (model(CODES, LABELS) - before).abs().max().item()
        assert (moved < 1e-2) == (model is normalised)


def test_only_training_is_shuffled() -> None:
    module = GeneratorModule(partial(with_target, order=RandomOrder(10, 20)))
    module.configure_model()
    batch = {"codes": CODES.view(3, 3, 4), **LABELS}
    module.eval()
    assert torch.equal(module.loss(batch), module.loss(batch))
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    module.model.condition.dropout = 0.0
    torch.manual_seed(0)
    first = module.loss(batch)
    assert not torch.equal(first, module.loss(batch))
    torch.manual_seed(0)
    assert torch.equal(first, module.loss(batch))


@pytest.mark.parametrize(("start", "end"), [(20, 20), (30, 20), (-1, 5)])
def test_no_range_of_steps(start: int, end: int) -> None:
    with pytest.raises(UserError, match=f"order: start {start} and end {end} are no range"):
        RandomOrder(start, end)


def test_paper_sizes_do_not_change() -> None:
    with torch.device("meta"):
        plain = sum(p.numel() for p in transformer("B", num_classes=1000).parameters())
        more = transformer("B", num_classes=1000, qk_norm=True, target_positions=True)
    assert sum(p.numel() for p in more.parameters()) == plain + 256 * 768 + 12 * 2 * 64


def test_fits_and_samples_by_command(chain: Chain, tmp_path: Path, fails: Any) -> None:
    """What the two recipes add is trained, drawn from, and has no place in LlamaGen's format."""
    fit_generator(
        tmp_path, "stage2", chain.tokenizer, chain.codes,
        "-c", "configs/generator/variant/rar.yaml",
        "-c", "configs/generator/variant/qk_norm.yaml", "--model.init_args.init_from", "null",
        "--model.init_args.transformer.init_args.order.start", "1",
        "--model.init_args.transformer.init_args.order.end", "3",
        "--model.init_args.transformer.init_args.prefix_rope", "zero",
    )  # fmt: skip
    checkpoint, out = tmp_path / "stage2/checkpoints/last.ckpt", tmp_path / "out.png"
    found = load_generator(str(checkpoint), None, "cpu")
    assert isinstance(found.model, Transformer) and found.model.order == RandomOrder(1, 3)
    assert found.model.target is not None and found.model.target.count_nonzero()  # starts at zero
    norms = [n for n, p in found.model.named_parameters() if "q_norm" in n and (p != 1).any()]
    assert len(norms) == 2  # of as many blocks, whose scales start at one
    main(["sample", "--checkpoint", str(checkpoint), "--prompt", "cat", "--out", str(out)])
    images = found.sample(found.model.condition.parse("cat"), Sampling(), [0])
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(to_image(images[0])))
    target = str(tmp_path / "llamagen.pt")
    said = fails("export", str(checkpoint), "--format", "llamagen", "--out", target)
    assert "cannot be written for LlamaGen: it has qk_norm, which LlamaGen's model has not" in said
