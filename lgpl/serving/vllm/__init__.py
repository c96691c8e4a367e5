"""Exported generators in vLLM, without a fork: `vllm.LLM(model=folder)`.

    llm = vllm.LLM(model="exported/generator", dtype="float32")
    client = lgpl.serving.vllm.Client("exported/generator")
    prompts = client.prompts([client.condition.parse("207")])
    outputs = llm.generate(prompts, client.params(Sampling(guidance=2.0), seeds=[0]))
    codes = client.codes(outputs)

`lgpl serve --engine vllm` puts the HTTP API before it, see `lgpl.serving.vllm.engine`.

Installing lgpl beside vLLM is enough: the entry point `vllm.general_plugins` names `register`. This
module imports vLLM only when it is asked for something of it.

Design:

- **One request per picture, with both branches of guidance inside the model.** Two requests that
  belong together part as soon as the scheduler runs one without the other, and nothing tells. So
  what vLLM takes for one sequence is two: a hidden state [2 * dim] is the conditional branch's and
  the null branch's side by side, which linears and norms see as [2, N, dim], and attention as twice
  the heads. A request without guidance (scale 1) computes the null branch, too, and drops it.
- **Guidance in a logits processor.** The model gives the logits of both branches side by side (a
  vocabulary twice as large), and `Guidance` mixes them by each request's own scale, which is in
  `SamplingParams.extra_args`, with the sampler's own function. The null half is then -inf, so
  that what is drawn is a code. It always comes with the model: without it pictures would be
  silently wrong.
- **The model is lgpl's.** `Transformer` with another attention: the same names of weights, sizes
  and rotary table. vLLM brings what attention reads, the paged cache.
- **Prefixes.** A class is the token `codebook_size + class`, looked up where codes are embedded. A
  caption is given as embeddings [L, 2 * dim], without its padding, which nothing sees. Codes turn
  with their place in the picture whatever L is: M-RoPE, vLLM's interface for models that number
  positions themselves, shifts them as far as the padding would have. An empty caption keeps one
  position of padding, as in training.
- **Head sizes** that no kernel has (100, of the 3B) are filled up with zeros, which change neither
  a product nor, with the scale of the true size, the softmax.

Tensor and pipeline parallelism, quantization by vLLM and speculative decoding are refused or
without effect. The processor has the interface of vLLM's first model runner: where another is the
default (GPUs), set `VLLM_USE_V2_MODEL_RUNNER=0`.
"""

from __future__ import annotations

from lgpl.checkpoints.files import ARCHITECTURE, MODEL_TYPE
from lgpl.serving.vllm.client import Client

__all__ = ["Client", "register"]


def register() -> None:
    """Tell vLLM, in each of its processes, what an exported generator is."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from lgpl.serving.vllm.settings import LlamaGenConfig, Settings

    AutoConfig.register(MODEL_TYPE, LlamaGenConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "lgpl.serving.vllm.model:LlamaGen")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Settings
