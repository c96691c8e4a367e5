"""The model card of a published folder, in Markdown, from what its files say of themselves."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from lgpl.checkpoints.files import MODEL, WEIGHTS, Checkpoint
from lgpl.errors import UserError, as_user_error
from lgpl.generator import Condition

REPORT = ("metrics", "protocol", "extractor", "N")  # without which no metric is shown
LEFT_OUT = (*REPORT, "left_out", "reference", "checkpoint", "samples", "prompts", "versions")
PATHS = ("tokenizer", "init_from")  # of a config, which say nothing elsewhere
LONGEST = 80  # characters of a value in a table


def read_reports(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The reports of `lgpl evaluate` in JSON files, each setting of a sweep as one; raises
    UserError where a file holds anything else."""
    reports = []
    for path in paths:
        with as_user_error(f"--metrics: {path} cannot be read", OSError, ValueError):
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        for one in content if isinstance(content, list) else [content]:
            if not isinstance(one, dict) or not _is_report(one):
                given = "give the JSON that its --out wrote"
                raise UserError(f"--metrics: {path} is no report of `lgpl evaluate`; {given}.")
            reports.append(one)
    return reports


def _is_report(content: dict[str, Any]) -> bool:
    metrics = content.get("metrics")
    if not isinstance(metrics, dict) or any(name not in content for name in REPORT):
        return False
    return all(isinstance(value, (int, float)) for value in metrics.values())


def model_card(
    name: str,
    parts: Sequence[Checkpoint],
    condition: Condition | None,
    reports: Sequence[Mapping[str, Any]],
    license: str | None,
) -> str:
    """Of `hf:OWNER/NAME`: how it is used, its parts (the first is the model, a generator with its
    `condition`), data, metrics, and licence."""
    what = "An image tokenizer"
    if condition is not None:
        what = "An autoregressive image generator with its tokenizer"
    head: dict[str, Any] = {"library_name": "lgpl", "tags": ["autoregressive", "image-generation"]}
    if license is not None:
        head["license"] = license
    if condition is not None and condition.option == "prompt":
        head["pipeline_tag"] = "text-to-image"
    title = name.partition("/")[2].partition("@")[0]
    text = [f"---\n{yaml.safe_dump(head)}---", f"# {title}", f"{what}, made with lgpl."]
    text += ["## Use", *_usage(name, condition)]
    for part in parts:
        text += [f"## {part.kind.capitalize()}", _table(("", ""), _facts(part))]
    text += ["## Data", *(_data(part) for part in parts)]
    if reports:
        text += ["## Metrics", *(line for one in reports for line in _metrics(one))]
    text += ["## Licence", license or "No licence is stated."]
    return "\n\n".join(text) + "\n"


def _usage(name: str, condition: Condition | None) -> Iterator[str]:
    if condition is None:
        command = f"lgpl reconstruct image.png rebuilt.png --checkpoint {name}"
        use = ["codes = tokenizer.encode(image)  # of a PIL image", "tokenizer.decode(codes)"]
        model = "tokenizer"
    else:
        prompt = next(iter(condition.prompts() or ["a red balloon"]))
        option = f"--{condition.option} {shlex.quote(prompt)}"
        command = f"lgpl sample --checkpoint {name} {option} --out image.png"
        use, model = [f"model.draw({prompt!r})[0].save('image.png')"], "model"
    lines = ["import lgpl", "", f'{model} = lgpl.load("{name}")', *use]
    yield f"```bash\n{command}\n```"
    yield "```python\n" + "\n".join(lines) + "\n```"


def _facts(part: Checkpoint) -> list[tuple[str, str]]:
    """The number of weights, and the values of the config."""
    path = part.path / WEIGHTS
    with as_user_error(f"{path} is missing or damaged", OSError, SafetensorError):
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    arguments = dict(part.described()["init_args"])
    model = arguments.pop(MODEL[part.kind])
    others = {key: value for key, value in arguments.items() if key not in PATHS}
    count = sum(map(math.prod, shapes))
    return [("weights", f"{count / 1e6:.1f}M"), *_values("model", model), *_values("", others)]


def _values(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The plain values of a config, by their keys without `init_args`."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield key, str(value["class_path"]).rpartition(".")[2]
            value = value.get("init_args") or {}
        for name, inner in value.items():
            yield from _values(f"{key}.{name}".strip("."), inner)
    elif isinstance(value, list):
        few = len(value) <= 8
        yield key, ", ".join(map(str, value)) if few else f"{len(value)} values"
    elif value is not None:
        yield key, str(value)


def _data(part: Checkpoint) -> str:
    made = dict(part.provenance)
    if source := made.pop("imported", None):
        return f"The weights of the {part.kind} were imported from `{source}`."
    if not made:
        return f"The checkpoint of the {part.kind} does not say what it was trained on."
    return f"The {part.kind} was trained on:\n\n{_table(('', ''), list(_values('', made)))}"


def _metrics(report: Mapping[str, Any]) -> Iterator[str]:
    values = [(name, f"{value:.4g}") for name, value in report["metrics"].items()]
    yield _table(("metric", "value"), values)
    said = [f"Protocol `{report['protocol']}`", f"extractor {report['extractor']}"]
    said.append(f"N = {report['N']}")
    if source := (report.get("reference") or {}).get("source"):
        said.append(f"reference {Path(str(source)).name}")
    plain = {k: v for k, v in report.items() if k not in LEFT_OUT and not isinstance(v, dict)}
    yield ", ".join([*said, *(f"{key} {value}" for key, value in _values("", plain))]) + "."


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in lines)


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
