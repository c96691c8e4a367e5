"""Two nodes, each a network namespace of this machine at one end of a veth pair, torchrun in each:
they train like one rank, and go on from the last checkpoint after one of them has died."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, TINY, TINY_GENERATOR, Chain, logs

CHECKPOINTS = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 4, save_last: true, enable_version_counter: false}
"""


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Node:
    """A network namespace with one address; nothing of it reaches beyond the pair."""

    def __init__(self, number: int) -> None:
        self.name = f"lgpl{os.getpid()}n{number}"
        self.link = f"lg{os.getpid() % 10**7}v{number}"  # at most 15 characters
        self.address = f"10.77.0.{number + 1}"

    def join(self) -> None:
        """Give the namespace its end of the pair."""
        ip("link", "set", self.link, "netns", self.name)
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", self.link)
        for device in (self.link, "lo"):
            ip("-n", self.name, "link", "set", device, "up")

    def torchrun(self, first: Node, port: int) -> list[str]:
        """As configs/README.md has it; host names do not resolve here, so by addresses."""
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
            *("--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"),
            *("--rdzv-endpoint", f"{first.address}:{port}"),
            *("--rdzv-conf", f"is_host={str(self is first).lower()}"),
            *("--local-addr", self.address, "-m", "tests.test_multinode"),
        ]

    def srun(self, first: Node, port: int) -> list[str]:
        """One task a node, told its place by the variables that SLURM sets."""
        rank = int(self is not first)
        slurm = {
            **{"NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2, "PROCID": rank, "NODEID": rank},
            **{"LOCALID": 0, "JOB_ID": port, "JOB_NAME": "lgpl", "NODELIST": first.address},
        }
        variables = [f"SLURM_{name}={value}" for name, value in slurm.items()]
        return ["env", *variables, sys.executable, "-m", "tests.test_multinode"]

    def start(self, command: list[str], record: Path) -> None:
        self.log = record.with_name(f"{self.name}.log")
        environment = {"RECORD": str(record), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **environment, "GLOO_SOCKET_IFNAME": self.link},
            )  # fmt: skip

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)

    def die(self) -> None:
        """SIGKILL to torchrun and its worker alike."""
        for pid in ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def unplug(self) -> None:
        ip("-n", self.name, "link", "set", self.link, "down")

    def said(self) -> str:
        return self.log.read_text()[-3000:]


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    pair = (Node(0), Node(1))
    if shutil.which("ip") is None:
        pytest.skip("no `ip`: the package iproute2 has it")
    try:
        ip("netns", "add", pair[0].name)
    except OSError as error:
        pytest.skip(f"no network namespaces without the privilege: {error}")
    try:
        ip("netns", "add", pair[1].name)
        ip("link", "add", pair[0].link, "type", "veth", "peer", "name", pair[1].link)
        for node in pair:
            node.join()
        yield pair
    finally:
        for node in pair:
            with suppress(OSError):
                node.die()
            with suppress(OSError):  # its end of the pair goes with it
                ip("netns", "del", node.name)


class Run:
    """A generator's training with 16 samples a step, in its own folder."""

    def __init__(self, chain: Chain, folder: Path, length: int) -> None:
        folder.mkdir()
        (folder / "checkpoints.yaml").write_text(CHECKPOINTS)
        self.folder, self.length, self.starts = folder, length, 0
        self.options = [
            *("fit", "-c", "configs/generator/emoji_stage2.yaml"),
            *("-c", str(folder / "checkpoints.yaml"), *TINY, *TINY_GENERATOR, *logs(folder)),
            *("--data.train", f"{chain.codes}/train-*.tar"),
            *("--data.val", f"{chain.codes}/val-*.tar"),
            *("--data.partitions", "2", "--data.epoch_samples", str(length * 16)),
            *("--model.init_args.init_from", "null"),
            *("--model.init_args.tokenizer", chain.tokenizer),
            *("--model.init_args.muon_lr", "null", "--trainer.max_epochs", "1"),
        ]  # fmt: skip

    def start(
        self,
        nodes: tuple[Node, Node],
        *strategy: str,
        srun: bool = False,
    ) -> None:
        """Start both nodes, by torchrun or as srun would."""
        self.starts += 1
        options = [
            *(*self.options, *strategy, "--trainer.accelerator", "cpu", "--trainer.num_nodes", "2"),
            *("--trainer.devices", "1", "--trainer.precision", "32-true"),
            *("--data.batch_size", "8", "--ckpt_path", "last"),
        ]
        for node in nodes:
            launcher = node.srun if srun else node.torchrun
            command = launcher(nodes[0], 29500 + self.starts)
            node.start([*command, *options], self.folder / "rank")

    def alone(self) -> None:
        """Undisturbed, on the one rank of this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECORD", str(self.folder / "rank"))
            record([*self.options, "--trainer.precision", "32-true", "--data.batch_size", "16"])

    @property
    def last(self) -> Path:
        return self.folder / "stage2/checkpoints/last.ckpt"

    def lines(self) -> list[dict[str, Any]]:
        """What the ranks wrote down; a killed one may have stopped in the middle of a line."""
        text = "".join(path.read_text() for path in sorted(self.folder.glob("rank*")))
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def last_step(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def steps(self) -> dict[int, dict[str, float]]:
        """By step and key the loss of the rank that had it; what is done again is the same."""
        seen: dict[int, dict[str, float]] = {}
        for line in self.lines():
            step = seen.setdefault(line["step"], {})
            for key in line["keys"]:
                assert step.setdefault(key, line["loss"]) == pytest.approx(line["loss"], abs=1e-4)
        return seen


def wait_for_step(run: Run, step: int, nodes: tuple[Node, Node]) -> None:
    deadline = time.monotonic() + 120
    while run.last_step() < step:
        for node in nodes:
            assert node.process.poll() is None, node.said()
        assert time.monotonic() < deadline, nodes[0].said()
        time.sleep(0.05)


STRATEGIES = {
    "ddp": ["-c", "configs/trainer/multinode.yaml"],
    "fsdp": [
        *("-c", "configs/trainer/multinode_fsdp.yaml"),
        *("--trainer.strategy.init_args.data_parallel_size", "2"),
    ],
}


def check(one: Run, two: Run) -> None:
    """The same samples and losses on one rank and on two nodes, every sample once."""
    first, second = one.steps(), two.steps()
    assert sorted(first) == sorted(second) == list(range(1, one.length + 1))
    for step in first:
        assert first[step].keys() == second[step].keys()
        (loss,) = set(first[step].values())
        assert sum(second[step].values()) / 16 == pytest.approx(loss, abs=1e-4)
    assert len({key for step in second.values() for key in step}) == one.length * 16


@pytest.mark.parametrize("srun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_nodes_train_like_one_rank(
    chain: Chain, tmp_path: Path, nodes: tuple[Node, Node], srun: bool
) -> None:
    one, two = Run(chain, tmp_path / "one", 8), Run(chain, tmp_path / "two", 8)
    two.start(nodes, *STRATEGIES["ddp"], srun=srun)
    one.alone()
    for node in nodes:
        assert node.wait(120) == 0, node.said()
    check(one, two)
    assert two.last.is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "dies"), [("ddp", 1), ("fsdp", 1), ("fsdp", 0)])
def test_a_node_dies(
    chain: Chain, tmp_path: Path, nodes: tuple[Node, Node], strategy: str, dies: int
) -> None:
    """The first node also holds torchrun's rendezvous."""
    whole, killed = Run(chain, tmp_path / "whole", 40), Run(chain, tmp_path / "killed", 40)
    whole.alone()
    killed.start(nodes, *STRATEGIES[strategy])
    wait_for_step(killed, 10, nodes)
    if strategy == "fsdp":  # in the middle of a checkpoint
        deadline = time.monotonic() + 30
        while not list(killed.last.parent.glob("*.partial")):
            assert time.monotonic() < deadline
    nodes[dies].die()
    assert nodes[1 - dies].wait(60) != 0  # at once: the kernel closes the connections of the dead
    assert 10 <= killed.last_step() < 40
    assert killed.last.is_dir() == (strategy == "fsdp")
    killed.start(nodes, *STRATEGIES[strategy])
    for node in nodes:
        assert node.wait(120) == 0, node.said()
    done = [line["step"] for line in killed.lines()]
    assert done.count(4) == done.count(40) == 2  # one line of each node: not from the beginning
    check(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_node_falls_silent(
    chain: Chain, tmp_path: Path, nodes: tuple[Node, Node], strategy: str
) -> None:
    """Without power nobody closes a connection: the strategy's timeout ends the other node."""
    run = Run(chain, tmp_path / "run", 2000)
    timeout = ("--trainer.strategy.init_args.timeout", "0:00:15")
    run.start(nodes, *STRATEGIES[strategy], *timeout)
    wait_for_step(run, 10, nodes)
    begun = time.monotonic()
    nodes[1].unplug()
    nodes[1].die()
    assert nodes[0].wait(120) != 0
    print(f"{strategy}: ended after {time.monotonic() - begun:.0f} s")
    assert time.monotonic() - begun > 10  # the timeout, and no closed connection


def record(arguments: list[str] | None = None) -> None:
    """Run a command of lgpl and write down keys and loss of every step as it is done."""
    from lightning.pytorch.callbacks import Callback

    from lgpl.cli import main
    from lgpl.commands.training import CommandLine

    class Recorder(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            loss = outputs["loss"].item()
            line = {"step": trainer.global_step, "loss": loss, "keys": batch["key"]}
            with open(f"{os.environ['RECORD']}{trainer.global_rank}", "a") as file:
                file.write(json.dumps(line) + "\n")
            if trainer.world_size > 1:
                time.sleep(0.05)  # long enough to be killed in

    make = CommandLine.instantiate_trainer

    def with_recorder(self: CommandLine, **kwargs: Any) -> Any:
        trainer = make(self, **kwargs)
        trainer.callbacks.insert(0, Recorder())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandLine, "instantiate_trainer", with_recorder)
        main(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    record()
