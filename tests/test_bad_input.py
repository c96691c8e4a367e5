"""What a user gets wrong ends in one clear sentence, exit status 2, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lgpl.cli import main
from tests.conftest import CONDITION, TINY, TINY_GENERATOR, TINY_TOKENIZER, Chain
from tests.shards import samples, write_shard

Fails = Callable[..., str]
SILENT = ("size", "prefix_rope", "grid")  # options that no shape shows, size in its heads
FIT_TOKENIZER = ["fit", "-c", "configs/tokenizer/emoji.yaml", *TINY, *TINY_TOKENIZER]


def fit_stage2(chain: Chain, *options: str) -> list[str]:
    return [
        *("fit", "-c", "configs/generator/emoji_stage2.yaml", *TINY, *TINY_GENERATOR),
        *("--data.train", f"{chain.codes}/train-*.tar", "--data.val", f"{chain.codes}/val-*.tar"),
        *("--model.init_args.tokenizer", chain.tokenizer, "--model.init_args.init_from", "null"),
        *("--trainer.logger", "false", *options),
    ]


def test_pattern_that_matches_nothing(fails: Fails) -> None:
    said = fails(*FIT_TOKENIZER, "--data.train", "data/emoji/nothing-*.tar")
    assert said.startswith("data.train: 'data/emoji/nothing-*.tar' matches no file")


def test_shards_without_a_usable_sample(fails: Fails, tmp_path: Path) -> None:
    def fit(path: str, *options: str) -> str:
        return fails(*FIT_TOKENIZER, "--data.train", path, "--trainer.logger", "false", *options)

    (tmp_path / "empty.tar").write_bytes(b"")
    assert "empty.tar holds no samples" in fit(str(tmp_path / "empty.tar"))
    (tmp_path / "text.tar").write_text("this is no tar file " * 100)
    assert "text.tar is damaged" in fit(str(tmp_path / "text.tar"))
    broken = write_shard(tmp_path / "broken.tar", [{"__key__": "a", "jpg": b"x", "txt": b"y"}])
    assert "image that does not decode" in fit(broken)
    assert "image that does not decode" in fit(broken, "--data.num_workers", "1")
    uncaptioned: list[dict[str, Any]] = samples(4)
    for sample in uncaptioned:
        del sample["txt"]
    shard = write_shard(tmp_path / "uncaptioned.tar", uncaptioned)
    assert "sample without its caption (.txt)" in fit(shard)


def test_global_batch_that_does_not_divide(fails: Fails) -> None:
    parts = ("--data.global_batch", "32", "--model.init_args.accumulate", "3")
    said = fails(*FIT_TOKENIZER, *parts, "--trainer.logger", "false")
    assert said == "data.global_batch: 32 does not divide by 1 ranks x 3 accumulated batches."


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("trainer", ["gpu", "ddp", "fsdp", "multinode"])
def test_no_gpu(fails: Fails, trainer: str) -> None:
    said = fails(*FIT_TOKENIZER, "-c", f"configs/trainer/{trainer}.yaml")
    assert said.startswith("trainer.accelerator: gpu, but torch finds no GPU here")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("devices", "0", "--trainer.devices must be auto, or a number >= 1"),
        ("gradient_clip_val", "1.0", "--trainer.gradient_clip_val: the tokenizer's steps are its"),
        ("accumulate_grad_batches", "2", "--trainer.accumulate_grad_batches: the tokenizer's"),
        ("barebones", "true", "--trainer.barebones: true leaves out the logger"),
        ("accelerator", "cup", "--trainer.accelerator: cup is none that Lightning has; did you"),
        ("strategy", "dpp", "--trainer.strategy: dpp is none that Lightning has; did you mean ddp"),
        ("devices", "two", "--trainer.devices must be auto, or a number >= 1"),
        ("val_check_interval", "0", "--trainer.val_check_interval must be > 0, got 0"),
    ],
)
def test_trainer_that_contradicts_itself(
    fails: Fails, option: str, value: str, said: str, tmp_path: Path
) -> None:
    into = ("--trainer.logger.init_args.save_dir", str(tmp_path))
    assert fails(*FIT_TOKENIZER, *into, f"--trainer.{option}", value).startswith(said)


def test_a_run_is_not_overwritten(fails: Fails, chain: Chain) -> None:
    into = ("--trainer.logger.init_args.save_dir", str(chain.folder))
    said = fails(*FIT_TOKENIZER, *into)
    assert "holds the checkpoints of another run; go on with it by --ckpt_path" in said


def test_order_without_target_positions(fails: Fails, chain: Chain) -> None:
    order = "--model.init_args.transformer.init_args.order"
    said = fails(*fit_stage2(chain, f"{order}.start", "2", f"{order}.end", "4"))
    assert said == "order: random orders need target_positions; set it to true."


def test_codes_outside_the_codebook(fails: Fails, chain: Chain) -> None:
    small = ("--model.init_args.transformer.init_args.codebook_size", "8")
    said = fails(*fit_stage2(chain, *small, "--model.init_args.tokenizer", "null"))
    assert "No usable sample" in said and "codes outside 0 to 7" in said


def test_codes_of_another_grid(fails: Fails, chain: Chain) -> None:
    grid = ("--model.init_args.transformer.init_args.grid", "[4, 4]")
    assert "holds codes of the layout [8, 8, 1], but the model's" in fails(
        *fit_stage2(chain, *grid)
    )


def test_class_out_of_range(fails: Fails, chain: Chain) -> None:
    said = fails(
        *("fit", "-c", "configs/generator/cifar10.yaml", *TINY, *TINY_GENERATOR),
        *("--data.train", f"{chain.codes}/train-*.tar", "--data.val", f"{chain.codes}/val-*.tar"),
        *(f"{CONDITION}.num_classes", "0", "--trainer.logger", "false"),
        *("--model.init_args.tokenizer", chain.tokenizer),
    )
    assert "class outside" in said


def test_checkpoint_of_the_wrong_kind_or_size(fails: Fails, chain: Chain, tmp_path: Path) -> None:
    validate = [
        "validate",
        "-c",
        "configs/tokenizer/emoji.yaml",
        *TINY,
        "--trainer.logger",
        "false",
    ]
    tiny = [*validate, *TINY_TOKENIZER]
    assert "no such checkpoint" in fails(*tiny, "--ckpt_path", "nowhere.ckpt")
    assert "holds a generator, but a tokenizer is wanted" in fails(
        *tiny, "--ckpt_path", chain.stage2
    )
    assert "of different sizes" in fails(*validate, "--ckpt_path", chain.tokenizer)
    (tmp_path / "text.ckpt").write_text("hello")
    assert "is no checkpoint, or" in fails(*tiny, "--ckpt_path", str(tmp_path / "text.ckpt"))
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    assert "is no checkpoint of lgpl" in fails(*tiny, "--ckpt_path", str(tmp_path / "other.ckpt"))


def test_start_from_the_wrong_weights(fails: Fails, chain: Chain) -> None:
    init = "--model.init_args.init_from"
    assert "holds a tokenizer, but a generator is wanted" in fails(
        *fit_stage2(chain, init, chain.tokenizer)
    )
    wider = ("--model.init_args.transformer.init_args.size", "[2, 2, 64]")
    assert "of different sizes" in fails(*fit_stage2(chain, init, chain.stage1, *wider))
    assert "no such checkpoint" in fails(*fit_stage2(chain, init, "nowhere.ckpt"))


def test_start_from_another_attention_or_a_larger_grid(fails: Fails, chain: Chain) -> None:
    """Shapes alone would let these pass, and images would be noise."""
    start = ("--model.init_args.init_from", chain.stage2)
    size, rope, grid = (f"--model.init_args.transformer.init_args.{k}" for k in SILENT)
    assert "trained with heads 2, but the config's transformer has 1" in fails(
        *fit_stage2(chain, *start, size, "[2, 1, 32]")
    )
    assert "trained with prefix_rope identity, but the config's transformer has zero" in fails(
        *fit_stage2(chain, *start, rope, "zero")
    )
    assert "trained on a grid of 8x8, the config's is smaller, 4x4" in fails(
        *fit_stage2(chain, *start, grid, "[4, 4]")
    )


def test_checkpoint_with_other_weights(fails: Fails, chain: Chain, tmp_path: Path) -> None:
    content = torch.load(chain.stage1, weights_only=True)
    weights, path = content["state_dict"], tmp_path / "other.ckpt"
    start = fit_stage2(chain, "--model.init_args.init_from", str(path))
    torch.save({**content, "state_dict": weights | {"transformer.x": torch.zeros(1)}}, path)
    assert "other.ckpt has a weight that the config lacks: x" in fails(*start)
    del weights["transformer.norm.weight"]
    torch.save(content, path)
    assert "other.ckpt has no weight norm.weight" in fails(*start)


def test_folder_of_weights(fails: Fails, chain: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    main(["export", chain.tokenizer, "--out", str(folder)])
    weights_only = fails(*FIT_TOKENIZER, "--ckpt_path", str(folder))
    assert "holds weights and no run to go on with" in weights_only
    generator = fit_stage2(chain, "--model.init_args.init_from", str(folder))
    assert "holds a tokenizer, but a generator is wanted" in fails(*generator)
    other = ("--model.init_args.transformer.init_args.codebook_size", "128")
    misfit = fit_stage2(chain, *other, "--model.init_args.tokenizer", str(folder))
    assert "of 8x8 codes out of 128 do not belong together: the tokenizer" in fails(*misfit)

    validate = ("validate", "-c", "configs/tokenizer/emoji.yaml", *TINY, "--trainer.logger")
    evaluate = [*validate, "false", "--ckpt_path", str(folder)]
    assert "of different sizes" in fails(*evaluate)
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert "model.safetensors is missing or damaged" in fails(*evaluate, *TINY_TOKENIZER)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in fails(*evaluate)
    (folder / "config.json").write_text("{}")
    assert "is no checkpoint of lgpl" in fails(*evaluate)
    assert "no such checkpoint" in fails(*evaluate[:-1], str(tmp_path))


def test_images_of_another_grid(fails: Fails, chain: Chain) -> None:
    images = ("--data.fields", '["image", "caption"]', "--data.image_size", "32")
    shards = ("--data.train", "data/emoji/train-*.tar.gz", "--data.val", "data/emoji/val-*.tar.gz")
    said = fails(*fit_stage2(chain, *shards, *images))
    assert "images of 32x32 pixels have codes of 4x4, the generator is for 8x8" in said


def test_tokenizer_that_does_not_belong(fails: Fails, chain: Chain) -> None:
    other = ("--model.init_args.transformer.init_args.codebook_size", "128")
    said = fails(*fit_stage2(chain, *other))
    assert "a generator of 8x8 codes out of 128 do not belong together" in said
    assert said.endswith("the tokenizer has 8x8 codes out of 64.")
    assert "holds a generator, but a tokenizer is wanted" in fails(
        *fit_stage2(chain, "--model.init_args.tokenizer", chain.stage1)
    )


def test_sample(fails: Fails, chain: Chain, tmp_path: Path) -> None:
    def sample(*options: str, out: str = "a.png") -> str:
        return fails("sample", "--checkpoint", chain.stage2, "--out", str(tmp_path / out), *options)

    assert "The prompt '' is empty" in sample("--prompt", "")
    assert "tokens; the limit is 12" in sample("--prompt", "word " * 30)
    assert sample() == "The checkpoint takes --prompt; give one at least."
    assert sample("--label", "3") == "The checkpoint takes --prompt, not --label."
    assert "top_k must be >= 0, got -1" in sample("--prompt", "a", "--top-k", "-1")
    assert "--guidance: Expected a float" in sample("--prompt", "a", "--guidance", "much")
    assert "guidance must be finite, got inf" in sample("--prompt", "a", "--guidance", ".inf")
    assert f"--seed must be from 0 to 2**63 - 1, got {2**64}" in sample(
        "--prompt", "a", "--seed", str(2**64)
    )
    assert "--count must be >= 1, got 0" in sample("--prompt", "a", "--count", "0")
    assert "--columns must be >= 1, got 0" in sample("--prompt", "a", "--columns", "0")
    assert "no ending of an image" in sample("--prompt", "a", out="image")
    assert "no ending of an image in colours" in sample("--prompt", "a", out="image.xbm")
    assert "--device: nowhere cannot be used" in sample("--prompt", "a", "--device", "nowhere")
    assert "cannot be read as text" in sample("--prompts", str(tmp_path / "none.txt"))
    (tmp_path / "blank.txt").write_text("\n \n")
    assert "holds no prompts" in sample("--prompts", str(tmp_path / "blank.txt"))
    said = fails("sample", "--checkpoint", chain.tokenizer, "--prompt", "a", "--out", "a.png")
    assert "holds a tokenizer, but a generator is wanted" in said
    said = sample("--prompt", "a", "--tokenizer", str(tmp_path / "gone.ckpt"))
    assert "gone.ckpt: no such checkpoint" in said
    assert not list(tmp_path.glob("*.png"))


def test_a_generator_does_not_encode(fails: Fails, chain: Chain, tmp_path: Path) -> None:
    said = fails(
        *("predict", "-c", "configs/generator/emoji_stage2.yaml", *TINY, *TINY_GENERATOR),
        *("-c", "configs/tokenizer/encode_emoji.yaml", "--ckpt_path", chain.stage2),
        *("--model.init_args.init_from", "null", "--model.init_args.tokenizer", chain.tokenizer),
        *("--trainer.callbacks.init_args.out", str(tmp_path)),
    )
    assert said == "Only a tokenizer encodes: give a tokenizer's config and checkpoint."


def test_two_sources_for_one_code_shard(fails: Fails, chain: Chain, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "0.tar", samples(1))
    said = fails(
        *("predict", "-c", "configs/tokenizer/emoji.yaml", *TINY_TOKENIZER),
        *("-c", "configs/tokenizer/encode_emoji.yaml", "--ckpt_path", chain.tokenizer),
        *("--data.predict", str(tmp_path / "*/0.tar")),
        *("--trainer.callbacks.init_args.out", str(tmp_path / "codes")),
    )
    assert "several shards would be written as" in said


def test_size_that_the_tokenizer_cannot_take(fails: Fails) -> None:
    said = fails(*FIT_TOKENIZER, "--data.image_size", "60", "--trainer.logger", "false")
    assert "both sides must be multiples of 8" in said


def test_text_encoder_that_reads_more_than_the_prefix_holds(fails: Fails, chain: Chain) -> None:
    longer = (f"{CONDITION}.encoder.init_args.max_length", "50")
    said = fails(*fit_stage2(chain, *longer, "--data.fields", '["codes", "caption"]'))
    assert said == "condition.encoder.max_length: 50 is above the condition's length, 12."


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_forgotten_checkpoint(fails: Fails, command: str) -> None:
    """Figures and codes of random weights would look like real ones."""
    said = fails(command, "-c", "configs/tokenizer/emoji.yaml")
    assert said.startswith("--ckpt_path is not set")


@pytest.mark.parametrize(
    ("config", "option", "said"),
    [
        ("fsq", ("levels", "[8, 2]"), "levels: [8, 2] must hold a number of at least 3 for each"),
        ("bsq", ("bits", "36"), "bits: 36 is outside 1 to 24."),
    ],
)
def test_a_class_refuses_its_arguments(
    fails: Fails, config: str, option: tuple[str, str], said: str
) -> None:
    name, value = option
    quantizer = "--model.init_args.autoencoder.init_args.quantizer.init_args"
    message = fails(
        *("fit", "-c", "configs/tokenizer/emoji.yaml", *("--trainer.logger", "false")),
        *("-c", f"configs/tokenizer/quantizer/{config}.yaml", f"{quantizer}.{name}", value),
    )
    assert message.startswith(said)
