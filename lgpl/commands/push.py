"""`lgpl push`: publish an exported model on a hub, a generator together with its tokenizer, where
`hf:OWNER/NAME` names it for every command.

What is uploaded is config.json and model.safetensors of each, and a README.md: the folder's own, or
else a model card that is written from the checkpoints. HF_TOKEN in the environment lets it in.
"""

from __future__ import annotations  # or they would import torch

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from lgpl import hub
from lgpl.checkpoints import add_trust
from lgpl.commands.parsing import ArgumentParser
from lgpl.errors import UserError
from lgpl.lazy import needs

if TYPE_CHECKING:
    from lgpl.checkpoints import Checkpoint
    from lgpl.generator import Condition

CARD, MAIN = "README.md", "main"


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl push", description=__doc__)
    folder = "folder of `lgpl export` or `lgpl import`, or one that holds generator/ and tokenizer/"
    p.add_argument("folder", help=folder)
    p.add_argument("repo", metavar="OWNER/NAME", help="repository, made if it is not there")
    tokenizer = "folder of a generator's tokenizer, where the generator does not name it"
    p.add_argument("--tokenizer", help=tokenizer)
    p.add_argument("--private", action="store_true", help="for you and your organisation alone")
    p.add_argument("--revision", default=MAIN, help="branch, made if it is not there")
    metrics = "JSON files that `lgpl evaluate` wrote, for the card"
    p.add_argument("--metrics", nargs="+", default=[], metavar="REPORT", help=metrics)
    p.add_argument("--license", help="of the weights, by the hub's name for it: apache-2.0, mit")
    add_trust(p)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    name = hub.parse(f"{hub.PREFIX}{options.repo.removeprefix(hub.PREFIX)}")
    if name.revision or name.part:
        raise UserError(f"OWNER/NAME must name a repository alone, got {options.repo}")
    own = Path(options.folder, CARD)
    if own.exists() and (options.metrics or options.license):
        kept = f"{own} is the card, and is kept as it is"
        raise UserError(f"--metrics, --license: {kept}; write into it, or remove it.")
    needs("lgpl push", "huggingface-hub", "hub")
    from lgpl.checkpoints.files import CONFIG, MODEL, WEIGHTS
    from lgpl.commands.card import model_card, read_reports

    reports = read_reports(options.metrics)
    parts, condition = _parts(options)
    files: dict[str, Path | bytes] = {}
    for at, part in zip(("", f"{parts[-1].kind}/"), parts, strict=False):
        files |= {f"{at}{file}": part.path / file for file in (CONFIG, WEIGHTS)}
    branch = None if options.revision == MAIN else options.revision
    published = str(hub.HubName(name.repo, branch))
    card = model_card(published, parts, condition, reports, options.license)
    files[CARD] = own if own.exists() else card.encode()
    places = ("", *(f"{kind}/" for kind in MODEL))
    known = [f"{at}{file}" for at in places for file in (CONFIG, WEIGHTS)]
    url = hub.publish(name.repo, files, known, options.private, options.revision)
    kinds = " and ".join(part.kind for part in parts)
    print(f'{url}: {kinds}; lgpl.load("{published}") reads it')


def _parts(options: Namespace) -> tuple[list[Checkpoint], Condition | None]:
    """The exported checkpoint, and with a generator its condition and its tokenizer's; raises
    UserError where one of them is not exported, or they do not belong together."""
    import torch

    from lgpl.checkpoints import read_checkpoint
    from lgpl.generator import GeneratorModule
    from lgpl.training import build_described

    checkpoint = _exported(read_checkpoint(options.folder), "FOLDER")
    if checkpoint.kind == "tokenizer":
        if options.tokenizer:
            raise UserError(f"--tokenizer: {checkpoint.path} is a tokenizer itself.")
        return [checkpoint], None
    module = build_described(checkpoint, trust=options.trust)
    assert isinstance(module, GeneratorModule)
    module.use_tokenizer(options.tokenizer, checkpoint.path)
    with torch.device("meta"):
        module.configure_model()
    module.check_tokenizer()
    assert module.tokenizer_path is not None
    tokenizer = read_checkpoint(module.tokenizer_path, "tokenizer")
    inside = f"{checkpoint.path}/{tokenizer.kind}"
    return [checkpoint, _exported(tokenizer, inside)], module.model.condition


def _exported(checkpoint: Checkpoint, out: str) -> Checkpoint:
    from lgpl.checkpoints import is_exported

    if not is_exported(checkpoint.path):
        how = f"`lgpl export {checkpoint.path} --out {out}` does it"
        said = f"{checkpoint.path} is no exported {checkpoint.kind}"
        raise UserError(f"{said}, which alone is published; {how}.")
    return checkpoint
