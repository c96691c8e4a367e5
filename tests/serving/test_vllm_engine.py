"""The thread that feeds vLLM, with a stand-in for vLLM that fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lgpl.generator import Sampling
from lgpl.inference import load_generator
from lgpl.serving.engine import Ended, Engine, ImageJob, Prompt
from lgpl.serving.vllm import engine as vllm_engine
from lgpl.serving.vllm.engine import VLLMEngine
from tests.serving.servers import export, wait_until

SEATS = 2


class Stand:
    """Accepts requests, and draws all of them in one step when the gate opens."""

    def __init__(self, codes: int) -> None:
        self.codes, self.gate = codes, threading.Event()
        self.requests: list[str] = []
        self.fault: BaseException | None = None

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        if prompt == "refused":
            raise RuntimeError("a fault")
        self.requests.append(name)

    def abort_request(self, names: list[str]) -> None:
        self.requests = [name for name in self.requests if name not in names]

    def step(self) -> list[Any]:
        self.gate.wait(0.02)
        if not self.gate.is_set():
            return []
        if self.fault is not None:
            raise self.fault
        drawn, self.requests = self.requests, []
        codes = SimpleNamespace(token_ids=[0] * self.codes)
        return [SimpleNamespace(request_id=n, outputs=[codes], finished=True) for n in drawn]


class Standing(VLLMEngine):
    """The engine with the stand-in for vLLM."""

    def __init__(self, folder: Path) -> None:
        module = load_generator(str(folder), None, "cpu")
        condition = module.model.condition
        Engine.__init__(self, module, condition, SEATS, 8)
        self.client: Any = SimpleNamespace(params=lambda *_: [SimpleNamespace()])
        self._running, self._ids = {}, map(str, range(1000))
        self._vllm = Stand(self.layout.codes)
        self._thread.start()

    def close(self) -> None:
        self._vllm.gate.set()
        Engine.close(self)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standing]:
    monkeypatch.setattr(vllm_engine, "_output_kind", lambda job: None)
    made = Standing(export(tmp_path))
    yield made
    made.close()


class Client:
    def __init__(self, content: str = "") -> None:
        self.answer: Any = None
        self.answered = threading.Event()
        self.job = ImageJob(Prompt(content, 1), Sampling(), 0, 0, self.show)

    def show(self, shown: bytes | BaseException, whole: bool) -> None:
        assert self.answer is None
        self.answer = shown
        self.answered.set()

    def wait(self) -> Any:
        assert self.answered.wait(30)
        return self.answer


def submit(engine: Engine, *contents: str) -> list[Client]:
    clients = [Client(content) for content in contents]
    engine.queue.put([client.job for client in clients])
    return clients


@pytest.mark.parametrize("fault", [RuntimeError("a fault"), SystemExit("a fault")])
def test_all_clients_are_answered_when_vllm_has_ended(
    engine: Standing, fault: BaseException
) -> None:
    clients = submit(engine, *[""] * 5)
    wait_until(lambda: len(engine._vllm.requests) == SEATS)
    engine._vllm.fault = fault
    engine._vllm.gate.set()
    assert all(isinstance(client.wait(), Ended) for client in clients)
    assert engine.failure is fault and not engine.alive
    with pytest.raises(Ended):
        submit(engine, "")


def test_an_idle_engine_ends_with_vllm(engine: Standing) -> None:
    engine.queue.close(RuntimeError("a fault"))  # as `_watch` does
    wait_until(lambda: not engine.alive)
    assert str(engine.failure) == "a fault"


def test_a_request_that_vllm_refuses_fails_alone(engine: Standing) -> None:
    engine._vllm.gate.set()
    first, second, third = submit(engine, "", "refused", "")
    assert str(second.wait()) == "a fault"
    assert first.wait() == third.wait() and first.answer.startswith(b"\x89PNG") and engine.alive


def test_cancelled_images_do_not_end_the_engine(
    engine: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(images: int) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(engine, "on_batch", raises)
    left = submit(engine, *[""] * 5)
    wait_until(lambda: len(engine._vllm.requests) == SEATS)
    for client in left:
        client.job.cancelled.set()
    wait_until(lambda: not engine._running and not engine._active and not engine._vllm.requests)
    engine._vllm.gate.set()
    (client,) = submit(engine, "")
    assert client.wait().startswith(b"\x89PNG") and engine.alive
    assert all(client.answer is None for client in left)


def test_a_full_device_fails_one_image(engine: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("a fault")

    engine._vllm.gate.set()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "tensor", full)
        (client,) = submit(engine, "")
        assert str(client.wait()) == "a fault"
    (client,) = submit(engine, "")
    assert client.wait().startswith(b"\x89PNG") and engine.alive
