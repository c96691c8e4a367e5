"""Exported generators in vLLM, without a fork; the README has an example.

vLLM finds `register` through the entry point `vllm.general_plugins` of the installed package. This
module imports vLLM only on use.

- **One request per image, with both branches of guidance inside the model.** Two requests for one
  image would part as soon as the scheduler runs one without the other, without an error. So one
  sequence of vLLM's holds both: a hidden state [2 * dim] is the conditional branch's beside the
  null branch's; linears and norms see [2, N, dim], and attention sees twice the heads. A request
  without guidance (scale 1) computes the null branch, too, and drops it.
- **Guidance in a logits processor.** The model returns the logits of both branches side by side (a
  vocabulary twice as large). `Guidance` mixes them by each request's own scale, from
  `SamplingParams.extra_args`, with the sampler's own function, and sets the null half to -inf, so
  that every drawn token is a code. It is always active: images would be wrong without it.
- **The model is lgpl's.** `Transformer` with another attention keeps the names of weights, sizes
  and rotary table. vLLM provides the paged cache that attention reads.
- **Prefixes.** A class is the token `codebook_size + class`, embedded with the codes. A caption is
  given as embeddings [L, 2 * dim] without padding. Rotary positions of codes do not depend on L:
  M-RoPE, vLLM's interface for models that number positions themselves, shifts them by the
  padding. An empty caption keeps one position of padding, as in training.
- **Head sizes** without a kernel (100, in the 3B) are padded with zeros, which change neither
  a product nor, with the scale of the true size, the softmax.

Tensor and pipeline parallelism, quantization by vLLM and speculative decoding are refused or have
no effect. The processor has the interface of vLLM's first model runner: where another is the
default (GPUs), set `VLLM_USE_V2_MODEL_RUNNER=0`.
"""

from __future__ import annotations

from lgpl.checkpoints.files import ARCHITECTURE, MODEL_TYPE
from lgpl.serving.vllm.client import Client

__all__ = ["Client", "register"]


def register() -> None:
    """Register exported generators in each of vLLM's processes."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from lgpl.serving.vllm.settings import LlamaGenConfig, Settings

    AutoConfig.register(MODEL_TYPE, LlamaGenConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "lgpl.serving.vllm.model:LlamaGen")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Settings
