"""What a real bash offers after a tab, typed at its prompt."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until

PROMPT = "next> "
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


class Terminal:
    """An interactive bash, with all that it has written."""

    def __init__(self, script: Path) -> None:
        self.end, other = pty.openpty()
        self.bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"], cwd=ROOT, stdin=other, stdout=other,
            stderr=other, start_new_session=True, env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(other)
        self.text = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.run(f"PS1='{PROMPT}'; bind 'set bell-style none'; source {script}")

    def _read(self) -> None:
        while True:
            try:
                self.text += os.read(self.end, 4096).decode(errors="replace")
            except OSError:  # bash has ended
                return

    def type(self, keys: str) -> None:
        os.write(self.end, keys.encode())

    def run(self, command: str) -> None:
        """Run a command, and wait for the next prompt: what is typed before it is not completed."""
        begin = len(self.text)
        self.type(f"{command}; echo en''ded\n")
        wait_until(lambda: self.text[begin:].endswith(f"ended\r\n{PROMPT}"))

    def completed(self, line: str) -> str:
        """The line after a tab, whose completion is unique. It is not run."""
        begin = len(self.text)
        self.type(f"{line}\t#end")
        wait_until(lambda: "#end" in self.text[begin:])
        found = self.text[begin:].partition("#end")[0]
        self.type("\x15")  # clears the line
        self.run(":")
        return re.sub(r"\s+", " ", found).strip()

    def close(self) -> None:
        self.bash.kill()
        self.bash.wait()
        os.close(self.end)


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    script = tmp_path_factory.mktemp("completion") / "lgpl"
    command = [sys.executable, "-m", "lgpl.cli", "completion", "bash"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    script.write_text(done.stdout)
    terminal = Terminal(script)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("lgpl vali", "lgpl validate"),
        ("lgpl sample --checkp", "lgpl sample --checkpoint"),
        ("lgpl sample --checkpoint CONTRI", "lgpl sample --checkpoint CONTRIBUTING.md"),
        ("lgpl sample --dtype fl", "lgpl sample --dtype float32"),
        ("lgpl data che", "lgpl data check"),
        ("lgpl evaluate reconstruction --lp", "lgpl evaluate reconstruction --lpips"),
        ("lgpl fit -c tokenizer/em", "lgpl fit -c tokenizer/emoji.yaml"),
        ("lgpl fit -c configs/tokenizer/em", "lgpl fit -c configs/tokenizer/emoji.yaml"),
        ("lgpl fit --data.batch", "lgpl fit --data.batch_size"),
        ("lgpl test --trainer.precision 64-t", "lgpl test --trainer.precision 64-true"),
        ("lgpl predict --ckpt_path CONTRI", "lgpl predict --ckpt_path CONTRIBUTING.md"),
        ("lgpl test --model.init_args.gradient_c", "lgpl test --model.init_args.gradient_clip"),
        ("lgpl plan --data.global_b", "lgpl plan --data.global_batch"),
    ],
)  # fmt: skip
def test_bash_completes(bash: Terminal, typed: str, completed: str) -> None:
    assert bash.completed(typed) == completed
