"""Exported generators in vLLM, without a fork; ../README.md says how and has an example.

vLLM finds `register` through the entry point `vllm.general_plugins` of the installed package. This
module imports vLLM only on use.
"""

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
