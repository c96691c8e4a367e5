"""vLLM behind the HTTP server: requests of all kinds of guidance in one continuous batch."""

from __future__ import annotations

import itertools
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lgpl.checkpoints import is_exported, read_checkpoint
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule
from lgpl.generator.conditions import Inputs
from lgpl.inference.drawing import passed
from lgpl.serving.engine import Engine, Picture
from lgpl.serving.vllm.client import Client
from lgpl.training import build_described


@dataclass
class _Running:
    """A picture in vLLM, and the numbers of places after which it is still to be shown."""

    picture: Picture
    shown: list[int]


class VLLMEngine(Engine):
    """Draws with vLLM, which computes in a process of its own; a picture begins as soon as one of
    the seats is free. Threads of this process feed it and paint.

    Args:
        folder: the exported generator.
        tokenizer: checkpoint of its tokenizer; the one that the folder names by default.
        device: of the tokenizer and the text encoder; vLLM chooses its own.
        batch_size: seats: pictures drawn together.
        capacity: pictures that may wait for a seat.
        on_batch: called with the number of pictures of every step.
        settings: arguments of `vllm.EngineArgs`.
        trust: packages whose classes the checkpoints may name beside lgpl's own.

    Raises:
        UserError: the folder, its tokenizer or its text encoder cannot be used, or vLLM refuses
            the settings.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: str | None = None,
        device: str = "cpu",
        batch_size: int = 16,
        capacity: int = 64,
        on_batch: Callable[[int], None] = lambda pictures: None,
        settings: dict[str, Any] | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        module = load_outline(folder, tokenizer, device, trust)
        self.client = Client(folder, trust)
        condition = self.client.condition.to(device)
        super().__init__(module, condition, batch_size, capacity, on_batch)
        self._running: dict[str, _Running] = {}
        self._names = map(str, itertools.count())
        self._vllm = _start(folder, {"max_num_seqs": batch_size, **(settings or {})})
        self._thread.start()
        threading.Thread(target=self._watch, name="lgpl-watch", daemon=True).start()

    def close(self) -> None:
        super().close()
        self._vllm.engine_core.shutdown()

    def _content(self, inputs: Inputs) -> dict[str, Any]:
        return self.client.prompts([inputs])[0]

    def _run(self) -> None:
        while self._admit():
            self._abort_cancelled()
            if self._running:
                self._count(len(self._running))
                for output in self._vllm.step():
                    self._look_at(output)

    def _watch(self) -> None:
        """Wake the thread where vLLM's process was killed: vLLM does not."""
        core = self._vllm.engine_core
        multiprocessing.connection.wait(core.resources.engine_manager.sentinels())
        error = RuntimeError("vLLM's process has ended.")
        self._queue.close(error)  # where it waits for a picture
        core.outputs_queue.put(error)  # where it waits for vLLM

    def _admit(self) -> bool:
        """Give free seats to what waits; False where there is nothing left to do."""
        free = self.batch_size - len(self._running)
        pictures = self._take(free, wait=not self._running)
        for picture in pictures:
            name = next(self._names)
            try:
                (params,) = self.client.params(picture.sampling, [picture.seed])
                params.output_kind = _output_kind(picture)
                self._vllm.add_request(name, picture.prompt.content, params)
            except Exception as error:  # of this request alone; `_watch` sees that vLLM has ended
                self._refuse(picture, error)
                continue
            shown = self.module.model.layout.shown_at(picture.partial)
            self._running[name] = _Running(picture, shown)
        return bool(pictures or self._running)

    def _abort_cancelled(self) -> None:
        left = [n for n, running in self._running.items() if running.picture.cancelled.is_set()]
        if left:
            self._vllm.abort_request(left)
            for name in left:
                self._drawing.discard(self._running.pop(name).picture)

    def _look_at(self, output: Any) -> None:
        """Have a request's codes so far painted, where that is due."""
        running, drawn = self._running[output.request_id], output.outputs[0].token_ids
        if output.finished:
            del self._running[output.request_id]
            if len(drawn) == self.codes:
                self._paint_codes(running.picture, list(drawn))
            else:  # as it does when it is told to end
                self._refuse(running.picture, RuntimeError("vLLM has given the picture up."))
            return
        if passed(running.shown, len(drawn)):
            self._paint_codes(running.picture, list(drawn))

    def _paint_codes(self, picture: Picture, drawn: list[int]) -> None:
        layout, count = self.module.model.layout, len(drawn)
        try:
            codes = torch.tensor(drawn + [0] * (self.codes - count), device=self.module.device)
        except RuntimeError as error:  # the device has no room even for these
            self._refuse(picture, error)
            return
        places = layout.places_of(torch.arange(self.codes)[None] < count)[0]
        whole = count == self.codes
        self.paint(picture, layout.unflatten(codes[None])[0], None if whole else places)


def load_outline(
    folder: str | Path, tokenizer: str | None, device: str, trust: Sequence[str] = ()
) -> GeneratorModule:
    """An exported generator without its weights, but with its tokenizer and text encoder.

    Raises:
        UserError: the folder is none that `lgpl export` has written, or its tokenizer is missing.
    """
    if not is_exported(folder):
        read_checkpoint(folder, "generator")  # tells what else is wrong
        raise UserError(f"{folder} is not exported; `lgpl export {folder} --out FOLDER` does it.")
    module = build_described(read_checkpoint(folder, "generator"), trust=trust)
    assert isinstance(module, GeneratorModule)
    module.use_tokenizer(tokenizer, folder)
    module.to(device)
    with torch.device("meta"):
        module.configure_model()
    module.check_tokenizer()
    return module


def _output_kind(picture: Picture) -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.CUMULATIVE if picture.partial else RequestOutputKind.FINAL_ONLY


def _start(folder: str | Path, settings: dict[str, Any]) -> Any:
    """vLLM's engine."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # `Guidance` is for the first
    # A fork of this process would inherit threads that the tokenizer has started.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # its process, which `_watch` watches
    from vllm import EngineArgs, LLMEngine

    # Ctrl+C is for the server alone, which ends vLLM's process when all is drawn; SIGTERM, where it
    # is sent to both, leaves that process the time to finish what it has.
    settings.setdefault("shutdown_timeout", 600)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # SIGTERM while it starts takes vLLM's process along.
    default = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return LLMEngine.from_engine_args(EngineArgs(model=str(folder), **settings))
    except (TypeError, ValueError, RuntimeError, AssertionError, UserError) as error:
        raise UserError(f"vLLM does not start: {' '.join(str(error).split())}") from error
    finally:
        signal.signal(signal.SIGTERM, default)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
