"""vLLM behind the HTTP server: requests with any guidance in one continuous batch."""

import itertools
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lgpl.checkpoints import is_exported, read_checkpoint
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule
from lgpl.generator.conditions import Inputs
from lgpl.inference.drawing import passed
from lgpl.serving.engine import Engine, ImageJob
from lgpl.serving.vllm.client import Client
from lgpl.training import build_described


class VLLMEngine(Engine):
    """Draws with vLLM, which computes in a process of its own; an image begins as soon as there is
    room in the batch.

    Args:
        tokenizer: checkpoint of its tokenizer; by default the one that the folder names.
        device: of the tokenizer and the text encoder; vLLM chooses its own.
        settings: arguments of `vllm.EngineArgs`, which may refuse them with a UserError.
        trust: packages whose classes the checkpoints may name beside lgpl's own.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: str | None = None,
        device: str = "cpu",
        batch_size: int = 16,
        capacity: int = 64,
        settings: dict[str, Any] | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        checkpoint = read_checkpoint(folder, "generator")
        folder = checkpoint.path
        if not is_exported(folder):
            how = f"`lgpl export {folder} --out FOLDER` does it."
            raise UserError(f"--checkpoint must be exported for vLLM, got {folder}; {how}")
        module = build_described(checkpoint, trust=trust)
        assert isinstance(module, GeneratorModule)
        module.use_tokenizer(tokenizer, folder)
        module.to(device)
        with torch.device("meta"):  # the weights are vLLM's
            module.configure_model()
        module.check_tokenizer()
        self.client = Client(folder, trust)
        super().__init__(module, self.client.condition.to(device), batch_size, capacity)
        self._running: dict[str, ImageJob] = {}  # jobs in vLLM by their request id
        self._ids = map(str, itertools.count())
        self._vllm = _start(folder, {"max_num_seqs": batch_size, **(settings or {})})
        self._thread.start()
        threading.Thread(target=self._watch, name="lgpl-watch", daemon=True).start()

    @property
    def masks(self) -> Literal["any", "tail", "none"]:
        return "none"  # vLLM draws whole images

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
                    self._handle(output)

    def _watch(self) -> None:
        """Wake the engine's thread when vLLM's process dies, which vLLM itself does not do."""
        core = self._vllm.engine_core
        multiprocessing.connection.wait(core.resources.engine_manager.sentinels())
        error = RuntimeError("vLLM's process has ended.")
        self.queue.close(error)  # if the thread waits for a job
        core.outputs_queue.put(error)  # if it waits for vLLM

    def _admit(self) -> bool:
        """Move waiting jobs into the batch; False where nothing is left to do."""
        jobs = self._take(self.batch_size - len(self._running), wait=not self._running)
        for job in jobs:
            request_id = next(self._ids)
            try:
                (params,) = self.client.params(job.sampling, [job.seed])
                params.output_kind = _output_kind(job)
                self._vllm.add_request(request_id, job.prompt.content, params)
            except Exception as error:  # fails this job; `_watch` sees the end of vLLM
                self._refuse(job, error)
            else:
                self._running[request_id] = job
        return bool(jobs or self._running)

    def _abort_cancelled(self) -> None:
        if cancelled := [i for i, job in self._running.items() if job.cancelled.is_set()]:
            self._vllm.abort_request(cancelled)
            self._active -= {self._running.pop(i) for i in cancelled}

    def _handle(self, output: Any) -> None:
        """Render a request's codes so far, where that is due."""
        job, drawn = self._running[output.request_id], list(output.outputs[0].token_ids)
        count = len(drawn)
        if output.finished:
            del self._running[output.request_id]
            if count < self.layout.codes:  # as vLLM does when it is shut down
                return self._refuse(job, RuntimeError("vLLM has aborted the image."))
        elif not passed(job.previews, count):
            return None
        total = self.layout.codes
        try:
            codes = torch.tensor([drawn + [0] * (total - count)], device=self.module.device)
        except RuntimeError as error:  # the device has no memory left even for these
            return self._refuse(job, error)
        is_drawn = torch.arange(total)[None] < count
        places = None if output.finished else self.layout.places_of(is_drawn)[0]
        return self._render(job, self.layout.unflatten(codes)[0], places)


def _output_kind(job: ImageJob) -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.CUMULATIVE if job.partial else RequestOutputKind.FINAL_ONLY


def _start(folder: str | Path, settings: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the one that `Guidance` is for
    # A fork of this process would inherit the threads of the tokenizer.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # its process, which `_watch` watches
    from vllm import EngineArgs, LLMEngine

    # Only the server receives Ctrl+C, and ends vLLM's process when everything is drawn. SIGTERM, if
    # sent to both, leaves that process the time to finish.
    settings.setdefault("shutdown_timeout", 600)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # SIGTERM during the start must end vLLM's process, too.
    default = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return LLMEngine.from_engine_args(EngineArgs(model=str(folder), **settings))
    except (TypeError, ValueError, RuntimeError, AssertionError, UserError) as error:
        raise UserError(f"vLLM does not start: {' '.join(str(error).split())}") from error
    finally:
        signal.signal(signal.SIGTERM, default)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
