"""Models on a hub, which is a double on loopback: published, fetched, and what cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import lgpl
from lgpl import hub
from lgpl.checkpoints import read_checkpoint
from lgpl.cli import main
from lgpl.data import ShardDataModule
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule
from lgpl.inference import Generator, Tokenizer
from lgpl.metrics.extractors import ModuleFeatures
from lgpl.metrics.reference import reference, write_summary
from lgpl.metrics.summary import FeatureSummary, Gaussian
from lgpl.text import TextEncoder
from lgpl.training import TrainingModule, build_module
from tests.conftest import ROOT
from tests.hub import TOKEN, Hub, greedy
from tests.metrics.pixels import Pixels
from tests.serving.generators import class_config, export_generator, export_tokenizer
from tests.text.test_encoder import folder_of

constants = pytest.importorskip("huggingface_hub.constants")
MODEL = ("config.json", "model.safetensors")
BOTH = (*MODEL, *(f"tokenizer/{name}" for name in MODEL))
# For a process of its own: the likeliest codes, and where the tokenizer was found.
FRESH = """
import json, lgpl
from tests.hub import greedy
model = lgpl.load("hf:ada/digits", device="cpu")
print(json.dumps([greedy(model), model.module.tokenizer_path]))
"""


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of this process, with an empty cache and no token."""
    cache = str(tmp_path / "cache")
    with Hub() as running:
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": cache,
            "HF_TOKEN_PATH": f"{cache}/token",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name, value in {
            "HF_ENDPOINT": running.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_CACHE": cache,
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """generator/ and tokenizer/, and what is no part of a model."""
    folder = tmp_path_factory.mktemp("models")
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "generator", class_config(10))
    (folder / ".env").write_text("SECRET=1")
    (folder / "generator/last.ckpt").write_bytes(b"not for others")
    return folder


def stored(folder: Path) -> dict[str, bytes]:
    """The files of a pair as a repository holds them."""
    found = {name: (folder / "generator" / name).read_bytes() for name in MODEL}
    return found | {f"tokenizer/{n}": (folder / "tokenizer" / n).read_bytes() for n in MODEL}


def fetched_names(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("models--*/snapshots/*/**/*") if path.is_file()}


def test_what_is_pushed_draws_the_same_codes_in_a_fresh_process(
    double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main(["push", str(models), "ada/digits", "--private"])
    repo = double.repos["ada/digits"]
    assert repo.private and len(repo.commits) == 2  # one commit holds the whole model
    files = repo.commits[repo.branches["main"]]
    assert set(files) == {".gitattributes", "README.md", *BOTH}
    assert {name: files[name] for name in BOTH} == stored(models)
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    codes, tokenizer = json.loads(done.stdout)
    assert codes == greedy(lgpl.load(models, device="cpu"))
    assert Path(tokenizer).is_relative_to(tmp_path / "cache")
    assert fetched_names(tmp_path / "cache") == set(MODEL)


def test_the_model_card_says_what_is_known(
    double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "out")
    config = tmp_path / "out/generator/config.json"
    entry = json.loads(config.read_text())
    entry["provenance"] = {"shards": ["digits/train-{0..9}.tar"], "image_size": [24, 20]}
    config.write_text(json.dumps(entry))
    report = {
        "metrics": {"FID": 12.34567}, "protocol": "gfid", "extractor": "inception", "N": 5000,
        "reference": {"source": "/home/ada/stats.npz"}, "guidance": 1.5, "versions": {"lgpl": "0"},
    }  # fmt: skip
    (tmp_path / "gfid.json").write_text(json.dumps(report))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    options = ["--license", "mit", "--metrics", str(tmp_path / "gfid.json")]
    main(["push", str(tmp_path / "out"), "ada/digits", *options])
    repo = double.repos["ada/digits"]
    card = repo.commits[repo.branches["main"]]["README.md"].decode()
    assert not repo.private and "/home/ada" not in card and str(tmp_path) not in card
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    for line in (
        "| FID | 12.35 |",
        "Protocol `gfid`, extractor inception, N = 5000, reference stats.npz, guidance 1.5.",
        "| shards | digits/train-{0..9}.tar |",
        "| model | Transformer |",
        "| model.condition.num_classes | 10 |",
        "| model | VQModel |",
        "lgpl sample --checkpoint hf:ada/digits --label 0 --out image.png",
        'model = lgpl.load("hf:ada/digits")',
        "The checkpoint of the tokenizer does not say what it was trained on.",
    ):
        assert line in text.splitlines()
    command = next(line for line in text.splitlines() if line.startswith("lgpl sample"))
    monkeypatch.chdir(tmp_path)
    main(command.split()[1:])
    assert (tmp_path / "image.png").is_file()


def test_of_data_no_more_than_their_names_are_kept() -> None:
    patterns = ["https://ada:pw@host/sets/digits/{0..9}.tar?key=secret", "/home/ada/more/a-*.tar"]
    data = ShardDataModule(train=dict.fromkeys(patterns, 1.0), image_size=64)
    module: Any = SimpleNamespace(_trainer=SimpleNamespace(datamodule=data))
    named = {"shards": ["digits/{0..9}.tar", "more/a-*.tar"], "image_size": [64, 64]}
    assert TrainingModule.provenance(module) == named


def test_a_card_of_the_users_own_is_kept(
    double: Hub,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(models / "tokenizer", tmp_path / "out")
    (tmp_path / "out/README.md").write_text("My own words.\n")
    main(["push", str(tmp_path / "out"), "ada/codes"])
    repo = double.repos["ada/codes"]
    assert repo.commits[repo.branches["main"]]["README.md"] == b"My own words.\n"
    said = fails("push", str(tmp_path / "out"), "ada/codes", "--license", "mit")
    assert said.startswith("--metrics, --license:") and "README.md is the card" in said


def test_what_a_later_model_has_not_is_deleted(
    double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main(["push", str(models), "ada/any"])
    double.repos["ada/any"].commits[double.repos["ada/any"].branches["main"]]["notes.txt"] = b"kept"
    main(["push", str(models / "tokenizer"), "ada/any"])
    repo = double.repos["ada/any"]
    assert set(repo.commits[repo.branches["main"]]) == {
        ".gitattributes", "README.md", "notes.txt", *MODEL,
    }  # fmt: skip
    assert isinstance(lgpl.load("hf:ada/any", device="cpu"), Tokenizer)


def test_a_tokenizer_that_is_given_goes_before_the_one_inside(
    double: Hub, models: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    double.repo("ada/digits", stored(models))
    export_tokenizer(tmp_path / "other", codebook_size=32)
    said = fails("sample", "--checkpoint", "hf:ada/digits", "--tokenizer", str(tmp_path / "other"),
                 "--label", "3", "--out", str(tmp_path / "a.png"))  # fmt: skip
    assert "other and a generator of" in said and "do not belong together" in said


def test_revisions(double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    first = double.repo("ada/digits", {"config.json": b"{}"}).branches["main"]
    main(["push", str(models), "ada/digits", "--revision", "next"])
    second = double.repos["ada/digits"].branches["next"]
    card = double.repos["ada/digits"].commits[second]["README.md"]
    assert b"--checkpoint hf:ada/digits@next --label" in card
    for revision in ("next", second):
        path = read_checkpoint(f"hf:ada/digits@{revision}").path
        assert hub.commit_of(path) == second
    assert hub.commit_of(hub.fetched("hf:ada/digits", ("config.json",))) == first


def test_names_stand_wherever_a_path_does(
    double: Hub, models: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    double.repo("ada/digits", stored(models))
    config = read_checkpoint(models / "generator").described()
    config["init_args"]["tokenizer"] = "hf:ada/digits"  # of a config, for its tokenizer
    module = build_module(config)
    assert isinstance(module, GeneratorModule)
    assert module.tokenizer.autoencoder.codebook_size == 48
    module.evaluated = "hf:ada/digits"  # as by --ckpt_path; init_from is read by the same line
    weights = read_checkpoint(models / "generator").weights()
    assert all(torch.equal(t, weights[name]) for name, t in module.model.state_dict().items())
    said = fails("fit", "-c", "tokenizer/emoji.yaml", "--ckpt_path", "hf:ada/digits/tokenizer")
    assert "holds weights and no run to go on with" in said
    # The folder of images knows the commit, so that it can be gone on with.
    out = tmp_path / "images"
    draw = ["sample", "--checkpoint", "hf:ada/digits", "--label", "3", "--out", f"{out}/"]
    main(draw)
    main(draw)
    made = json.loads((out / "sampling.json").read_text())
    assert made["modified"] == double.repos["ada/digits"].branches["main"]


def test_released_weights_are_imported(
    double: Hub, tmp_path: Path, fails: Callable[..., str]
) -> None:
    square = {"grid": [4, 4], "prefix_rope": "zero"}
    export_generator(tmp_path / "generator", class_config(10), **square)
    file = tmp_path / "c2i.pt"
    main(["export", str(tmp_path / "generator"), "--format", "llamagen", "--out", str(file)])

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"model": Code()}, tmp_path / "evil.pt")
    evil = (tmp_path / "evil.pt").read_bytes()
    double.repo("ada/released", {"c2i.pt": file.read_bytes(), "evil.pt": evil})
    out = ["--grid", "4", "--heads", "4", "--out", str(tmp_path / "imported")]
    main(["import", "hf:ada/released/c2i.pt", *out])
    found, made = (read_checkpoint(tmp_path / name) for name in ("imported", "generator"))
    weights = made.weights()
    assert all(torch.equal(t, weights[name]) for name, t in found.weights().items())
    assert found.provenance == {"imported": "hf:ada/released/c2i.pt"}
    said = fails("import", "hf:ada/released/evil.pt", *out)
    assert "pickled code" in said and not (tmp_path / "ran").exists()
    assert "names a whole repository" in fails("import", "hf:ada/released", *out)


def test_a_text_encoder(double: Hub, tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path / "t5"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    double.repo("ada/t5", {**files, "pytorch_model.bin": b"pickle", "modeling.py": b"import os"})
    encoder = TextEncoder("hf:ada/t5@main", max_length=8)
    assert encoder.width == 16
    (found,), (wanted,) = (e.encode(["a cat"]) for e in (encoder, TextEncoder(str(folder))))
    assert torch.equal(found, wanted)
    assert not fetched_names(tmp_path / "cache") & {"pytorch_model.bin", "modeling.py"}


def test_a_reference(double: Hub, tmp_path: Path) -> None:
    extractor = ModuleFeatures(Pixels())
    mean = torch.arange(3.0).double()
    summary = FeatureSummary(Gaussian(mean, torch.eye(3).double(), 9))
    known = {"extractor": extractor.name, "preprocessing": extractor.preprocessing}
    write_summary(tmp_path / "a.npz", summary, {**known, "image_size": [8, 8], "source": "digits"})
    double.repo("ada/stats", {"ref/a.npz": (tmp_path / "a.npz").read_bytes()})
    found, provenance = reference("hf:ada/stats/ref/a.npz", extractor, (8, 8))
    assert torch.equal(found.pooled.mean, mean)
    assert (provenance["source"], provenance["hub"]) == ("digits", "hf:ada/stats/ref/a.npz")


def test_a_killed_download_leaves_no_torn_file(double: Hub, models: Path, tmp_path: Path) -> None:
    files = double.repo("ada/digits", stored(models)).files("main")
    halfway, killed = threading.Event(), threading.Event()

    def wait() -> bool:
        halfway.set()
        return killed.wait(60)

    double.halfway = wait
    script = f"from lgpl.hub import fetched\nfetched('hf:ada/digits', {MODEL})"
    process = subprocess.Popen([sys.executable, "-c", script])
    assert halfway.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed.set()
    double.halfway = None
    assert "model.safetensors" not in fetched_names(tmp_path / "cache")
    again = hub.fetched("hf:ada/digits", MODEL)
    assert files is not None
    assert (again / "model.safetensors").read_bytes() == files[1]["model.safetensors"]


def test_a_broken_connection_is_gone_on_with(
    double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = stored(models)
    double.repo("ada/digits", files)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    breaks = iter([False])
    double.halfway = lambda: next(breaks, True)
    found = hub.fetched("hf:ada/digits", MODEL)
    assert (found / "model.safetensors").read_bytes() == files["model.safetensors"]
    (resumed,) = [line for line in double.served if line.startswith("from ")]
    assert 0 < int(resumed.split()[1]) < len(files["model.safetensors"])


def test_offline_what_is_in_the_cache_is_read(
    double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    double.repo("ada/digits", stored(models))
    model = lgpl.load("hf:ada/digits", device="cpu")
    asked = len(double.served)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = lgpl.load("hf:ada/digits", device="cpu")
    assert isinstance(again, Generator) and greedy(again) == greedy(model)
    assert len(double.served) == asked
    double.repo("ada/others", stored(models))
    said = fails("sample", "--checkpoint", "hf:ada/others", "--label", "3", "--out", "a.png")
    assert said.startswith("hf:ada/others is not wholly in the cache") and "HF_HUB_OFFLINE" in said
    said = fails("push", str(models), "ada/digits")
    assert "HF_HUB_OFFLINE" in said


def test_private_repositories_are_read_by_a_token(
    double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.repo("ada/secret", stored(models), private=True)
    with pytest.raises(UserError, match=r"^hf:ada/secret is not at .*, or private: .*HF_TOKEN"):
        lgpl.load("hf:ada/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_checkpoint("hf:ada/secret").kind == "generator"
    double.repo("ada/other", stored(models), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(UserError, match=r"^hf:ada/other is refused by .* \(401\): set HF_TOKEN"):
        lgpl.load("hf:ada/other")


def test_a_hub_that_is_not_there(
    double: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.repo("ada/digits", stored(models))
    double.repo("ada/half", stored(models))
    found = hub.fetched("hf:ada/digits", MODEL)
    hub.fetched("hf:ada/half", MODEL[:1])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert hub.fetched("hf:ada/digits", MODEL) == found
    for name in ("new", "half"):
        said = rf"^hf:ada/{name} can neither be fetched from .* nor found whole .*refused"
        with pytest.raises(UserError, match=said):
            hub.fetched(f"hf:ada/{name}", MODEL)


def test_pickles_and_code_are_not_fetched(double: Hub, tmp_path: Path) -> None:
    files = {name: b"import os" for name in ("modeling.py", "model.pkl", "vq.pt", "model.ckpt")}
    double.repo("ada/pickles", files)
    with pytest.raises(UserError) as error:
        lgpl.load("hf:ada/pickles")
    assert "config.json and no model.safetensors" in str(error.value)
    assert "`lgpl import hf:ada/pickles/vq.pt`" in str(error.value)
    assert fetched_names(tmp_path / "cache") == set()
    assert not [line for line in double.served if "resolve" in line]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:foo", "hf:foo is no name on a hub; give hf:OWNER/NAME"),
        ("hf:ada/a--b", "hf:ada/a--b is no name on a hub; give hf:OWNER/NAME"),
        ("hf:ada/digits/../x", "is no name on a hub; give hf:OWNER/NAME"),
        ("hf:ada/nothing", "hf:ada/nothing is not at http://127.0.0.1"),
        ("hf:ada/gated", "hf:ada/gated is gated: accept its terms at http://127.0.0.1"),
        ("hf:ada/digits@v2", "names the revision v2, which"),
        ("hf:ada/digits/last.ckpt", "the repository has no file last.ckpt; it has"),
    ],
)
def test_what_cannot_be_had_is_said(
    double: Hub, models: Path, fails: Callable[..., str], name: str, said: str
) -> None:
    double.repo("ada/digits", stored(models))
    double.repo("ada/gated", stored(models), gated=True)
    assert said in fails("sample", "--checkpoint", name, "--label", "3", "--out", "a.png")


def test_what_cannot_be_pushed_is_said(
    double: Hub,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    assert "HF_TOKEN to a token that may write it" in fails("push", str(models), "ada/digits")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "OWNER/NAME must name a repository alone" in fails("push", str(models), "ada/x@v1")
    assert "no name on a hub" in fails("push", str(models), "digits")
    double.repo("ada/open")
    said = fails("push", str(models), "ada/open", "--private")
    assert said.startswith("--private:") and "is there and public" in said
    assert len(double.repos["ada/open"].commits) == 1
    assert "is refused by" in fails("push", str(models), "eve/digits")
    said = fails("push", str(models), "ada/digits", "--license", "mine")
    assert '"license" must be one of [apache-2.0, mit]' in said
    (tmp_path / "no.json").write_text('{"metrics": {"FID": 1}}')
    said = fails("push", str(models), "ada/open", "--metrics", str(tmp_path / "no.json"))
    assert "is no report of `lgpl evaluate`" in said
    checkpoint = read_checkpoint(models / "tokenizer")
    state = {f"autoencoder.{name}": t for name, t in checkpoint.weights().items()}
    entry = {"kind": "tokenizer", "config": checkpoint.config}
    torch.save({"lgpl": entry, "state_dict": state}, tmp_path / "last.ckpt")
    said = fails("push", str(tmp_path / "last.ckpt"), "ada/open")
    assert "is no exported tokenizer" in said and "`lgpl export" in said
    last = f"{tmp_path}/last.ckpt"
    said = fails("push", str(models / "generator"), "ada/open", "--tokenizer", last)
    assert f"`lgpl export {last} --out {models}/generator/tokenizer` does it" in said


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = "lightning_utilities.core.imports.RequirementCache"
    monkeypatch.setattr(requirements, lambda _: False)
    said = r"^hf:a/b needs huggingface-hub: pip install 'lgpl\[hub\]'"
    with pytest.raises(UserError, match=said):
        read_checkpoint("hf:a/b")
