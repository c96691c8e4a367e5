"""The options of `lgpl serve`: which values are refused, and which clients are let in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lgpl.cli import main
from lgpl.commands import serve
from lgpl.serving import server
from tests.serving.generators import class_config, export_generator, text_config
from tests.serving.servers import TOKEN, export


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LGPL_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be > 0 and finite, got 0"),
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--top-p", "2"], "top_p must be <= 1, got 2.0"),
        (["--guidance-power", "0"], "guidance_power must be > 0, got 0.0"),
        (["--guidance-steps", "-1"], "guidance_steps must be >= 0, got -1"),
        (["--timeout", ".inf"], "--timeout must be > 0 and finite, got inf"),
        (["--cors-origin", "*"], "--cors-origin must be an origin such as https://"),
        (["--link-seconds", "0"], "--link-seconds must be > 0 and finite, got 0"),
        (["--token", ""], "--token must not be empty"),
        (["--token", " \n"], "--token must not be empty"),
        (["--guidance", "much"], "--guidance: Expected a float, got much"),
        (["--tokenizer", "nowhere"], "nowhere: no such checkpoint"),
        (["--vllm.dtype", "float32"], "--vllm needs --engine vllm"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, fails: Callable[..., str], options: list[str], message: str
) -> None:
    export_generator(tmp_path / "generator", class_config(10))
    assert message in fails("serve", "--checkpoint", str(tmp_path / "generator"), *options)


def test_an_error_names_what_a_checkpoint_lacks(tmp_path: Path, fails: Callable[..., str]) -> None:
    folder = str(export(tmp_path, text_config(24, 10)))
    assert fails("serve", "--checkpoint", folder) == (
        "condition.encoder is not set; captions and prompts need it."
    )
    config = tmp_path / "generator/config.json"
    entry = json.loads(config.read_text())
    entry["config"]["init_args"]["tokenizer"] = None
    config.write_text(json.dumps(entry))
    assert "names no tokenizer; give its checkpoint with --tokenizer" in fails(
        "serve", "--checkpoint", folder
    )


OPEN = ["0.0.0.0", "::", "", "192.168.1.4", "images.example.org"]


@pytest.mark.parametrize("host", OPEN)
def test_other_machines_are_not_let_in_without_a_token(
    fails: Callable[..., str], host: str
) -> None:
    """The command fails before it loads anything."""
    assert fails("serve", "--checkpoint", "nowhere", "--host", host) == (
        f"--host must be a loopback address without a token, got {host!r}; set LGPL_TOKEN in the "
        "environment, or give --no-token to let other machines in"
    )


def test_no_token_excludes_a_token(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "--no-token excludes a token; leave --token and LGPL_TOKEN out"
    assert fails("serve", "--checkpoint", "nowhere", "--no-token", "--token", "x") == message
    monkeypatch.setenv("LGPL_TOKEN", "x")
    assert fails("serve", "--checkpoint", "nowhere", "--no-token") == message


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("runs/quickstart/stage2/checkpoints/last.ckpt", "quickstart/stage2"),
        ("/data/runs/c2i/generator/checkpoints/epoch=3.ckpt", "c2i/generator"),
        ("runs/mine/checkpoints/last.ckpt", "mine"),
        ("/home/me/lightning_logs/version_0/checkpoints/last.ckpt", "lightning_logs/version_0"),
        ("/data/c2i_B_256.pt", "c2i_B_256"),
    ],
)
def test_a_model_is_called_as_its_run(checkpoint: str, name: str) -> None:
    assert serve.model_name(checkpoint) == name


def test_an_exported_model_is_called_as_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Callable[..., Any]
) -> None:
    folder = tmp_path / "c2i.v2"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert serve.model_name(str(folder)) == serve.model_name(".") == "c2i.v2"
    for options, name in (([], "generator"), (["--name", "a/b"], "a/b")):
        (model,) = started(*options)("/v1/models").json()["data"]
        assert model["id"] == name


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command up to where it would serve; return a function that sends requests."""

    def start(*options: str) -> Callable[..., httpx.Response]:
        apps: list[Any] = []

        def run(app: Any, engine: Any, *_: Any) -> None:
            apps.append(app)
            engine.close()

        monkeypatch.setattr(server, "run", run)
        main(["serve", "--checkpoint", str(export(tmp_path)), *options])

        async def one(path: str, headers: dict[str, str]) -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(apps[0])) as client:
                return await client.get(f"http://localhost{path}", headers=headers)

        return lambda path, **headers: asyncio.run(one(path, headers))

    return start


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_token(started: Callable[..., Any], host: str) -> None:
    """The Host header must still be its own or a trusted one."""
    ask = started("--host", host, "--trusted-host", "a.example", "--trusted-host", "B.example")
    for named in ("localhost:8000", "[::1]:8000", "a.example", "b.example:443"):
        assert ask("/v1/models", Host=named).status_code == 200
    assert ask("/v1/models", Host="evil.example").status_code == 421


@pytest.mark.parametrize("host", OPEN)
def test_options_let_other_machines_in(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    ask = started("--host", host, "--no-token")
    assert ask("/v1/models", Host="any.example").status_code == 200
    monkeypatch.setenv("LGPL_TOKEN", TOKEN)
    ask = started("--host", host)
    assert ask("/v1/models", Host="any.example").status_code == 401
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert ask("/v1/models", Host="any.example", **right).status_code == 200
    ask = started("--host", host, "--trusted-host", "a.example")
    assert ask("/v1/models", Host="a.example", **right).status_code == 200
    assert ask("/v1/models", Host="any.example", **right).status_code == 421


def test_a_token_on_the_command_line_gives_a_warning(
    started: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask = started("--token", TOKEN)
    assert ask("/v1/models").status_code == 401
    (line,) = capsys.readouterr().err.splitlines()
    assert "process list" in line and "LGPL_TOKEN" in line
    monkeypatch.setenv("LGPL_TOKEN", f"{TOKEN}\n")  # as a file of secrets has it
    ask = started()
    assert ask("/v1/models").status_code == 401
    assert ask("/v1/models", Authorization=f"Bearer {TOKEN}").status_code == 200
    assert capsys.readouterr().err == ""


def test_the_help_recommends_the_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "LGPL_TOKEN" in output and "--no-token" in output and "--trusted-host" in output
