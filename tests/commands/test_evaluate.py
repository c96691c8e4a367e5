"""`lgpl evaluate`: one metric with all it depends on, and the same again for the same command."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgpl.cli import main
from lgpl.data.codecs import open_image
from lgpl.data.transforms import lanczos_crop, normalize
from lgpl.generator import GeneratorModule
from lgpl.metrics import CLIPScore
from lgpl.metrics.extractors import resize
from lgpl.metrics.images import open_images
from lgpl.metrics.protocols import read_prompts
from lgpl.training import load_module
from tests.conftest import ROOT, Chain
from tests.metrics.pretrained import clip
from tests.shards import EMOJI_TRAIN, EMOJI_VAL, image_bytes, write_shard

PIXELS = "tests.metrics.pixels.Pixels"


def evaluate(
    out: Path, kind: str, *options: str, extractor: str = PIXELS, reference: str = EMOJI_TRAIN
) -> Any:
    cache = str(out.parent / "cache")
    main(
        ["evaluate", kind, "--extractor", extractor, "--out", str(out), "--device", "cpu",
         *(() if kind == "reconstruction" else ("--reference", reference)),
         "--cache", cache, *options]
    )  # fmt: skip
    return json.loads(out.read_text())


def drawing(chain: Chain, *options: str) -> tuple[str, ...]:
    return ("--checkpoint", chain.stage2, "--prompts", EMOJI_VAL, "--images", "60", *options)


def test_generation(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz = tmp_path / "samples.npz"
    drawn = drawing(chain, "--guidance", "2", "--top-k", "8", "--seed", "5", "--batch-size", "16")
    one = evaluate(tmp_path / "one.json", "generation", *drawn, "--npz", str(npz))
    printed = capsys.readouterr().out
    assert "FID[Pixels]" in printed and "gfid, Pixels, N = 60" in printed
    assert one["protocol"] == "gfid" and one["extractor"] == "Pixels" and one["N"] == 60
    assert one["reference"]["source"] == EMOJI_TRAIN and one["reference"]["images"] == 1759
    settings = {"guidance": 2.0, "top_k": 8, "top_p": 1.0, "temperature": 1.0, "seed": 5}
    assert one.items() >= settings.items() and one["commit"] and one["versions"]["torch"]
    images = np.load(npz)["arr_0"]
    assert images.shape == (60, 64, 64, 3) and images.dtype == np.uint8
    assert len(np.unique(images.reshape(60, -1), axis=0)) > 30

    again = evaluate(tmp_path / "again.json", "generation", *drawn)
    assert again["metrics"] == one["metrics"]
    elsewhere = evaluate(tmp_path / "e.json", "generation", "--samples", str(npz))
    assert elsewhere["metrics"] == pytest.approx(one["metrics"])
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    loose = evaluate(tmp_path / "f.json", "generation", "--samples", str(folder))
    assert loose["metrics"] == pytest.approx(one["metrics"])


def test_a_sweep_is_a_table_and_a_plot(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("--guidance", "1", "3", "--top-k", "2", "0", "--temperature", "1", "2")
    reports = evaluate(tmp_path / "sweep.json", "generation", *drawing(chain, *sweep))
    found = [(one["guidance"], one["top_k"], one["temperature"]) for one in reports]
    assert found == list(itertools.product((1, 3), (2, 0), (1, 2)))
    fids = np.array([one["metrics"]["FID[Pixels]"] for one in reports]).reshape(2, 2, 2)
    for option in range(3):  # each of them changes the images
        assert (np.diff(fids, axis=option) != 0).any()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["guidance", "top_k", "temperature", "FID[Pixels]"]
    rows = [tuple(map(float, line.split()[:3])) for line in lines[1:9]]
    assert rows == found
    best = min(range(8), key=lambda i: reports[i]["metrics"]["FID[Pixels]"])
    assert [line.endswith("<- best") for line in lines[1:9]] == [i == best for i in range(8)]
    assert Image.open(tmp_path / "sweep.png").width > 500


def test_an_interrupted_evaluation_gives_no_metric_and_goes_on(
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    npz, drawn = tmp_path / "s.npz", []

    sample_codes = GeneratorModule.sample_codes

    def some(module: Any, inputs: Any, sampling: Any, seeds: list[int], *rest: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seeds)
        return sample_codes(module, inputs, sampling, seeds, *rest)

    options = drawing(chain, "--batch-size", "16")
    with monkeypatch.context() as patched:
        patched.setattr(GeneratorModule, "sample_codes", some)
        with pytest.raises(SystemExit) as stopped:
            evaluate(tmp_path / "a.json", "generation", *options, "--npz", str(npz))
        assert stopped.value.code == 130 and not npz.exists()
        assert not (tmp_path / "a.json").exists()
        said = capsys.readouterr().out
        assert "32 of 60 images were drawn: no metric is given; the same" in said
        drawn.clear()
        one = evaluate(tmp_path / "a.json", "generation", *options, "--npz", str(npz))
        assert drawn == [[*range(32, 48)], [*range(48, 60)]]
    whole = evaluate(tmp_path / "whole.json", "generation", *options)
    assert one["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)


# Gets a signal after its third batch.
KILLED = """
import os
from lgpl.cli import main
from lgpl.metrics.images import SampleFile

def write(*args, written=[], write=SampleFile.write):
    write(*args)
    written.append(1)
    if len(written) == 3:
        os.kill(os.getpid(), {kind})

SampleFile.write = write
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_in_the_middle_of_an_evaluation(
    chain: Chain, tmp_path: Path, kind: signal.Signals
) -> None:
    npz, out = tmp_path / "s.npz", tmp_path / "metrics.json"
    command = [
        *("evaluate", "generation", "--extractor", PIXELS),
        *("--reference", EMOJI_TRAIN, "--cache", str(tmp_path / "cache"), "--batch-size", "4"),
        *("--out", str(out), "--npz", str(npz), "--device", "cpu", *drawing(chain)),
    ]
    process = subprocess.run(
        [sys.executable, "-c", KILLED.format(kind=int(kind)), *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    said = "of 60 images were drawn: no metric is given" in process.stdout
    expected = (130, True) if kind == signal.SIGINT else (-signal.SIGKILL, False)
    assert (process.returncode, said) == expected
    assert not out.exists() and not npz.exists()
    assert Path(f"{npz}.partial").stat().st_size // (64 * 64 * 3) == 3 * 4
    main(command)
    whole = evaluate(tmp_path / "whole.json", "generation", *drawing(chain), "--batch-size", "4")
    assert json.loads(out.read_text())["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)


def test_reconstruction(chain: Chain, tmp_path: Path) -> None:
    options = ("--checkpoint", chain.tokenizer, "--data", EMOJI_VAL, "--image-size", "64")
    folder, npz = tmp_path / "images", tmp_path / "made/all.npz"
    written = ("--images", str(folder), "--npz", str(npz))
    one = evaluate(tmp_path / "one.json", "reconstruction", *options, *written, "--lpips", "alex")
    assert one["protocol"] == "rfid" and one["N"] == 93 and one["reference"]["source"] == EMOJI_VAL
    found = one["metrics"]
    assert found["FID[Pixels]"] > 0 and 0 < found["SSIM"] < 1 and found["LPIPS"] > 0
    assert 0 < found["codebook usage"] <= 1 < found["codebook perplexity"]
    half = evaluate(tmp_path / "half.json", "reconstruction", *options, "--resize", "32",
                    "--lpips", "none")  # fmt: skip
    assert "LPIPS" not in half["metrics"] and half["metrics"]["PSNR"] != found["PSNR"]
    # What was written is what was measured.
    again = evaluate(tmp_path / "again.json", "reconstruction", *options[2:], "--samples", str(npz))
    assert again["metrics"] == pytest.approx({k: found[k] for k in again["metrics"]}, rel=1e-6)
    pixels = np.load(npz)["arr_0"]
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{number:06d}.png" for number in range(93)]
    assert all((np.asarray(Image.open(f)) == p).all() for f, p in zip(files, pixels, strict=True))
    assert [file.name for file in npz.parent.iterdir()] == ["all.npz"]


def test_reconstructions_at_another_size_are_held_against_crops_of_that_size(
    chain: Chain, tmp_path: Path
) -> None:
    """What LlamaGen does of its 384 px: only what the model made is resized."""

    def save(name: str, images: list[torch.Tensor]) -> None:
        np.savez(tmp_path / name, arr_0=torch.cat(images).permute(0, 2, 3, 1).numpy())

    save("originals.npz", [*open_images(EMOJI_VAL, 64).batches(32)])
    module = load_module(chain.tokenizer, "tokenizer")
    rebuilt = []
    for batch in open_images(EMOJI_VAL, 96).batches(32):
        with torch.inference_mode():
            made, _ = module.autoencoder(normalize(batch))
        rebuilt.append(resize(made, (64, 64)))
    save("rebuilt.npz", rebuilt)
    by_hand = evaluate(
        tmp_path / "a.json", "reconstruction", "--data", str(tmp_path / "originals.npz"),
        "--samples", str(tmp_path / "rebuilt.npz"),
    )["metrics"]  # fmt: skip
    shards = ("--data", EMOJI_VAL, "--image-size", "96", "--resize", "64", "--lpips", "none")
    one = evaluate(tmp_path / "b.json", "reconstruction", "--checkpoint", chain.tokenizer, *shards)
    assert one["image_size"] == [96, 96] and one["resize"] == [64, 64] and "PSNR" in one["metrics"]
    assert {name: one["metrics"][name] for name in by_hand} == pytest.approx(by_hand, rel=1e-5)


def alone_and_on_two_ranks(folder: Path, *options: str) -> Iterator[tuple[Path, str]]:
    """The folder and the output of `lgpl evaluate` on one rank, and by torchrun on two."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for name, start in (("one", (sys.executable,)), ("two", (sys.executable, *torchrun))):
        out = folder / name
        run = subprocess.run(
            [*start, "-m", "lgpl.cli", "evaluate", *options, "--extractor", PIXELS,
             "--device", "cpu", "--out", f"{out}/metrics.json", "--npz", f"{out}/s.npz"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
            capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        yield out, run.stdout


@pytest.mark.slow
def test_two_ranks_generate_the_same_images_and_metrics(chain: Chain, tmp_path: Path) -> None:
    """Seven batches, the last of them short: one rank has one more than the other. They go on with
    what one rank had drawn of the second setting, of which an image is marked."""
    options = (
        *("--reference", EMOJI_TRAIN, "--cache", str(tmp_path / "cache"), "--batch-size", "9"),
        *drawing(chain, "--top-k", "8", "0"),
        *("--clip", clip(tmp_path / "tiny-clip")),
    )
    runs = alone_and_on_two_ranks(tmp_path, "generation", *options)
    one, alone = next(runs)
    drawn, resumed = (f"s-1.0-{top_k}-1.0-1.0.npz" for top_k in (8, 0))
    wanted = {name: np.load(one / name)["arr_0"] for name in (drawn, resumed)}
    wanted[resumed][3] = 255 - wanted[resumed][3]
    (tmp_path / "two").mkdir()
    (tmp_path / f"two/{resumed}.json").write_bytes((one / f"{resumed}.json").read_bytes())
    np.save(tmp_path / "begun.npy", wanted[resumed])  # whose last 38 images are cut off
    begun = (tmp_path / "begun.npy").read_bytes()[: -38 * 64 * 64 * 3]
    (tmp_path / f"two/{resumed}.partial").write_bytes(begun)

    ((two, together),) = runs
    for name, images in wanted.items():
        assert np.array_equal(np.load(two / name)["arr_0"], images)
    first, second = (json.loads((out / "metrics.json").read_text())[0] for out in (one, two))
    assert first["N"] == second["N"] == 60
    assert second["metrics"] == pytest.approx(first["metrics"], rel=1e-5)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert together.count("<- best") == alone.count("<- best") == 1


@pytest.mark.slow
def test_two_ranks_reconstruct_with_the_same_metrics(chain: Chain, tmp_path: Path) -> None:
    options = (
        *("--checkpoint", chain.tokenizer, "--data", EMOJI_VAL, "--image-size", "64"),
        *("--resize", "32", "--lpips", "none", "--batch-size", "20"),
    )
    runs = list(alone_and_on_two_ranks(tmp_path, "reconstruction", *options))
    folders = [out for out, _ in runs]
    pixels = [np.load(out / "s.npz")["arr_0"] for out in folders]
    assert len(pixels[0]) == 93 and (pixels[0] == pixels[1]).all()
    assert [p.name for p in folders[1].iterdir() if "partial" in p.name] == []
    one, two = (json.loads((out / "metrics.json").read_text()) for out in folders)
    assert one["N"] == two["N"] == 93 and two["metrics"] == pytest.approx(one["metrics"], rel=1e-5)


def test_few_images_have_all_metrics_but_fid(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, out = tmp_path / "few.npz", tmp_path / "a.json"
    np.savez(few, arr_0=np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8))
    common = ("--out", str(out), "--extractor", PIXELS, "--device", "cpu")
    neighbours = ("KID", "precision", "recall", "density", "coverage")
    for command in (
        ("generation", "--samples", str(few), "--reference", str(few)),
        ("generation", *drawing(chain), "--images", "8", "--reference", str(few)),
        ("reconstruction", "--checkpoint", chain.tokenizer, "--data", str(few), "--lpips", "none"),
    ):
        main(["evaluate", *command, *common, "--cache", str(tmp_path / "cache")])
        made = json.loads(out.read_text())
        assert {f"{name}[Pixels]" for name in neighbours} <= made["metrics"].keys()
        assert [*made["left_out"]] == ["FID[Pixels]"]
        assert "no FID[Pixels]: it needs at least 49 real" in capsys.readouterr().out
    assert {"PSNR", "SSIM"} <= made["metrics"].keys()


def test_images_of_mixed_sizes_name_an_option_of_the_command(
    chain: Chain, tmp_path: Path, fails: Callable[..., str]
) -> None:
    for number, size in enumerate([(40, 32), (32, 40)]):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes(number, size))
    common = ("--out", str(tmp_path / "a.json"), "--extractor", PIXELS, "--device", "cpu")
    for kind, options, wanted in (
        ("generation", ("--samples", str(tmp_path), "--reference", EMOJI_VAL), "--resize"),
        ("generation", ("--samples", EMOJI_VAL, "--reference", EMOJI_VAL), "--resize"),
        ("reconstruction", ("--data", str(tmp_path), "--samples", str(tmp_path)), "--image-size"),
        ("reconstruction", ("--data", EMOJI_VAL, "--samples", str(tmp_path)), "--image-size"),
    ):
        said = fails("evaluate", kind, *options, *common)
        assert f"give {wanted}" in said and not {"--resize", "--image-size"} - {wanted} <= {
            *said.replace(".", " ").split()
        }


def test_mistakes_are_named(
    chain: Chain, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", str(tmp_path / "a.json"), "--extractor", PIXELS, "--device", "cpu")
    common = ("evaluate", "generation", *out, "--reference", EMOJI_TRAIN)
    said = fails(*common)
    assert said == "Give either --checkpoint or --samples."
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    said = fails(*common, *drawing(chain), "--prompts", str(tmp_path / "prompts.txt"))
    assert f"line 2 of {tmp_path}/prompts.txt is empty" in said
    said = fails(*common, "--checkpoint", chain.stage2)
    assert said == "The checkpoint needs --prompts."
    said = fails("evaluate", "reconstruction", *out, "--checkpoint", chain.tokenizer,
                 "--data", EMOJI_VAL)  # fmt: skip
    assert "give --image-size" in said
    rebuilt = ("evaluate", "reconstruction", *out, "--data", EMOJI_VAL, "--image-size", "64")
    (tmp_path / "000007.png").write_bytes(image_bytes(1, kind="png"))
    model = ("--checkpoint", chain.tokenizer)
    said = fails(*rebuilt, *model, "--images", str(tmp_path))
    assert said == f"--images: {tmp_path} holds images already, 000007.png; empty it."
    said = fails(*rebuilt, *model, "--npz", str(tmp_path / "a.zip"))
    assert said == f"--npz: {tmp_path}/a.zip should end in .npz."
    said = fails(*rebuilt, "--samples", str(tmp_path), "--npz", "a.npz")
    assert said == "--npz: the reconstructions of --samples are made already."
    said = fails(*common, *drawing(chain), "--guidance", "1", "much")
    assert said == "--guidance: element 2: Expected a float, got much"
    few = tmp_path / "few.npz"
    np.savez(few, arr_0=np.zeros((20, 64, 64, 3), np.uint8))
    said = fails(*common, "--samples", str(few), "--out", str(few / "a.json"))
    assert f"{few}/a.json cannot be written" in said
    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda package: False)
    said = fails(*common, *drawing(chain), "--extractor", "inception")
    assert "FID's Inception needs torch-fidelity: pip install 'lgpl[fid]'" in said


def test_clip_scores_the_images_with_their_prompts(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    """Those that are drawn, those that a file has already, and those of a folder."""
    model, npz = clip(tmp_path / "tiny-clip"), tmp_path / "s.npz"
    scored = ("--clip", model, "--clip-prefix", "A photo depicts ")
    drawn = drawing(chain, "--images", "20", *scored)
    one = evaluate(tmp_path / "one.json", "generation", *drawn, "--npz", str(npz))
    said = capsys.readouterr().out
    assert f"N = 20; CLIP {model} with 'A photo depicts ' before the captions" in said
    assert one["clip"] == {"model": model, "prefix": "A photo depicts ", "N": 20}
    score, prompts = CLIPScore(model, "A photo depicts "), read_prompts(EMOJI_VAL)[:20]
    images = torch.from_numpy(np.load(npz)["arr_0"]).permute(0, 3, 1, 2)
    score.update(images, prompts)
    expected = pytest.approx(score.compute().item(), abs=1e-4)
    assert one["metrics"]["CLIP score[tiny-clip]"] == expected
    again = evaluate(tmp_path / "again.json", "generation", *drawn, "--npz", str(npz))
    assert again["metrics"]["CLIP score[tiny-clip]"] == expected

    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    (folder / "captions.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    loose = evaluate(tmp_path / "loose.json", "generation", "--samples", str(folder), *scored)
    assert loose["metrics"]["CLIP score[tiny-clip]"] == expected
    (folder / "captions.txt").unlink()
    common = ("evaluate", "generation", "--samples", str(folder), "--reference", EMOJI_VAL)
    common += ("--extractor", PIXELS, "--device", "cpu", "--out", str(tmp_path / "a.json"))
    assert f"--clip: {folder} has no captions.txt; give the captions" in fails(*common, *scored)
    few = tmp_path / "few.txt"
    few.write_text("a cat\na dog\n")
    said = fails(*common, *scored, "--prompts", str(few))
    assert f"{few} holds 2 prompts, fewer than the 20 images" in said
    said = fails(*common, "--clip", str(tmp_path / "none"))
    assert said.startswith("The CLIP model: ")


def test_prompts_of_shards_are_left_to_an_encoder_of_another_style(tmp_path: Path) -> None:
    pytest.importorskip("ftfy"), pytest.importorskip("bs4")
    shard = write_shard(tmp_path / "a.tar", [{"__key__": "a", "txt": b"A <b>RED</b> fox"}])
    assert read_prompts(shard) == ["A RED fox"]
    assert read_prompts(shard, limits={"caption_style": "llamagen"}) == ["A <b>RED</b> fox"]


def test_coco30k_takes_each_caption_once_and_lanczos(
    chain: Chain, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Against photographs in a folder, in shards and in an npz."""
    table, real = tmp_path / "captions.csv", tmp_path / "val2014"
    table.write_text("id,Prompt\n" + "".join(f"{i},a cat\n" for i in range(9)))
    real.mkdir()
    photographs = [p.read_bytes() for p in sorted((ROOT / "tests/data/photographs").glob("*.jpg"))]
    for i, photograph in enumerate(photographs * 3):
        (real / f"COCO_val2014_{i:012d}.jpg").write_bytes(photograph)
    options = ("--protocol", "coco30k", "--checkpoint", chain.stage2, "--prompts", str(table))
    made = evaluate(tmp_path / "a.json", "generation", *options, "--images", "8",
                    "--npz", str(tmp_path / "s.npz"), reference=str(real))  # fmt: skip
    assert (made["protocol"], made["N"], made["resize"]) == ("coco30k", 8, [256, 256])
    assert made["reference"]["crop"] == "centre, as it is, then Lanczos"
    images = np.load(tmp_path / "s.npz")["arr_0"]
    assert images.shape == (8, 256, 256, 3)

    crops = np.stack([np.asarray(lanczos_crop(open_image(p), (256, 256))) for p in photographs * 3])
    np.savez(tmp_path / "real.npz", arr_0=crops)
    content = [{"__key__": str(i), "jpg": p} for i, p in enumerate(photographs * 3)]
    shard = write_shard(tmp_path / "real.tar", content)
    for other in (str(tmp_path / "real.npz"), shard):
        again = evaluate(tmp_path / "b.json", "generation", "--protocol", "coco30k", "--samples",
                         str(tmp_path / "s.npz"), reference=other)  # fmt: skip
        assert again["metrics"] == pytest.approx(made["metrics"])

    common = ("evaluate", "generation", *options, "--extractor", PIXELS, "--device", "cpu")
    common += ("--reference", str(real), "--out", str(tmp_path / "c.json"))
    assert f"{table} holds 9 prompts, fewer than the 30000 images" in fails(*common)
    lacks = fails(*common, "--images", "8", "--prompt-column", "caption")
    assert f"{table} has no column 'caption' but id, Prompt; name the right one with" in lacks
    said = fails(*common, "--images", "8", "--resize", "128")
    assert said == "--resize: coco30k compares images of 256 256 pixels; leave it out."
