"""What all engines share: no client ends an engine, and none waits for one that has ended."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lgpl.generator import Sampling
from lgpl.inference import load_generator
from lgpl.serving import sampler
from lgpl.serving.api import create_app
from lgpl.serving.engine import Ended, Engine, ImageJob, JobQueue, Prompt
from lgpl.serving.limits import Limits
from lgpl.serving.sampler import SamplerEngine
from tests.models import labels
from tests.serving.servers import Server, export, in_process, wait_until

PROMPT = Prompt(labels(3), 1)
SEED = 20261125


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[SamplerEngine]:
    made = SamplerEngine(load_generator(str(checkpoint), None, "cpu"), 4, 64)
    yield made
    made.close()


class Client:
    """A client that requests one image and records what it receives."""

    def __init__(self, partial: int = 0) -> None:
        self.answers: list[Any] = []
        self.answered = threading.Event()
        self.job = ImageJob(PROMPT, Sampling(), 0, partial, self.show)

    def show(self, shown: bytes | BaseException, whole: bool) -> None:
        self.answers.append(shown)
        if whole:
            self.answered.set()

    def answer(self, engine: Engine) -> Any:
        engine.queue.put([self.job])
        return self.wait()

    def wait(self) -> Any:
        assert self.answered.wait(30)
        return self.answers[-1]


def cancels(queue: JobQueue, job: ImageJob, patch: pytest.MonkeyPatch) -> threading.Event:
    """Cancel a job while its queue gathers; the event is then set."""
    happened = threading.Event()

    def wait_for(_: Any, timeout: float) -> bool:
        job.cancelled.set()
        happened.set()
        return False

    patch.setattr(queue._changed, "wait_for", wait_for)
    return happened


def test_a_queue_waits_on_after_all_its_jobs_are_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, first, second = JobQueue(4), Client().job, Client().job
    happened = cancels(queue, first, monkeypatch)
    queue.put([first])
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, 4, gather=0.01)
        assert happened.wait(30)
        queue.put([second])
        assert taken.result(30) == [second]


def test_a_queue_ends_only_where_it_is_closed_and_empty() -> None:
    queue, jobs = JobQueue(4), [Client().job for _ in range(3)]
    assert queue.take(4, wait=False) == []
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, 4, gather=0.01)
        queue.put(jobs)
        assert taken.result(30) == jobs
        queue.put(jobs)
        queue.close()
        assert queue.take(2, gather=0.01) == jobs[:2] and queue.take(2) == jobs[2:]
        assert queue.take(2, gather=0.01) == queue.take(2) == []
    for refused in (lambda: queue.put(jobs), lambda: queue.check_room(1)):
        with pytest.raises(Ended):
            refused()


def test_a_queue_closed_with_an_error_wakes_take() -> None:
    queue = JobQueue(4)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, 4)
        queue.close(RuntimeError("a fault"))
        queue.close()
        with pytest.raises(RuntimeError, match="a fault"):
            taken.result(30)


def test_an_engine_goes_on_after_all_jobs_are_cancelled(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, left = Client().answer(engine), Client()
    with monkeypatch.context() as patch:
        happened = cancels(engine.queue, left.job, patch)
        engine.queue.put([left.job])
        assert happened.wait(30)
    assert Client().answer(engine) == whole and engine.alive and not left.answers


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a fault")


def exits(*_: Any, **__: Any) -> Any:
    raise SystemExit("a fault")


@pytest.mark.parametrize(
    "fault",
    [
        lambda patch, engine: patch.setattr(engine, "on_batch", raises),
        lambda patch, engine: patch.setattr(engine, "encode", raises),
        lambda patch, engine: patch.setattr(engine, "encode", exits),
        lambda patch, engine: patch.setattr(engine._renderer, "submit", raises),
        lambda patch, engine: patch.setattr(sampler, "decode_together", raises),
        lambda patch, engine: patch.setattr(Client, "show", raises),
        lambda patch, engine: [
            patch.setattr(Client, "show", raises),
            patch.setattr(sampler, "decode_together", raises),
        ],
    ],
    ids=["metrics", "renderer", "renderer exits", "no thread", "model", "client", "client of none"],
)
def test_a_fault_outside_the_drawing_ends_no_engine(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]
) -> None:
    whole = Client(partial=2).answer(engine)
    with monkeypatch.context() as patch:
        fault(patch, engine)
        clients = [Client(partial=2) for _ in range(6)]
        engine.queue.put([client.job for client in clients])
        if Client.show is not raises:
            answers = [client.wait() for client in clients]
            assert all(a == whole or str(a) == "a fault" for a in answers)
        else:
            wait_until(lambda: all(c.job.cancelled.is_set() for c in clients))
    assert Client(partial=2).answer(engine) == whole and engine.alive


def test_a_closed_event_loop_ends_no_engine(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, loop, lost = Client().answer(engine), asyncio.new_event_loop(), Client()
    loop.close()
    monkeypatch.setattr(lost.job, "show", lambda *_: loop.call_soon_threadsafe(lost.answered.set))
    engine.queue.put([lost.job])
    wait_until(lost.job.cancelled.is_set)
    assert Client().answer(engine) == whole and engine.alive


@pytest.mark.parametrize(
    "fault",
    [
        lambda patch, engine: patch.setattr(sampler, "Group", exits),
        lambda patch, engine: patch.setattr(engine, "_step", raises),
        lambda patch, engine: patch.setattr(engine, "_take", lambda *_, **__: []),
        lambda patch, engine: patch.setattr(engine, "on_batch", exits),
    ],
    ids=["exits", "raises", "returns", "metrics exit"],
)
def test_an_engine_that_ends_answers_all_its_clients(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]
) -> None:
    gate, group = threading.Event(), sampler.Group

    def waits(*args: Any) -> Any:
        assert gate.wait(30)
        return group(*args)

    monkeypatch.setattr(sampler, "Group", waits)
    engine.queue.put([Client().job])  # is drawn until the fault is there
    wait_until(lambda: len(engine.queue) == 0)
    clients = [Client() for _ in range(6)]  # more than are drawn at once
    engine.queue.put([client.job for client in clients])
    monkeypatch.undo()
    fault(monkeypatch, engine)
    gate.set()
    assert all(isinstance(client.wait(), Ended) for client in clients)
    assert [len(client.answers) for client in clients] == [1] * 6
    assert not engine.alive and str(engine.failure) in ("a fault", "The engine has returned.")
    with pytest.raises(Ended):
        engine.queue.put([Client().job])


def test_an_engine_that_fails_at_the_start_answers_503(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SamplerEngine, "_run", raises)
    engine = SamplerEngine(load_generator(str(checkpoint), None, "cpu"))
    app = create_app(engine, "generator")
    engine._thread.join(30)
    assert asyncio.run(ask(app, {"prompt": "1"}))[0] == 503
    engine.close()


async def ask(app: Any, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and body of the answer to a request for images, or without a body to /health."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=30
    ) as client:
        if body is None:
            answer = await client.get("/health")
        else:
            answer = await client.post("/v1/images/generations", json=body)
    text = answer.text.rpartition("data: ")[2]
    return answer.status_code, json.loads(text)


def test_clients_of_an_engine_that_ends_are_told_at_once(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, app = threading.Event(), create_app(engine, "generator")

    def exits_later(*_: Any, **__: Any) -> Any:
        assert gate.wait(30)
        raise SystemExit("a fault")

    monkeypatch.setattr(sampler, "Group", exits_later)

    async def scene() -> list[tuple[int, Any]]:
        drawn = asyncio.ensure_future(ask(app, {"prompt": "1", "n": 2}))
        await asyncio.to_thread(wait_until, lambda: engine._active)
        waits = asyncio.ensure_future(ask(app, {"prompt": "1"}))
        streams = asyncio.ensure_future(ask(app, {"prompt": "1", "stream": True}))
        await asyncio.to_thread(wait_until, lambda: len(engine.queue) == 2)
        gate.set()
        answers = await asyncio.wait_for(asyncio.gather(drawn, waits, streams), 5)
        return [*answers, await ask(app, {"prompt": "1"}), await ask(app)]

    *whole, stream, late, health = asyncio.run(scene())
    assert [status for status, _ in (*whole, late, health)] == [503] * 4
    bodies = [body for _, body in (*whole, stream, late, health)]
    assert {body["error"]["code"] for body in bodies} == {"engine_ended"}


def test_clients_that_leave_at_any_moment_end_no_engine(
    engine: SamplerEngine, checkpoint: Path
) -> None:
    """300 clients, one, 4 and 20 at a time, leave before and during their batch."""
    rng = random.Random(SEED)

    async def leave(port: int, seconds: float, places: asyncio.Semaphore) -> None:
        async with places:
            body = json.dumps({"prompt": "3", "n": rng.randint(1, 3)}).encode()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            await asyncio.sleep(seconds)
            writer.transport.abort()

    async def all_leave(port: int) -> None:
        for most in (1, 4, 20):
            places = asyncio.Semaphore(most)
            await asyncio.gather(*(leave(port, rng.uniform(0, 0.03), places) for _ in range(100)))

    with in_process(engine, Limits(seconds=20)) as port:
        asyncio.run(asyncio.wait_for(all_leave(port), 60))
        wait_until(lambda: len(engine.queue) == 0)
        assert engine.alive
        server = Server(f"http://127.0.0.1:{port}", None, checkpoint, [], checkpoint)  # type: ignore[arg-type]
        answer = server.post({"prompt": "3", "seed": 5, "stream": True}).text
        event = json.loads(answer.rpartition("data: ")[2])
        assert base64.b64decode(event["b64_json"]) == server.offline(3, 5)
